"""Defines a sink, what it receives of a run, and the sink that passes everything on to several."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, float]  # the metrics of an iteration, by the names of telemetry/keys.py
Sample = dict[str, Any]  # a response that is kept, see jsonl.py


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Holds what a sink receives once, before the first iteration.

    RunInfo("countdown-repo", Path("runs/countdown-repo"), iterations=300, resumed_at=120)
    """

    name: str
    run_dir: Path
    iterations: int  # the run ends after this one
    resumed_at: int | None = None  # last iteration already done (0: only the evaluation before training); None: fresh
    config: Mapping[str, Any] = field(default_factory=dict)


class Sink(Protocol):
    """Takes the numbers of a run to one place. Calls come from the loop's thread, in this order: start, any of the rest, close."""

    def start(self, run: RunInfo) -> None: ...
    def progress(self, phase: str, done: float, total: float) -> None:
        """Shows the progress inside an iteration, or before the first: phases are loading, checking, generate, verify, train, sync,
        eval, checkpoint."""
        ...

    def iteration(self, row: Row) -> None: ...
    def sample(self, rows: Sequence[Sample]) -> None: ...
    def event(self, text: str) -> None:
        """Shows what a person should read once: a generator replaced, the coefficient saturated, a stage of the curriculum
        begun."""
        ...

    def close(self, status: str) -> None:
        """Ends the sink. `status` is a word: finished, stopped, failed."""
        ...


class FanOut:
    """Passes every call to each sink in turn. An error in one propagates, but `close` reaches all of them first."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = tuple(sinks)

    def start(self, run: RunInfo) -> None:
        for sink in self.sinks:
            sink.start(run)

    def progress(self, phase: str, done: float, total: float) -> None:
        for sink in self.sinks:
            sink.progress(phase, done, total)

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
