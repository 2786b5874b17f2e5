"""Reads rows of question and answer from files and data sets, whatever their columns are called.

    train.jsonl  data.json  train.parquet    one object a line; a list of objects; needs pyarrow
    a folder                                 what Dataset.save_to_disk wrote, or parquet files
    hf:openai/gsm8k:main                     a data set of the Hugging Face hub, NAME or NAME:CONFIG; needs datasets

Columns other than "prompt" or "messages" and "answer" need the name of a format, or {"prompt": "a.b", "answer": "c"}.

    aime    problem, answer                           HuggingFaceH4/aime_2024, MathArena/aime_2025, Maxwell-Jia/AIME_2024
    dapo    prompt (messages), reward_model.ground_truth    BytedTsinghua-SIA/DAPO-Math-17k and others in verl's format
    gsm8k   question, answer ("... #### 72")          openai/gsm8k
    math    problem, answer or else the \\boxed{..} of solution    HuggingFaceH4/MATH-500, hendrycks MATH
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from envs.answers.extract import boxed
from envs.answers.grading import normalise
from envs.builtin.questions.sources import records
from envs.types import Message

_ROLES = ("system", "user", "assistant", "tool")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s$.,]+)")
# DAPO's data puts this around every problem; without it a problem can be compared with one of another data set.
_AROUND = re.compile(
    r"^Solve the following math problem step by step\. The last line of your response should be of the form Answer: \$Answer "
    r"\(without quotes\) where \$Answer is the answer to the problem\.\s*"
    r"|\s*Remember to put your answer on its own line after \"Answer:\"\.$"
)
_SPACES = re.compile(r"[\s$]+|\\[,;:! ]")


@dataclass(frozen=True, slots=True)
class Row:
    """Holds one question. Example: Row("q.jsonl:3", (Message("user", "2+2?"),), "4", "2+2?")

    where  short name of the row's origin
    asked  the messages' text without system message and template
    """

    where: str
    messages: tuple[Message, ...]
    answer: str
    asked: str

    @property
    def question(self) -> str:
        """Returns a text that is equal for rows whose messages are equal."""
        return json.dumps([(message.role, message.content) for message in self.messages])

    @property
    def problem(self) -> str:
        """Returns a text that is equal for rows that ask the same problem in a different wrapping.

        It ignores case, spaces and dollar signs, and the instructions that DAPO's data puts around every problem.
        """
        return _SPACES.sub("", _AROUND.sub("", self.asked)).casefold()


Reader = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Columns:
    """Names where question and answer are in a row.

    Each is a list of dotted paths, case-insensitive, of which the first that exists is used. An answer's path comes with the
    function that finds the answer in its text.
    """

    prompt: tuple[str, ...]
    answer: tuple[tuple[str, Reader], ...]


def _as_it_is(text: str) -> str | None:
    return text


def _after_hashes(text: str) -> str | None:
    _, mark, answer = text.rpartition("####")
    return answer.strip() if mark else None


def _in_box(text: str) -> str | None:
    answer = boxed(text)
    if answer is None:
        bare = _BARE_BOX.findall(text)
        return bare[-1] if bare else None
    return answer


CONVENTIONS: dict[str, Columns] = {
    "aime": Columns(("problem", "question"), (("answer", _as_it_is),)),
    "dapo": Columns(("prompt",), (("reward_model.ground_truth", _as_it_is),)),
    "gsm8k": Columns(("question",), (("answer", _after_hashes),)),
    "math": Columns(("problem",), (("answer", _as_it_is), ("solution", _in_box))),
}


def columns_of(columns: str | Mapping[str, Any]) -> Columns:
    """Returns the columns of a format's name or of {"prompt": path, "answer": path}. Raises ValueError, one sentence."""
    if isinstance(columns, str):
        if columns not in CONVENTIONS:
            raise ValueError(
                f"questions: columns is {columns!r}, it must be one of {', '.join(CONVENTIONS)}, or a dict"
            )
        return CONVENTIONS[columns]
    if set(columns) != {"prompt", "answer"} or not all(isinstance(path, str) and path for path in columns.values()):
        raise ValueError(f'questions: columns is {columns!r}, it must be {{"prompt": "column", "answer": "column"}}')
    return Columns((columns["prompt"],), ((columns["answer"], _as_it_is),))


