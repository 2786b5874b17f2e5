"""Where a run's numbers go: the run folder, the terminal, TensorBoard.

The loop talks to ONE sink, a `FanOut`; it never asks which sinks are behind it.

| sink              | writes                                            | chosen as                                |
|-------------------|---------------------------------------------------|------------------------------------------|
| `JsonlSink`       | metrics.jsonl and samples.jsonl in the run folder | "jsonl"                                  |
| `LiveSink`        | a dashboard in the terminal (`live.py`)           | "console"                                |
| `PlainSink`       | one readable line an iteration                    | "plain", or "console" without a terminal |
| `TensorboardSink` | event files in RUN/tensorboard                    | "tensorboard"                            |

metrics.jsonl holds one JSON object an iteration; a value that is not finite is written as null, since JSON has no NaN,
and `read_rows` gives it back as NaN. samples.jsonl holds one object a response:
{"iteration": 12, "env": "countdown", "prompt": "...", "response": "...", "reward": 1.0, "correct": true, "status": "ok"}.
"""

import difflib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from orchestration.telemetry.keys import present_name, short_evals

Row = dict[str, float]
Sample = dict[str, Any]

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a sink is told once, before the first iteration.

    RunInfo("countdown-repo", Path("runs/countdown-repo"), iterations=300, resumed_at=120)
    """

    name: str
    run_dir: Path
    iterations: int  # the run ends after this one
    resumed_at: int | None = None  # last iteration already done (0: only the evaluation before training); None: fresh
    config: Mapping[str, Any] = field(default_factory=dict)


class Sink(Protocol):
    """One place the numbers go. Calls come from the loop's thread, in this order: start, any of the rest, close."""

    def start(self, run: RunInfo) -> None: ...
    def stage(self, name: str, done: float, total: float) -> None:
        """Progress inside an iteration; names are generate, verify, train, sync, eval, checkpoint."""
        ...

    def iteration(self, row: Row) -> None: ...
    def sample(self, rows: Sequence[Sample]) -> None: ...
    def event(self, text: str) -> None:
        """Something a person should read once: a generator replaced, the coefficient saturated, a stage begun."""
        ...

    def close(self, status: str) -> None:
        """Last call. `status` is a word: finished, stopped, failed."""
        ...


