"""Gives an inference engine a policy version: a generator serves the current version or nothing.

    STALE --receive_weights(version >= required)--> SERVING --require(a newer version) or a failed transfer--> STALE
    STALE --mark_current(the version it was built with)--> SERVING
    any   --forget, for another run's weights--> STALE, and versions start over
    any   --sleep--> as it was, but serving nothing --wake, weights and KV cache--> as it was

A generator that was just made or replaced is STALE: it has some weights, but they have not been confirmed as the current
ones. What is asked while weights are on their way, or after a transfer that failed, waits for them: rollouts go on beside the
learner, so that a turn may begin at any moment. Thread-safety is the engine's; the methods here belong to one event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from actors.inference import Aborted, Completion, EngineStats, InferenceEngine, Memory, Request
from learner.weights.protocol import Rendezvous, WeightManifest


class StaleGenerator(RuntimeError):
    """Refuses to serve without the current weights. `loaded` is None when the version held is unknown."""

    def __init__(self, name: str, loaded: int | None, required: int) -> None:
        super().__init__(name, loaded, required)
        self.name, self.loaded, self.required = name, loaded, required

    def __str__(self) -> str:
        has = "weights nobody has called current" if self.loaded is None else f"version {self.loaded}"
        return f"{self.name} has {has}, but version {self.required} is the current one: it serves nothing until then"


class GeneratorAsleep(RuntimeError):
    """Refuses to work while the learner has the GPU: a request that comes then is a defect of the run's order."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} sleeps while the learner has its GPU: it was asked for something before it was awake again"


@dataclass(frozen=True, slots=True)
class GeneratorStats:
    """Reports a generator's state beside its engine's counters. version: of the weights held; None until known."""

    name: str
    version: int | None
    required: int
    stale: bool
    engine: EngineStats