def read(
    path: str,
    system: str = "",
    columns: Columns | None = None,
    split: str | None = None,
    template: str = "{prompt}",
) -> Iterator[Row]:
    """Yields the rows of a file, a folder or a data set. Raises ValueError with location and fault of the first unusable row.

    system    system message for every row without one
    columns   None: "prompt" or "messages", and "answer"
    split     which split of a data set that has several
    template  text around every question given as text; "{prompt}" in it is replaced by the question
    """
    empty = True
    for where, location, load in records(path, split):
        empty = False
        try:
            data = load()
            yield (
                _plain(data, where, system, template)
                if columns is None
                else _named(data, where, system, template, columns)
            )
        except (ValueError, RecursionError) as error:
            fault = f"not JSON ({error})" if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"questions: {path}, {location}: {fault}") from error
    if empty:
        raise ValueError(f"questions: {path} has no line")


def _plain(data: Any, where: str, system: str, template: str) -> Row:
    if not isinstance(data, dict):
        raise ValueError(f'the line is a {_kind(data)}, it must be an object like {{"prompt": "..", "answer": ".."}}')
    if "answer" not in data or not {"prompt", "messages"} & set(data):
        like = [name for name, columns in CONVENTIONS.items() if _has(data, columns)]
        hint = f": its columns are those of columns={like[0]}" if like else ""
        if "answer" not in data:
            raise ValueError(f'"answer" is missing; the columns are {", ".join(map(json.dumps, data)) or "none"}{hint}')
        raise ValueError(f'there must be either "prompt" or "messages"{hint}')
    if "prompt" in data and "messages" in data:
        raise ValueError('there must be either "prompt" or "messages", not both')
    return _row(
        where,
        data["prompt"] if "prompt" in data else data["messages"],
        "prompt" in data,
        data["answer"],
        system,
        template,
    )


def _named(data: Any, where: str, system: str, template: str, columns: Columns) -> Row:
    if not isinstance(data, dict):
        raise ValueError(f"the row is a {_kind(data)}, it must be an object")
    for paths in (columns.prompt, [path for path, _ in columns.answer]):
        if not any(_at(data, path) is not None for path in paths):
            raise ValueError(f"{' or '.join(paths)} is missing; the columns are {', '.join(map(str, data)) or 'none'}")
    question = next(value for path in columns.prompt if (value := _at(data, path)) is not None)
    marked, find = next((value, find) for path, find in columns.answer if (value := _at(data, path)) is not None)
    answer = find(marked) if isinstance(marked, str) else marked
    if answer is None:
        raise ValueError(f"no answer is marked in {json.dumps(marked)[:200]}")
    return _row(where, question, isinstance(question, str), answer, system, template)


def _row(where: str, question: Any, text: bool, answer: Any, system: str, template: str) -> Row:
    """Builds a row. question: a text if `text`, else messages."""
    if text:
        messages = (_message({"role": "user", "content": question}, '"prompt"'),)
    else:
        if not isinstance(question, list) or not question:
            raise ValueError('"messages" must be a list with at least one message')
        messages = tuple(_message(item, f"message {i}") for i, item in enumerate(question, start=1))
    asked_text = "\n".join(message.content.strip() for message in messages if message.role != "system")
    if text:
        messages = (Message("user", template.replace("{prompt}", messages[0].content)),)
    if system and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    return Row(where, messages, _answer(answer), asked_text)


def _has(data: dict[str, Any], columns: Columns) -> bool:
    """Returns whether a row has these columns and an answer in them."""
    has_question = any(_at(data, path) is not None for path in columns.prompt)
    return has_question and any(
        isinstance(value := _at(data, path), str) and find(value) for path, find in columns.answer
    )


def _at(data: Any, path: str) -> Any:
    """Returns the value at a dotted, case-insensitive path; None where there is none."""
    for name in path.split("."):
        if not isinstance(data, dict):
            return None
        if name not in data:
            name = next((key for key in data if str(key).casefold() == name.casefold()), name)
        data = data.get(name)
    return data


def _message(item: Any, what: str) -> Message:
    if not isinstance(item, dict) or set(item) != {"role", "content"}:
        raise ValueError(f'{what} must be an object with "role" and "content"')
    if item["role"] not in _ROLES:
        raise ValueError(f"the role of {what} is {item['role']!r}, it must be one of {', '.join(_ROLES)}")
    if not isinstance(item["content"], str) or not item["content"].strip():
        raise ValueError(f"the text of {what} must be a string that is not empty")
    return Message(item["role"], item["content"])


def _answer(value: Any) -> str:
    if isinstance(value, str) and ((text := value.strip()).isalnum() or normalise(text)):
        return text
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise ValueError(f'"answer" is {json.dumps(value)}, it must be a finite number or a string that is not empty')


def _kind(value: Any) -> str:
    return {list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
