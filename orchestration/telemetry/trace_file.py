"""Writes RUN/trace.json, a Chrome trace: one process for the driver and each actor, one thread for each of its lanes.

The JSON array form, an event a line, which viewers load without its end too, as a run leaves it that was killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learner.tracing.spans import Recorded

END = {"name": "end", "ph": "i", "s": "g", "ts": 0, "pid": 0, "tid": 0}  # so that no comma is the last


class TraceFile:
    """Appends spans to a trace. A resumed run goes on with the file that is there. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._processes: dict[str, int] = {}  # by the actor's name; numbers of a resumed run's actors are new
        if not path.exists():
            path.write_text("[\n", "utf-8")
        self._base = _reopened(path)

    def write(self, recorded: Mapping[str, Recorded]) -> None:
        """Appends what was recorded, by the name of the actor."""
        lines: list[str] = []
        for name, (spans, dropped) in recorded.items():
            if not spans:
                continue
            number = self._processes.get(name)
            if number is None:
                number = self._processes[name] = self._base + len(self._processes)
                lines.append(_line("process_name", "M", number, 0, args={"name": name}))
                lines.append(_line("process_sort_index", "M", number, 0, args={"sort_index": number}))
            for span in spans:
                micros, took = span.begin / 1000, (span.end - span.begin) / 1000
                lines.append(_line(span.name, "X", number, span.lane, ts=micros, dur=took))
            if dropped:
                text = f"{dropped} earlier spans were too many and are left out"
                lines.append(_line(text, "i", number, 0, ts=spans[0].begin / 1000, s="p"))
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def close(self) -> None:
        """Ends the array."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(END)}\n]\n")


def _line(name: str, kind: str, process: int, lane: int, **more: Any) -> str:
    return json.dumps({"name": name, "ph": kind, "pid": process, "tid": lane, **more}) + ",\n"


def _reopened(path: Path) -> int:
    """Takes the end off an array, and what a killed run has written of a line; returns the first process number that is free."""
    whole, free = 0, 1
    with path.open("rb") as file:
        for line in file:
            if line != b"[\n" and not line.endswith(b",\n"):
                break
            whole += len(line)
            if line.startswith(b'{"name": "process_name"'):
                free = max(free, json.loads(line[:-2])["pid"] + 1)
    os.truncate(path, whole)
    return free
