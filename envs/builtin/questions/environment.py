"""Provides Questions: your own questions with one answer each, from JSONL or a data set, graded by envs/answers/grading.py.

    {"prompt": "What is 3/4 of 20?", "answer": 15}
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], "answer": "4"}

Other keys of a line are ignored; rows.py documents the formats. envs/answers/extract.py finds the answer in a response.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from envs.answers.extract import extract, last_number
from envs.answers.grading import TIMEOUT_S, grade, normalise, number
from envs.builtin.questions.rows import Row, columns_of, read
from envs.checks import check_choice, check_positive
from envs.tasks import OneReply, check_index, stable_hash
from envs.types import Prompt, Split, Verdict

PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
ON_TROUBLE = ("error", "drop")


class Questions:
    """Asks your own questions, from a file or a data set, and grades the answers.

    path           JSONL, JSON or parquet file, a folder written by save_to_disk, or hf:NAME of the hub; see rows.py
    columns        the format: aime, dapo, gsm8k, math, or {"prompt": column, "answer": column}; by default {"prompt": ..,
                   "answer": ..} or {"messages": [..], "answer": ..}
    split          which split of a data set that has several
    eval_path      a second source, for the eval split, with its eval_columns; must have no question of the first
    eval_split     a second split of the same data set, or the split of eval_path
    eval_fraction  without those two: the share of the questions that is held out, in [0, 1); 0.1 by default
    overlap        what to do with a question of both splits, compared without spaces: "error", or "drop" it from train
    conflicts      what to do with rows that ask the same and answer differently: "error", or "drop" the question (the default
                   for dapo, whose data has some). Rows that also agree in the answer count as one row
    template       text around every prompt given as text: "{prompt}\\nPut the answer in \\boxed{}."
    system         system message put before every row that has none of its own
    symbolic       also compare answers as mathematics, with math-verify
    timeout_s      seconds for that comparison
    name           name of its metrics
    Raises ValueError naming file, line and fault for the first line that cannot be used. `dropped` counts what was left out.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        path: str,
        eval_path: str | None = None,
        eval_fraction: float | None = None,
        columns: str | dict[str, Any] | None = None,
        eval_columns: str | dict[str, Any] | None = None,
        split: str | None = None,
        eval_split: str | None = None,
        overlap: str = "error",
        conflicts: str | None = None,
        template: str = "{prompt}",
        system: str = "",
        symbolic: bool = True,
        timeout_s: float = TIMEOUT_S,
        name: str = "questions",
    ) -> None:
        separate = eval_path is not None or eval_split is not None
        if separate and eval_fraction is not None:
            raise ValueError(f"questions: give {'eval_path' if eval_path else 'eval_split'} or eval_fraction, not both")
        fraction = 0.1 if eval_fraction is None else eval_fraction
        if not 0 <= fraction < 1:
            raise ValueError(f"questions: eval_fraction is {fraction}, it must be 0 or more and below 1")
        check_positive("questions", timeout_s=timeout_s)
        conflicts = conflicts or ("drop" if columns == "dapo" else "error")
        check_choice("questions", "overlap", overlap, ON_TROUBLE)
        check_choice("questions", "conflicts", conflicts, ON_TROUBLE)
        if "{prompt}" not in template:
            raise ValueError(f"questions: template is {template!r}, the question has to be in it, as {{prompt}}")
        if eval_columns is not None and eval_path is None:
            raise ValueError("questions: eval_columns is for eval_path, which is not given")
        self.dropped = {"duplicates": 0, "conflicts": 0, "overlap": 0}
        form = None if columns is None else columns_of(columns)
        rows = self._agreed(read(path, system, form, split, template), conflicts)
        if separate:
            held_form = form if eval_columns is None else columns_of(eval_columns)
            held_out = self._agreed(read(eval_path or path, system, held_form, eval_split, template), conflicts)
            train = self._without(rows, held_out, overlap)
        else:
            train, held_out = _divide(rows, fraction)
        # Files are often sorted by difficulty or topic: shuffle train by the seed, keep the file's order for eval.
        random.Random(f"{seed}/questions").shuffle(train)
        self._rows: dict[Split, list[Row]] = {"train": train, "eval": held_out}
        self._symbolic = symbolic
        self._timeout_s = timeout_s
        self._name = name

    def size(self, split: Split) -> int | None:
        return len(self._rows[split])

    def prompt(self, split: Split, index: int) -> Prompt:
        check_index(split, index)
        rows = self._rows[split]
        if not rows:
            raise ValueError(f"{self._name}: the {split} split is empty")
        row = rows[index % len(rows)]
        return Prompt(self._name, split, index, row.messages, {"answer": row.answer, "where": row.where})

    def open(self, prompt: Prompt) -> OneReply:
        reference = prompt.task["answer"]
        return OneReply(lambda text: self._score(text, reference))

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns the reference answer alone, one correct response of many."""
        return prompt.task["answer"]

    def alphabet(self) -> Iterable[str]:
        """Returns printable ASCII, the newline, and all other characters of the files."""
        characters = set(PRINTABLE)
        for rows in self._rows.values():
            for row in rows:
                characters.update(row.answer, *(message.content for message in row.messages))
        return sorted(characters)

    def _agreed(self, rows: Iterable[Row], conflicts: str) -> list[Row]:
        """Returns one row of those that ask the same, in their order.

        DAPO's file has every row about a hundred times (github.com/verl-project/verl/issues/3065).
        """
        first: dict[str, Row] = {}
        contradicted: set[str] = set()
        for row in rows:
            known = first.setdefault(row.question, row)
            if known is row:
                continue
            if _same(known.answer, row.answer):
                self.dropped["duplicates"] += 1
            elif conflicts == "drop":
                contradicted.add(row.question)
            else:
                raise ValueError(
                    f"questions: {row.where} asks what {known.where} asks and answers {row.answer[:100]!r} where that answers "
                    f"{known.answer[:100]!r}: correct one of them, or leave such questions out with conflicts=drop"
                )
        self.dropped["conflicts"] += len(contradicted)
        return [row for question, row in first.items() if question not in contradicted]

    def _without(self, train: list[Row], held_out: list[Row], overlap: str) -> list[Row]:
        """Returns the train rows whose problem no held-out row asks."""
        eval_rows = {row.problem: row for row in held_out}
        kept = [row for row in train if row.problem not in eval_rows]
        shared = len(train) - len(kept)
        if shared and overlap == "error":
            row = next(row for row in train if row.problem in eval_rows)
            raise ValueError(
                f"questions: {eval_rows[row.problem].where} asks what {row.where} asks, and so do {shared} of {len(train)} train "
                "questions in all: the eval split must be unseen; overlap=drop takes them out of train"
            )
        if not kept:
            raise ValueError(
                f"questions: all {len(train)} train questions are in the eval split: nothing is left to train on"
            )
        self.dropped["overlap"] += shared
        return kept

    def _score(self, text: str, reference: str) -> Verdict:
        result = grade(extract(text), reference, symbolic=self._symbolic, timeout_s=self._timeout_s)
        # A sentence that marks no answer, where a number is asked for: "Max has 4 + 5 = 9 cookies."
        if not result.correct and number(reference) is not None and (last := last_number(text)) is not None:
            result = grade(last, reference, symbolic=False)
        if not result.correct:
            return Verdict(0.0, detail=result.how)
        return Verdict(1.0, correct=True, solution=normalise(reference), detail=result.how)


def _divide(rows: list[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Holds out a fraction of the distinct questions: those with the smallest hash, independent of their order in the file.

    Rows that ask the same but for spaces are in the same split.
    """
    wording: dict[str, str] = {}  # problem -> one of its questions, the same for any order of rows
    for row in rows:
        wording[row.problem] = min(row.question, wording.get(row.problem, row.question))
    questions = sorted(wording, key=lambda problem: (stable_hash(wording[problem]), problem))
    count = round(fraction * len(questions))
    if fraction and len(questions) > 1:
        count = min(max(count, 1), len(questions) - 1)
    held_out = set(questions[:count])
    if len(held_out) == len(questions) or (fraction and not held_out):
        raise ValueError(f"questions: {len(questions)} distinct question cannot be divided into train and eval")
    return [row for row in rows if row.problem not in held_out], [row for row in rows if row.problem in held_out]


def _same(one: str, other: str) -> bool:
    """Returns whether two reference answers are equal as text or as numbers; no computer algebra, for millions of rows."""
    if one == other or normalise(one) == normalise(other):
        return True
    a, b = number(one), number(other)
    return a is not None and a == b
