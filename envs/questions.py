"""A user's own questions: a JSONL file, one task a line, graded by envs/grading.py.

    {"prompt": "What is 3/4 of 20?", "answer": 15}
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], "answer": "4"}

Other keys of a line are ignored. The answer is looked for in the reply by envs/extract.py.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.extract import extract
from envs.grading import TIMEOUT_S, grade, normalise
from envs.tasks import OneReply, check_index, stable_hash
from envs.types import Message, Prompt, Split, Verdict

PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file. Example: Row("q.jsonl:3", (Message("user", "2+2?"),), "4")"""

    where: str
    messages: tuple[Message, ...]
    answer: str

    @property
    def question(self) -> str:
        """What two lines share when they ask the same."""
        return json.dumps([(message.role, message.content) for message in self.messages])


class Questions:
    """Your own questions and answers, from a JSONL file.

    path           the file: {"prompt": .., "answer": ..} or {"messages": [..], "answer": ..} on every line
    eval_path      a second file, for the eval split; its questions must not be in the first
    eval_fraction  without eval_path: the share of the questions that is held out, 0 to 1 (excluded); 0.1 by default
    system         system message put before every line that has none of its own
    symbolic       also compare as mathematics, with math-verify
    timeout_s      seconds for that comparison
    name           what metrics are kept under
    Raises ValueError naming file, line and fault for the first line that cannot be used.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        path: str,
        eval_path: str | None = None,
        eval_fraction: float | None = None,
        system: str = "",
        symbolic: bool = True,
        timeout_s: float = TIMEOUT_S,
        name: str = "questions",
    ) -> None:
        if eval_path is not None and eval_fraction is not None:
            raise ValueError("questions: give eval_path or eval_fraction, not both")
        fraction = 0.1 if eval_fraction is None else eval_fraction
        if not 0 <= fraction < 1:
            raise ValueError(f"questions: eval_fraction is {fraction}, it must be 0 or more and below 1")
        if timeout_s <= 0:
            raise ValueError(f"questions: timeout_s is {timeout_s}, it must be above 0")
        rows = list(read(path, system))
        if eval_path is not None:
            train, held = rows, list(read(eval_path, system))
            _check_disjoint(train, held)
        else:
            train, held = _divide(rows, fraction)
        # Files are often sorted by difficulty or topic: train in an order of the seed, evaluate in the file's own.
        random.Random(f"{seed}/questions").shuffle(train)
        self._rows: dict[Split, list[Row]] = {"train": train, "eval": held}
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
        return OneReply(lambda text: self._judge(text, reference))

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """The reference answer, alone: one correct reply of many."""
        return prompt.task["answer"]

    def alphabet(self) -> Iterable[str]:
        """Printable ASCII, the newline, and whatever else the files contain."""
        found = set(PRINTABLE)
        for rows in self._rows.values():
            for row in rows:
                found.update(row.answer, *(message.content for message in row.messages))
        return sorted(found)

    def _judge(self, text: str, reference: str) -> Verdict:
        result = grade(extract(text), reference, symbolic=self._symbolic, timeout_s=self._timeout_s)
        if not result.correct:
            return Verdict(0.0, detail=result.how)
        return Verdict(1.0, correct=True, solution=normalise(reference), detail=result.how)


def read(path: str, system: str = "") -> Iterator[Row]:
    """The rows of a JSONL file; blank lines are skipped. ValueError with file, line and fault."""
    file = Path(path).expanduser()
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise ValueError(f"questions: {path} cannot be read: {error.strerror}") from error
    empty = True
    for i, line in enumerate(lines, start=1):
        if line.strip():
            empty = False
            try:
                yield _row(line, f"{file.name}:{i}", system)
            except (ValueError, RecursionError) as error:
                fault = f"not JSON ({error})" if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"questions: {path}, line {i}: {fault}") from error
    if empty:
        raise ValueError(f"questions: {path} has no line")


def _row(line: bytes, where: str, system: str) -> Row:
    data = json.loads(line.decode("utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f'the line is a {_kind(data)}, it must be an object like {{"prompt": "..", "answer": ".."}}')
    if "answer" not in data:
        raise ValueError(f'there is no "answer", only {", ".join(map(json.dumps, data)) or "nothing"}')
    if ("prompt" in data) == ("messages" in data):
        raise ValueError('there must be either "prompt" or "messages"' + (", not both" if "prompt" in data else ""))
    if "prompt" in data:
        messages = (_message({"role": "user", "content": data["prompt"]}, '"prompt"'),)
    else:
        if not isinstance(data["messages"], list) or not data["messages"]:
            raise ValueError('"messages" must be a list with at least one message')
        messages = tuple(_message(item, f"message {i}") for i, item in enumerate(data["messages"], start=1))
    if system and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    return Row(where, messages, _answer(data["answer"]))


def _message(item: Any, what: str) -> Message:
    if not isinstance(item, dict) or set(item) != {"role", "content"}:
        raise ValueError(f'{what} must be an object with "role" and "content"')
    if item["role"] not in _ROLES:
        raise ValueError(f"the role of {what} is {item['role']!r}, it must be one of {', '.join(_ROLES)}")
    if not isinstance(item["content"], str) or not item["content"].strip():
        raise ValueError(f"the text of {what} must be a string that is not empty")
    return Message(item["role"], item["content"])


def _answer(value: Any) -> str:
    if isinstance(value, str) and normalise(value):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise ValueError(f'"answer" is {json.dumps(value)}, it must be a finite number or a string that is not empty')


def _kind(value: Any) -> str:
    return {list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _divide(rows: list[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Hold out a fraction of the distinct questions: those of smallest hash, whatever their order in the file."""
    questions = sorted({row.question for row in rows}, key=lambda question: (stable_hash(question), question))
    count = round(fraction * len(questions))
    if fraction and len(questions) > 1:
        count = min(max(count, 1), len(questions) - 1)
    held = set(questions[:count])
    if len(held) == len(questions) or (fraction and not held):
        raise ValueError(f"questions: {len(questions)} distinct question cannot be divided into train and eval")
    return [row for row in rows if row.question not in held], [row for row in rows if row.question in held]


def _check_disjoint(train: list[Row], held: list[Row]) -> None:
    lines = {row.question: row.where for row in train}
    for row in held:
        if row.question in lines:
            raise ValueError(
                f"questions: {row.where} asks what {lines[row.question]} asks: the eval split must be unseen"
            )
