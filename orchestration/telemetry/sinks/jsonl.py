"""Writes and reads metrics.jsonl and samples.jsonl, the record of a run.

metrics.jsonl holds one JSON object an iteration; a value that is not finite is written as null, since JSON has no NaN,
and `read_rows` gives it back as NaN. samples.jsonl holds one object a response:
{"iteration": 12, "env": "countdown", "prompt": "...", "response": "...", "reward": 1.0, "correct": true, "status": "ok"}.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from orchestration.telemetry.keys import present_row
from orchestration.telemetry.sinks.base import Row, RunInfo, Sample

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


class JsonlSink:
    """Appends to the run folder's metrics.jsonl and samples.jsonl; each row is on disk before the call returns."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._files: dict[str, IO[str]] = {}

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

        Atomic: the kept lines go to a temporary file that then replaces the old one, so that a crash leaves either the
        old file or the new one.
        """
        self.close("rewind")
        for name in (METRICS_FILE, SAMPLES_FILE):
            path = self.run_dir / name
            if not path.exists():
                continue
            kept = [line for line, row in _lines(path) if row.get("iteration", 0) <= iteration]
            temporary = path.with_name(name + ".tmp")
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(line + "\n" for line in kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._files:
            # A response may hold a lone surrogate, which UTF-8 cannot carry; written as \\udXXX it is valid JSON again.
            self._files[name] = (self.run_dir / name).open(
                "a", encoding="utf-8", errors="backslashreplace", newline="\n", buffering=1
            )
        self._files[name].write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._files[name].flush()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """The lines of a JSONL file with their objects; a broken LAST line is left out, one before it is an error."""
    # Split at \n only: splitlines() would also cut at U+2028, which responses may hold.
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
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
