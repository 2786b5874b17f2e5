"""Rows of question and answer, out of files and data sets, whatever their columns are called.

    train.jsonl  data.json  train.parquet    one object a line; a list of objects; needs pyarrow
    a folder                                 what Dataset.save_to_disk wrote, or parquet files
    hf:openai/gsm8k:main                     a data set of the Hugging Face hub, NAME or NAME:CONFIG; needs datasets

Columns, where they are not "prompt" or "messages" and "answer": the name of a convention, or {"prompt": "a.b", "answer": "c"}.

    aime    problem, answer                           HuggingFaceH4/aime_2024, MathArena/aime_2025, Maxwell-Jia/AIME_2024
    dapo    prompt (messages), reward_model.ground_truth    BytedTsinghua-SIA/DAPO-Math-17k and what else is in verl's form
    gsm8k   question, answer ("... #### 72")          openai/gsm8k
    math    problem, answer or else the \\boxed{..} of solution    HuggingFaceH4/MATH-500, hendrycks MATH
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.answers.extract import boxed
from envs.answers.grading import normalise
from envs.types import Message

HUB = "hf:"
EXTRA = "pip install 'isentrope[datasets]'"
_ROLES = ("system", "user", "assistant", "tool")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s$.,]+)")
# What DAPO's data puts around every problem: without it a problem can be compared with that of another data set.
_AROUND = re.compile(
    r"^Solve the following math problem step by step\. The last line of your response should be of the form Answer: \$Answer "
    r"\(without quotes\) where \$Answer is the answer to the problem\.\s*"
    r"|\s*Remember to put your answer on its own line after \"Answer:\"\.$"
)
_SPACES = re.compile(r"[\s$]+|\\[,;:! ]")


@dataclass(frozen=True, slots=True)
class Row:
    """One question. Example: Row("q.jsonl:3", (Message("user", "2+2?"),), "4", "2+2?")

    asked  the messages' text without system message and template
    """

    where: str
    messages: tuple[Message, ...]
    answer: str
    asked: str

    @property
    def question(self) -> str:
        """What two rows share when they ask the same."""
        return json.dumps([(message.role, message.content) for message in self.messages])

    @property
    def problem(self) -> str:
        """What two rows share when they ask the same in other words around it: without case, spaces and dollar signs, and
        without the instructions that DAPO's data has around every problem."""
        return _SPACES.sub("", _AROUND.sub("", self.asked)).casefold()


Reader = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Columns:
    """Where question and answer are: dotted paths of names without their case, the first that is there. An answer's path has
    what finds the answer in its text."""

    prompt: tuple[str, ...]
    answer: tuple[tuple[str, Reader], ...]


def _as_it_is(text: str) -> str | None:
    return text


def _after_hashes(text: str) -> str | None:
    _, mark, answer = text.rpartition("####")
    return answer.strip() if mark else None


def _in_box(text: str) -> str | None:
    found = boxed(text)
    if found is None:
        bare = _BARE_BOX.findall(text)
        return bare[-1] if bare else None
    return found


CONVENTIONS: dict[str, Columns] = {
    "aime": Columns(("problem", "question"), (("answer", _as_it_is),)),
    "dapo": Columns(("prompt",), (("reward_model.ground_truth", _as_it_is),)),
    "gsm8k": Columns(("question",), (("answer", _after_hashes),)),
    "math": Columns(("problem",), (("answer", _as_it_is), ("solution", _in_box))),
}


def columns_of(given: str | Mapping[str, Any]) -> Columns:
    """Raises ValueError, one sentence."""
    if isinstance(given, str):
        if given not in CONVENTIONS:
            raise ValueError(f"questions: columns is {given!r}, it must be one of {', '.join(CONVENTIONS)}, or a dict")
        return CONVENTIONS[given]
    if set(given) != {"prompt", "answer"} or not all(isinstance(path, str) and path for path in given.values()):
        raise ValueError(f'questions: columns is {given!r}, it must be {{"prompt": "column", "answer": "column"}}')
    return Columns((given["prompt"],), ((given["answer"], _as_it_is),))


def read(
    path: str,
    system: str = "",
    columns: Columns | None = None,
    split: str | None = None,
    template: str = "{prompt}",
) -> Iterator[Row]:
    """The rows of a file, a folder or a data set. ValueError with the place and the fault of the first that cannot be used.

    system    put before every row that has no system message
    columns   None: "prompt" or "messages", and "answer"
    split     of a data set that has several
    template  what is asked, for rows of text: "{prompt}" in it is the row's
    """
    empty = True
    for where, place, load in _records(path, split):
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
            raise ValueError(f"questions: {path}, {place}: {fault}") from error
    if empty:
        raise ValueError(f"questions: {path} has no line")


# --- where rows are -----------------------------------------------------------------------------------------------------


