"""Shows how the start of a run's actors goes: how many answer, and which kind took how long."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

T = TypeVar("T")
FEW = 4  # actors of a kind that have a line each; of more, the last has one


class StartProgress:
    """Counts the actors that answer.

    expected  how many of each kind there are to be
    report    gets a line for a person
    progress  gets (phase, done, total), over all kinds
    """

    def __init__(
        self,
        expected: Mapping[str, int],
        report: Callable[[str], None],
        progress: Callable[[str, float, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._expected, self._report, self._progress, self._clock = expected, report, progress, clock
        self._began, self._there = clock(), Counter[str]()
        self._tell()

    async def follow(self, kind: str, start: Awaitable[T]) -> T:
        """Returns what `start` returns, and counts it."""
        result = await start
        self._there[kind] += 1
        self._tell()
        done, total = self._there[kind], self._expected[kind]
        if total <= FEW or done == total:
            self._report(f"{kind}: {done} of {total} ready after {self._clock() - self._began:.1f} s")
        return result

    def _tell(self) -> None:
        self._progress("loading", self._there.total(), sum(self._expected.values()))
