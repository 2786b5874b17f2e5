"""Finished groups, bounded, each with the age it may reach. asyncio only.

Producers wait in `put` while the buffer is full; the learner waits in `take` until a batch is there. In the synchronous loop
every group is one version old at most and nothing waits long; the same two calls bound an asynchronous one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from envs.types import Group


@dataclass(frozen=True, slots=True)
class Aged:
    """A group and the oldest policy version that sampled a token of it."""

    group: Group
    version_min: int

    @classmethod
    def of(cls, group: Group) -> Aged:
        return cls(group, min(turn.version_min for t in group.trajectories for turn in t.turns))

    def staleness(self, version: int) -> int:
        """Updates between the sampling of the group and `version`."""
        return version - self.version_min


class Buffer:
    """`capacity` groups; a group more than `max_staleness` versions old is dropped when a batch is taken, and counted."""

    def __init__(self, capacity: int, max_staleness: int) -> None:
        if capacity < 1 or max_staleness < 0:
            raise ValueError(
                f"a buffer of {capacity} groups with a staleness of {max_staleness}: give capacity >= 1, staleness >= 0"
            )
        self.capacity, self.max_staleness = capacity, max_staleness
        self.dropped = 0
        self._groups: deque[Aged] = deque()
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._groups)

    async def put(self, group: Group) -> None:
        """Waits for room."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._groups) < self.capacity)
            self._groups.append(Aged.of(group))
            self._changed.notify_all()

    async def take(self, count: int, version: int) -> list[Group]:
        """The `count` oldest groups that are fresh enough for `version`; waits until there are as many."""
        if count > self.capacity:
            raise ValueError(f"a batch of {count} groups never fits in a buffer of {self.capacity}")
        async with self._changed:
            while True:
                stale = [a for a in self._groups if a.staleness(version) > self.max_staleness]
                if stale:
                    self.dropped += len(stale)
                    self._groups = deque(a for a in self._groups if a.staleness(version) <= self.max_staleness)
                    self._changed.notify_all()
                if len(self._groups) >= count:
                    taken = [self._groups.popleft().group for _ in range(count)]
                    self._changed.notify_all()
                    return taken
                await self._changed.wait()
