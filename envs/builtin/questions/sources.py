"""Reads raw rows from JSONL, JSON and parquet files, saved data sets and the Hugging Face hub."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

HUB = "hf:"
EXTRA = "pip install 'isentrope[datasets]'"


def records(path: str, split: str | None) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yields (short name of a row, its location in the file, function that loads it)."""
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
            f"questions: {path} needs the package '{name.partition('.')[0]}', which is not installed: {EXTRA}"
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
        pattern = "*.parquet" if split is None else f"{split}*.parquet"
        raise ValueError(f"questions: the folder {path} has neither what save_to_disk writes nor {pattern}")
    return _parquet(files, path)


def _hub(name: str, config: str | None, split: str | None) -> Iterable[Any]:
    path = f"{HUB}{name}"
    datasets = _library("datasets", path)
    try:
        dataset = datasets.load_dataset(name, config)
    except Exception as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"questions: {path} cannot be loaded: {fault}") from error
    return _one_split(dataset, path, split)


def _one_split(dataset: Any, path: str, split: str | None) -> Iterable[Any]:
    """Returns the split asked for of a DatasetDict, or its only one; a Dataset itself."""
    if not isinstance(dataset, Mapping):
        if split is not None:
            raise ValueError(f"questions: {path} has no splits: leave split and eval_split out")
        return dataset
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        hint = "give split" if split is None else f"not {split!r}"
        raise ValueError(f"questions: {path} has the splits {', '.join(dataset)}: {hint}")
    return dataset[split]
