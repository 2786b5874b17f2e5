"""Sends a run's metrics to a tracking service, and remembers in the run folder to which run of it, and how far they are there."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learner.checkpoint import write_whole
from orchestration.telemetry.sinks.base import Row, RunInfo, Sample


def imported(module: str, package: str) -> Any:
    """Imports a tracker's module. Raises ImportError in one sentence when its package is missing."""
    sink = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The {sink} sink needs the {package} package: install it with `pip install {package}` "
            f"or take '{sink}' out of the sinks."
        ) from error


class TrackerRun:
    """Keeps the service's id of the run and the last iteration that was logged, in a small file.

    A run that goes on from a checkpoint repeats the iterations after it, and repeats them exactly: `is_new` is False for those.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._id: str | None = None
        self._last = -1

    def begin(self, resumed_at: int | None) -> str | None:
        """Returns the id to go on with; None for a fresh run, and for one that had no tracker before."""
        self._id, self._last = None, -1
        if resumed_at is not None and self._file.is_file():
            try:
                state = json.loads(self._file.read_text("utf-8"))
                self._id, self._last = str(state["id"]), int(state["last"])
            except (ValueError, KeyError, TypeError):
                self._id, self._last = None, -1  # a torn file: a run of its own is better than none
        return self._id

    def named(self, identity: str) -> None:
        """Remembers the service's id of the run."""
        self._id = identity
        self._write()

    def is_new(self, iteration: int) -> bool:
        """Returns whether an iteration has to be logged, and remembers that it is."""
        if iteration <= self._last:
            return False
        self._last = iteration
        self._write()
        return True

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._file, json.dumps({"id": self._id, "last": self._last}) + "\n")


class TrackerSink:
    """Logs every iteration's metrics at its number as the step, and the configuration once.

    A run that goes on continues its run of the service; rows that it repeats, which are those after its last checkpoint, are there
    already and are not logged again. Samples and events are not for trackers.
    """

    def __init__(self, file: Path) -> None:
        self._tracked = TrackerRun(file)
        self._begun = False

    def start(self, run: RunInfo) -> None:
        """Begins the service's run, or goes on with it. Raises ConfigError where the service cannot be used."""
        self._tracked.named(self._begin(run, self._tracked.begin(run.resumed_at)))
        self._begun = True

    def progress(self, phase: str, done: float, total: float) -> None:
        pass

    def iteration(self, row: Row) -> None:
        step = int(row["iteration"])
        if self._tracked.is_new(step):
            self._log(row, step)

    def sample(self, rows: Sequence[Sample]) -> None:
        pass

    def event(self, text: str) -> None:
        pass

    def close(self, status: str) -> None:
        if self._begun:
            self._begun = False
            self._end(status)

    def _begin(self, run: RunInfo, known: str | None) -> str:
        """Begins a run, or goes on with the one that is `known`; returns its id. Raises ConfigError."""
        raise NotImplementedError

    def _log(self, row: Row, step: int) -> None:
        """Logs one iteration."""
        raise NotImplementedError

    def _end(self, status: str) -> None:
        """Ends the service's run."""
        raise NotImplementedError
