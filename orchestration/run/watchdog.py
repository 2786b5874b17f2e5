"""Notices a run that makes no progress, and says which phase waits for what. Pure: the clock is given."""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestration.text import duration


class Watchdog:
    """Takes phases and progress, and answers whether the run stands still.

    One sentence a stall: it is repeated when the stall has lasted twice as long, four times, and so on.
    """

    def __init__(self, stalled_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.stalled_s, self._clock = stalled_s, clock
        self._phase, self._detail = "start", ""
        self._done: tuple[float, float] | None = None
        self._moved = clock()
        self._next = stalled_s  # seconds of silence after which it speaks

    def phase(self, name: str, detail: str = "") -> None:
        """Takes the phase that the run is in. detail: what it waits for, such as "generator 0, generator 1"."""
        if name != self._phase:
            self.progress()
        self._phase, self._detail = name, detail

    def waits_for(self, detail: str) -> None:
        """Takes what the present phase waits for."""
        self._detail = detail

    def progress(self, done: float | None = None, total: float | None = None) -> None:
        """Takes a step forward; the same numbers again do not count."""
        at = None if done is None or total is None else (done, total)
        if at is not None and at == self._done:
            return
        self._done, self._moved, self._next = at, self._clock(), self.stalled_s

    def look(self, now: float | None = None) -> str | None:
        """Returns a sentence when nothing has moved for too long, once a stall, else None."""
        silent = (self._clock() if now is None else now) - self._moved
        if silent < self._next:
            return None
        while self._next <= silent:
            self._next *= 2
        at = "" if self._done is None else f" at {self._done[0]:g} of {self._done[1]:g}"
        waits = f", it waits for {self._detail}" if self._detail else ""
        return f"no progress for {duration(silent)}: {self._phase} stands{at}{waits}"
