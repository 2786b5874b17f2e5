"""Remembers, in the run folder, which run of a tracking service a run's metrics go to and how far they are there."""

import importlib
import json
from pathlib import Path
from typing import Any

from learner.checkpoint import write_whole


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