class JsonlSink:
    """The run folder's metrics.jsonl and samples.jsonl, appended to, each row on disk before the call returns."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._files: dict[str, IO[str]] = {}

    def start(self, run: RunInfo) -> None:
        """Make the folder and drop the rows later than `run.resumed_at`: a run that died after its last checkpoint
        repeats those iterations, and each must be there once. A fresh run drops what an earlier run left there;
        whether a folder may be reused is for the caller to decide before."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.rewind(-1 if run.resumed_at is None else run.resumed_at)

    def stage(self, name: str, done: float, total: float) -> None:
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
        """Drop the rows of iterations later than `iteration` from both files, and a last line cut short by a crash.

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
    """The iterations of a run folder in order, one row each; null becomes NaN, values that are no numbers are left out.

    Lines of one iteration are merged, later ones winning. Without a metrics.jsonl the list is empty. Raises ValueError
    with file and line when a line that is not the last is broken.
    """
    path = run_dir / METRICS_FILE
    merged: dict[float, Row] = {}
    for _, raw in _lines(path) if path.exists() else ():
        row = {key: math.nan if value is None else value for key, value in raw.items()}
        row = {present_name(key): float(value) for key, value in row.items() if isinstance(value, int | float)}
        merged.setdefault(row.get("iteration", float(len(merged))), {}).update(row)
    return [merged[iteration] for iteration in sorted(merged)]


def read_samples(run_dir: Path) -> list[Sample]:
    """The sample responses of a run folder in the order they were written; empty without a samples.jsonl."""
    path = run_dir / SAMPLES_FILE
    rows = [row for _, row in _lines(path)] if path.exists() else []
    # Older runs say reply.
    return [{"response" if key == "reply" else key: value for key, value in row.items()} for row in rows]


class PlainSink:
    """One line an iteration, for logs and pipes: no cursor movement, no colour."""

    # (label, key, format); an absent or non-finite value is left out, except that NaN is shown: it is news.
    COLUMNS = (
        ("reward", "reward/mean", ".3f"),
        ("H", "entropy/exact", ".3f"),
        ("target", "entropy/target", ".3f"),
        ("coefficient", "entropy/coefficient", ".3g"),
        ("loss", "loss", ".3g"),
        ("grad", "grad_norm", ".2f"),
        ("tok/s", "tokens/per_second", ",.0f"),
        ("s", "time/iteration", ".1f"),
    )

    def __init__(self, out: IO[str] | None = None) -> None:
        self.out = out or sys.stdout
        self.run = RunInfo("run", Path(), 0)

    def start(self, run: RunInfo) -> None:
        self.run = run
        resumed = "" if run.resumed_at is None else f", resumed after {run.resumed_at}"
        self._say(f"{run.name}: {run.iterations} iterations{resumed}, into {run.run_dir}")

    def stage(self, name: str, done: float, total: float) -> None:
        pass

    def iteration(self, row: Row) -> None:
        width = len(str(self.run.iterations))
        parts = [f"{row.get('iteration', math.nan):{width}.0f}/{self.run.iterations}"]
        parts += [f"{label} {row[key]:{style}}" for label, key, style in self.COLUMNS if key in row]
        if row.get("entropy/saturated", 0.0) > 0.0:
            parts.append("COEFFICIENT AT ITS BOUND")
        # The alias at the first temperature is enough for a line; the file holds the rest.
        parts += [f"{name} {value:.3f}" for name, value in short_evals(row).items()]
        self._say("  ".join(parts))

    def sample(self, rows: Sequence[Sample]) -> None:
        pass

    def event(self, text: str) -> None:
        self._say(f"- {text}")

    def close(self, status: str) -> None:
        self._say(f"{self.run.name}: {status}")

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


class TensorboardSink:
    """Scalars in RUN/tensorboard, written with the tensorboard package alone (torch is not needed).

    Raises ImportError in one sentence when the package is missing, at construction: before the GPUs are taken.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ImportError(
                "The tensorboard sink needs the tensorboard package: install it with `pip install tensorboard` "
                "or take 'tensorboard' out of the sinks."
            ) from error
        self._event: Callable[..., Any] = Event
        self._summary: Any = Summary
        self._writer = EventFileWriter(str(run_dir / "tensorboard"))

    def start(self, run: RunInfo) -> None:
        if run.resumed_at is not None:
            # TensorBoard then hides what an interrupted run wrote after the checkpoint it resumes from.
            session = {"status": 1}  # SessionLog.START
            self._writer.add_event(self._event(session_log=session, step=run.resumed_at + 1, wall_time=time.time()))

    def stage(self, name: str, done: float, total: float) -> None:
        pass

    def iteration(self, row: Row) -> None:
        own = ("iteration", "time/unix")  # an event has fields for these two
        values = [self._summary.Value(tag=key, simple_value=value) for key, value in row.items() if key not in own]
        self._writer.add_event(
            self._event(
                step=int(row["iteration"]),
                wall_time=row.get("time/unix", time.time()),
                summary=self._summary(value=values),
            )
        )

    def sample(self, rows: Sequence[Sample]) -> None:
        pass

    def event(self, text: str) -> None:
        pass

    def close(self, status: str) -> None:
        self._writer.close()


class FanOut:
    """Passes every call to each sink in turn. An error in one propagates, but `close` reaches all of them first."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = tuple(sinks)

    def start(self, run: RunInfo) -> None:
        for sink in self.sinks:
            sink.start(run)

    def stage(self, name: str, done: float, total: float) -> None:
        for sink in self.sinks:
            sink.stage(name, done, total)

    def iteration(self, row: Row) -> None:
        for sink in self.sinks:
            sink.iteration(row)

    def sample(self, rows: Sequence[Sample]) -> None:
        for sink in self.sinks:
            sink.sample(rows)

    def event(self, text: str) -> None:
        for sink in self.sinks:
            sink.event(text)

    def close(self, status: str) -> None:
        with ExitStack() as stack:
            for sink in reversed(self.sinks):
                stack.callback(sink.close, status)


def _console(run_dir: Path, is_terminal: bool) -> Sink:
    if not is_terminal:
        return PlainSink()
    from orchestration.telemetry.live import LiveSink  # here, so that a run without a terminal never imports rich

    return LiveSink()


SINKS: dict[str, Callable[[Path, bool], Sink]] = {
    "jsonl": lambda run_dir, is_terminal: JsonlSink(run_dir),
    "plain": lambda run_dir, is_terminal: PlainSink(),
    "console": _console,
    "tensorboard": lambda run_dir, is_terminal: TensorboardSink(run_dir),
}


def build_sinks(names: Sequence[str], run_dir: Path, is_terminal: bool) -> FanOut:
    """The sinks of a run by name (`SINKS`); "console" is a plain log where there is no terminal.

    Raises ValueError naming the nearest sink for an unknown name, and ImportError in one sentence for a sink whose
    package is missing.
    """
    for name in names:
        if name not in SINKS:
            near = difflib.get_close_matches(name, SINKS, n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"Unknown sink '{name}'.{hint} There are {', '.join(SINKS)}.")
    return FanOut([SINKS[name](run_dir, is_terminal) for name in dict.fromkeys(names)])
