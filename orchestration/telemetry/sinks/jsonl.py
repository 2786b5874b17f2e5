"""Writes and reads metrics.jsonl and samples.jsonl, the record of a run.

metrics.jsonl holds one JSON object an iteration; a value that is not finite is written as null, since JSON has no NaN,
and `read_rows` gives it back as NaN. samples.jsonl holds one object a response:
{"iteration": 12, "env": "countdown", "prompt": "...", "response": "...", "reward": 1.0, "correct": true, "status": "ok"}.
"""

import json
import math
import os
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from learner.checkpoint import write_whole
from orchestration.errors import IsentropeError
from orchestration.telemetry.keys import present_row
from orchestration.telemetry.sinks.base import Row, RunInfo, Sample
from orchestration.text import disk_problem

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


class LogError(IsentropeError):
    """Reports a log of the run that could not be written, or not be gone on with."""


class JsonlSink:
    """Appends to the run folder's metrics.jsonl and samples.jsonl; each row is on disk before the call returns."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._files: dict[str, FileIO] = {}

    def start(self, run: RunInfo) -> None:
        """Makes the folder and drops the rows later than `run.resumed_at`.

        A run that died after its last checkpoint repeats those iterations, and each must be there once. A fresh run drops
        what an earlier run left there; whether a folder may be reused is for the caller to decide before.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.rewind(-1 if run.resumed_at is None else run.resumed_at)

    def progress(self, phase: str, done: float, total: float) -> None:
        pass

    def iteration(self, row: Row) -> None:
        self._append(METRICS_FILE, {key: _number(value) for key, value in row.items()})

    def sample(self, rows: Sequence[Sample]) -> None:
        for row in rows:
            self._append(SAMPLES_FILE, row)

    def event(self, text: str) -> None:
        pass

    def close(self, status: str) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def rewind(self, iteration: int) -> None:
        """Drops the rows of iterations later than `iteration` from both files, and a last line cut short by a crash.

        Atomic: a crash leaves either the old file or the new one.
        """
        self.close("rewind")
        for name in (METRICS_FILE, SAMPLES_FILE):
            path = self.run_dir / name
            if not path.exists():
                continue
            with _writing(path):
                try:
                    kept = [line for line, row in _lines(path) if _iteration(row) <= iteration]
                except ValueError as error:
                    raise LogError(
                        f"the run's log cannot be gone on with: {error} Correct or remove this line, or move the file away"
                    ) from None
                write_whole(path, "".join(line + "\n" for line in kept))

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        # A response may hold a lone surrogate, which UTF-8 cannot carry; written as \\udXXX it is valid JSON again.
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")
        path = self.run_dir / name
        with _writing(path):
            if name not in self._files:
                self._files[name] = path.open("ab", buffering=0)  # no buffer: it would fail once more at the end
            file = self._files[name]
            before, written = file.seek(0, os.SEEK_END), 0
            try:
                while written < len(line):  # a full disk takes the beginning of a line
                    written += file.write(line[written:])
                if (
                    name == METRICS_FILE
                ):  # a row an iteration: a checkpoint that outlives a power failure needs those before it
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise


@contextmanager
def _writing(path: Path) -> Generator[None, None, None]:
    """Makes an error of the disk a sentence with the file and the free space."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise LogError(f"the run's log cannot be written: {disk_problem(path, error, free)}") from None


def _iteration(row: Mapping[str, Any]) -> float:
    """Returns the iteration that a line is of. One that says nothing of the kind is kept, as of the start."""
    value = row.get("iteration")
    return value if isinstance(value, int | float) else 0.0


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """The lines of a JSONL file with their objects; a broken LAST line is left out, one before it is an error.

    Decoded by the line: a crash or a full disk may cut the last one inside a character.
    """
    # Split at \n only: splitlines() would also cut at U+2028, which responses may hold.
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    for number, raw in enumerate(lines, start=1):
        try:
            line = raw.decode("utf-8")
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise ValueError(f"Line {number} of {path} is not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ValueError(f"Line {number} of {path} is not a JSON object.")
        yield line, row


def read_rows(run_dir: Path) -> list[Row]:
    """Reads the iterations of a run folder in order, one row each; null becomes NaN, values of other types are left out.

    Lines of one iteration are merged, later ones winning. Without a metrics.jsonl the list is empty. Raises ValueError
    with file and line when a line that is not the last is broken.
    """
    path = run_dir / METRICS_FILE
    merged: dict[float, Row] = {}
    for _, raw in _lines(path) if path.exists() else ():
        row = {key: math.nan if value is None else value for key, value in raw.items()}
        row = present_row({key: float(value) for key, value in row.items() if isinstance(value, int | float)})
        merged.setdefault(row.get("iteration", float(len(merged))), {}).update(row)
    return [merged[iteration] for iteration in sorted(merged)]


def read_samples(run_dir: Path) -> list[Sample]:
    """Reads the sample responses of a run folder in the order they were written; empty without a samples.jsonl."""
    path = run_dir / SAMPLES_FILE
    rows = [row for _, row in _lines(path)] if path.exists() else []
    # Older runs say reply.
    return [{"response" if key == "reply" else key: value for key, value in row.items()} for row in rows]