def _records(path: str, split: str | None) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(short name of a row, its place in the file, what loads it)."""
    if path.startswith(HUB):
        name, _, config = path.removeprefix(HUB).partition(":")
        yield from _numbered(name, _hub(name, config or None, split))
        return
    file = Path(path).expanduser()
    if file.is_dir():
        yield from _numbered(file.name, _folder(file, path, split))
        return
    if split is not None:
        raise ValueError(f"questions: {path} is one file and has no splits: leave split and eval_split out")
    if file.suffix == ".parquet":
        yield from _numbered(file.name, _parquet([file], path))
        return
    try:
        content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ValueError(f"questions: {path} cannot be read: {error.strerror}") from error
    if file.suffix == ".json" and content.lstrip()[:1] == b"[":
        try:
            rows = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"questions: {path} is not JSON: {error}") from error
        yield from _numbered(file.name, rows)
        return
    for i, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield f"{file.name}:{i}", f"line {i}", lambda line=line: json.loads(line.decode("utf-8"))


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for i, row in enumerate(rows):
        yield f"{name}:{i}", f"row {i}", lambda row=row: row


def _library(name: str, path: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"questions: {path} needs the package '{name.partition('.')[0]}', which is not here: {EXTRA}"
        ) from error


def _parquet(files: list[Path], path: str) -> Iterator[Any]:
    parquet = _library("pyarrow.parquet", path)
    for file in files:
        try:
            for batch in parquet.ParquetFile(file).iter_batches():
                yield from batch.to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise ValueError(f"questions: {file} cannot be read: {' '.join(str(error).split())}") from error


def _folder(folder: Path, path: str, split: str | None) -> Iterable[Any]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _one_split(_library("datasets", path).load_from_disk(str(folder)), path, split)
    files = sorted(folder.rglob("*.parquet"))
    if split is not None:
        files = [file for file in files if file.name.startswith(split)]
    if not files:
        wanted = "*.parquet" if split is None else f"{split}*.parquet"
        raise ValueError(f"questions: the folder {path} has neither what save_to_disk writes nor {wanted}")
    return _parquet(files, path)


def _hub(name: str, config: str | None, split: str | None) -> Iterable[Any]:
    path = f"{HUB}{name}"
    datasets = _library("datasets", path)
    try:
        found = datasets.load_dataset(name, config)
    except Exception as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"questions: {path} cannot be loaded: {fault}") from error
    return _one_split(found, path, split)


def _one_split(found: Any, path: str, split: str | None) -> Iterable[Any]:
    """Of a DatasetDict the split asked for, or its only one; a Dataset as it is."""
    if not isinstance(found, Mapping):
        if split is not None:
            raise ValueError(f"questions: {path} has no splits: leave split and eval_split out")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        wanted = "give split" if split is None else f"not {split!r}"
        raise ValueError(f"questions: {path} has the splits {', '.join(found)}: {wanted}")
    return found[split]


# --- what a row is ------------------------------------------------------------------------------------------------------


def _plain(data: Any, where: str, system: str, template: str) -> Row:
    if not isinstance(data, dict):
        raise ValueError(f'the line is a {_kind(data)}, it must be an object like {{"prompt": "..", "answer": ".."}}')
    if "answer" not in data or not {"prompt", "messages"} & set(data):
        like = [name for name, columns in CONVENTIONS.items() if _has(data, columns)]
        hint = f": its columns are those of columns={like[0]}" if like else ""
        if "answer" not in data:
            raise ValueError(f'there is no "answer", only {", ".join(map(json.dumps, data)) or "nothing"}{hint}')
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
            raise ValueError(f"there is no {' or '.join(paths)}, only {', '.join(map(str, data)) or 'nothing'}")
    asked = next(value for path in columns.prompt if (value := _at(data, path)) is not None)
    given, find = next((value, find) for path, find in columns.answer if (value := _at(data, path)) is not None)
    answer = find(given) if isinstance(given, str) else given
    if answer is None:
        raise ValueError(f"no answer is marked in {json.dumps(given)[:200]}")
    return _row(where, asked, isinstance(asked, str), answer, system, template)


def _row(where: str, asked: Any, text: bool, answer: Any, system: str, template: str) -> Row:
    """asked: a text, or messages."""
    if text:
        messages = (_message({"role": "user", "content": asked}, '"prompt"'),)
    else:
        if not isinstance(asked, list) or not asked:
            raise ValueError('"messages" must be a list with at least one message')
        messages = tuple(_message(item, f"message {i}") for i, item in enumerate(asked, start=1))
    said = "\n".join(message.content.strip() for message in messages if message.role != "system")
    if text:
        messages = (Message("user", template.replace("{prompt}", messages[0].content)),)
    if system and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    return Row(where, messages, _answer(answer), said)


def _has(data: dict[str, Any], columns: Columns) -> bool:
    """Whether a row has these columns and an answer in them."""
    asked = any(_at(data, path) is not None for path in columns.prompt)
    return asked and any(isinstance(value := _at(data, path), str) and find(value) for path, find in columns.answer)


def _at(data: Any, path: str) -> Any:
    """The value at a dotted path of names without their case; None where it is not there."""
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
