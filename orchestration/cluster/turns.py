"""Gives the GPUs that learner and generators share (`generators.colocated`) to one of them at a time.

    learner's turn      generators asleep: their weights in host memory, no KV cache; the optimiser's state on the GPU
    transfer            optimiser's state and gradients in host memory, the generators' weights awake
    generators' turn    their KV caches, too

The optimiser goes before the engines' weights come: a transfer does not need it, and the two never have to fit together. The
learner's weights stay where they are throughout, so that transfers, the check at the start and the probe after an update find them.
Without `generators.colocated` it is always everybody's turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from actors.health.lifeline import LearnerDied, MemberDied
from actors.inference import Memory
from learner.tracing.spans import traced


class CanSleep(Protocol):
    """Frees its GPU and takes it again: one generator."""

    name: str

    async def sleep(self) -> None: ...

    async def wake(self, memory: Memory) -> None: ...


class CanOffload(Protocol):
    """Leaves room on its GPUs and takes it again: the learner."""

    async def offload(self) -> None: ...

    async def reload(self) -> None: ...


class Generators(Protocol):
    """Holds the generators of the policy."""

    engine_starts: asyncio.Lock  # an engine starts under it, and measures how much of its GPU is free

    def present(self) -> Sequence[CanSleep]:
        """Returns the generators in service, and those that join."""
        ...

    def lost(self, death: MemberDied) -> None: ...


class Turns:
    """Knows whose turn it is. The calls of one run follow each other; a change that an error breaks off is made whole by the next.

    While the learner has the GPUs it holds `engine_starts`: a generator that dies asleep is replaced in the generators' next turn.
    """

    def __init__(self, generators: Generators, learner: Callable[[], CanOffload], colocated: bool) -> None:
        self._generators, self._learner, self._colocated = generators, learner, colocated
        self._asleep: dict[str, CanSleep] = {}
        self.learners = False  # whether it is the learner's turn
        self._seconds = 0.0

    async def clear(self) -> None:
        """Sends every generator to sleep, once those that start have started: the GPUs are the learner's, or its successor's."""
        if self._colocated and not self.learners:
            await self._clear()

    @traced("generators leave")
    async def _clear(self) -> None:
        began = time.perf_counter()
        await self._generators.engine_starts.acquire()
        self.learners = True
        present = list(self._generators.present())
        self._asleep |= {one.name: one for one in present}  # also where it breaks off: waking who is awake does nothing
        await self._all((one, one.sleep()) for one in present)
        self._seconds += time.perf_counter() - began

    async def to_learner(self) -> None:
        """Begins the learner's turn. Raises LearnerDied."""
        await self.clear()
        if self._colocated:
            await self._timed(self._learner().reload())

    async def to_transfer(self) -> None:
        """Ends the learner's turn: generators may be sent weights, and start. Raises LearnerDied."""
        if self.learners:
            await self._leave()

    @traced("learner leaves")
    async def _leave(self) -> None:
        await self._timed(self._learner().offload())
        living = {one.name for one in self._generators.present()}
        self._asleep = {name: one for name, one in self._asleep.items() if name in living}
        await self._timed(self._all((one, one.wake("weights")) for one in self._asleep.values()))
        self.learners = False
        self._generators.engine_starts.release()

    async def to_generators(self) -> None:
        """Begins the generators' turn, or makes it whole after a transfer. Raises LearnerDied."""
        await self.to_transfer()
        await self._timed(self._all((one, one.wake("kv_cache")) for one in self._asleep.values()))
        self._asleep.clear()

    def seconds(self) -> dict[str, float]:
        """Returns the metric of the time that changes took since the last call; nothing where there are none."""
        took, self._seconds = self._seconds, 0.0
        return {"time/turns": took} if self._colocated else {}

    async def _timed(self, work: Coroutine[Any, Any, None]) -> None:
        began = time.perf_counter()
        await work
        self._seconds += time.perf_counter() - began

    async def _all(self, calls: Iterable[tuple[CanSleep, Coroutine[Any, Any, None]]]) -> None:
        """Waits for one call a generator. One that dies is out of service, and replaced."""
        names, work = zip(*pairs, strict=True) if (pairs := [(one.name, call) for one, call in calls]) else ((), ())
        for name, answer in zip(names, await asyncio.gather(*work, return_exceptions=True), strict=True):
            if isinstance(answer, MemberDied) and not isinstance(answer, LearnerDied):
                self._asleep.pop(name, None)
                self._generators.lost(answer)
            elif isinstance(answer, BaseException):
                raise answer