class Generator:
    """Wraps `engine`; `required` is the current version, which it must hold before it serves."""

    def __init__(self, engine: InferenceEngine, required: int = 0, name: str = "generator") -> None:
        self.name = name
        self.required = required
        self._engine = engine
        self._version: int | None = None
        self._asleep: set[Memory] = set()
        self._awaited = False  # whether weights are on their way, or are sent again after a transfer that failed
        self._changed = asyncio.Event()  # set whenever the two above change
        self._waiting: list[dict[str, Request]] = []  # turns that wait for weights, by id
        self._begun: _Scoring | None = None  # what is scored under the present weights before it is asked for

    @property
    def version(self) -> int | None:
        """Returns the policy version of the weights held; None until known."""
        return self._version

    @property
    def stale(self) -> bool:
        return self._version is None or self._version < self.required

    def require(self, version: int) -> None:
        """Makes `version` the current one; a generator that holds an older one stops serving."""
        self.required = max(self.required, version)

    @property
    def done(self) -> int:
        """Returns a count of what the engine has done: it grows as long as work makes progress."""
        stats = self._engine.stats()
        return stats.steps + stats.responses + stats.updates

    def forget(self) -> None:
        """Starts over with versions of another count: ends what is under way, and serves nothing until its next weights."""
        self._version, self.required, self._begun = None, 0, None
        self._expect(False)
        self._engine.abort()

    def _expect(self, awaited: bool) -> None:
        self._awaited = awaited
        self._changed.set()
        self._changed = asyncio.Event()

    async def _current(self) -> None:
        """Returns once the current weights are there. Raises StaleGenerator where none are on their way, and GeneratorAsleep."""
        if self._asleep:
            raise GeneratorAsleep(self.name)
        while self.stale:
            if not self._awaited:
                raise StaleGenerator(self.name, self._version, self.required)
            # Ended by a transfer, by `forget` or `close`, by the health monitor, which gives up a generator that has turns and gets
            # nothing done for generators.timeout_s, or by Ray, which ends this process with its driver.
            await self._changed.wait()

    async def abort(self, ids: Collection[str]) -> None:
        """Ends responses that nobody waits for any more, by the ids of their requests; what waits for weights is not begun."""
        for turns in self._waiting:
            for name in ids:
                turns.pop(name, None)
        await asyncio.to_thread(self._engine.abort, ids)

    def mark_current(self, version: int) -> None:
        """Confirms that the weights the engine was built with are `version` (0 at the start of a run); else ValueError."""
        built = self._engine.stats().version
        if built != version:
            raise ValueError(f"{self.name} has weights of version {built}, so they cannot be called version {version}")
        self._version = version
        self.require(version)

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """Submits all requests at once and yields completions as they finish, those that finished together in one list.

        Raises StaleGenerator before anything is submitted, ValueError for a request that cannot be served, and, after all others
        were answered, what ended the engine or a request in it.
        """
        turns = {request.id: request for request in requests}
        self._waiting.append(turns)
        try:
            await self._current()
        finally:
            self._waiting = [others for others in self._waiting if others is not turns]
        mailbox = _Mailbox(asyncio.get_running_loop())
        if turns:
            self._engine.submit(list(turns.values()), mailbox.put)
        left, failed = len(turns), None
        while left:
            done = await mailbox.take()
            finished = [item for item in done if isinstance(item, Completion)]
            failed = failed or next((item for item in done if isinstance(item, BaseException)), None)
            left -= len(done)
            if finished:
                yield finished
        if failed is None and len(turns) < len(requests):
            failed = Aborted("it was ended before it began: nobody waits for it")
        if failed is not None:
            raise failed

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns log-probs at temperature 1 of tokens 1.. of each sequence; StaleGenerator without the current weights."""
        await self._current()
        begun, self._begun = self._begun, None
        if begun is not None and begun.sequences == _plain(sequences):
            return await begun.scores
        return await asyncio.to_thread(self._engine.sequence_logprobs, sequences)

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """Joins the weight group; WeightSyncError if its members are not all there after `timeout_s`."""
        await asyncio.to_thread(self._engine.connect_weights, rendezvous, timeout_s)

    async def receive_weights(
        self, manifest: WeightManifest, timeout_s: float, sequences: Sequence[Sequence[int]] = ()
    ) -> int:
        """Loads one version and returns the checksum. STALE while it runs, and afterwards if it fails.

        sequences: what `sequence_logprobs` will be asked about next; it is begun, unless a part of the engine sleeps, while the
        answer is on its way.
        """
        self._version, self._begun = None, None
        self.require(manifest.version)
        self._expect(True)
        self._asleep.discard("weights")  # the engine wakes them
        checksum = await asyncio.to_thread(self._engine.receive_weights, manifest, timeout_s)
        self._version = manifest.version
        self._expect(False)
        if sequences and not self._asleep:
            scores = asyncio.ensure_future(asyncio.to_thread(self._engine.sequence_logprobs, sequences))
            scores.add_done_callback(_heard)
            self._begun = _Scoring(_plain(sequences), scores)
        return checksum

    async def sleep(self) -> None:
        """Frees the GPU, and ends what is under way. Nothing is served until the weights and the KV cache are awake again."""
        self._asleep, self._begun = {"weights", "kv_cache"}, None
        await asyncio.to_thread(self._engine.sleep)

    async def wake(self, memory: Memory) -> None:
        """Takes a part of the GPU's memory again; the version of the weights is what it was."""
        await asyncio.to_thread(self._engine.wake, memory)
        self._asleep.discard(memory)

    def stats(self) -> GeneratorStats:
        return GeneratorStats(self.name, self._version, self.required, self.stale, self._engine.stats())

    def close(self) -> None:
        """Stops serving and frees the engine."""
        self._version = None
        self._expect(False)
        self._engine.close()


class _Scoring(NamedTuple):
    """Holds log-probs that are under way, and of what."""

    sequences: list[tuple[int, ...]]
    scores: asyncio.Future[list[list[float]]]


def _plain(sequences: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in sequences]


def _heard(scores: asyncio.Future[list[list[float]]]) -> None:
    """Takes note of an error that nobody may ask for: who asks raises it all the same."""
    if not scores.cancelled():
        scores.exception()


class _Mailbox:
    """Carries items from the engine's thread to the event loop, which it wakes once for all that came since it last looked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._items: list[Completion | BaseException] = []
        self._arrived = asyncio.Event()

    def put(self, item: Completion | BaseException) -> None:
        with self._lock:
            self._items.append(item)
            first = len(self._items) == 1
        if first and not self._loop.is_closed():  # closed: the reader is gone, and the engine must not die of that
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> list[Completion | BaseException]:
        """Returns everything that has arrived, at least one item."""
        await self._arrived.wait()  # ended by a completion or by the engine's death, which answers every request
        with self._lock:
            items, self._items = self._items, []
            self._arrived.clear()
        return items
