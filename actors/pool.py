"""Routes calls to many generators, verifiers or reward models behind one callable, and takes dead ones out of service.

Calls made in the same turn of the event loop travel together: a pool queues them per member and sends one message a
member, so a whole iteration submitted at once is one batch for each engine, scheduled the same way every time. Members are
chosen by the least load (requests queued and under way), ties by their order: which member serves what is deterministic
as long as all is submitted before anything finishes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from actors.inference import Completion, Request
from actors.verifier import ScoreRequest
from actors.verifier_worker import MAX_SESSIONS
from envs.types import Observation, Status, Verdict


class MemberDied(RuntimeError):
    """Says that a member's process is gone, or did not answer in time: its work goes to another."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(name, detail)
        self.name, self.detail = name, detail

    def __str__(self) -> str:
        return f"{self.name} is gone: {self.detail}"


class PoolEmpty(RuntimeError):
    """Says that every member died. The message names them."""


class Member(Protocol):
    """Has a name that is unique in its pool."""

    name: str


class GeneratorMember(Member, Protocol):
    """Samples responses: one generator of a pool."""

    def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """Yields completions as they finish. Raises MemberDied."""
        ...


class VerifierMember(Member, Protocol):
    """Scores responses: one verifier or reward model of a pool."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        """Returns one answer a request. Raises MemberDied."""
        ...


M = TypeVar("M", bound=Member)
G = TypeVar("G", bound=GeneratorMember)
V = TypeVar("V", bound=VerifierMember)
Q = TypeVar("Q")  # a request
R = TypeVar("R")  # its answer


@dataclass
class MemberQueue(Generic[M, Q, R]):
    """Holds a member and its work: what waits to be sent, and how much that is together with what is under way."""

    member: M
    load: int = 0
    waiting: list[tuple[Q, asyncio.Future[R]]] = field(default_factory=list[tuple[Q, "asyncio.Future[R]"]])
    sending: bool = False  # a verifier is sent one message at a time


class MemberPool(Generic[M, Q, R]):
    """Chooses members by load; what both pools share."""

    def __init__(self, members: Sequence[M], on_event: Callable[[str], None]) -> None:
        self._queues: dict[str, MemberQueue[M, Q, R]] = {m.name: MemberQueue(m) for m in members}
        self._draining: set[str] = set()
        self._on_event = on_event
        self._tasks: set[asyncio.Task[None]] = set()
        self.dead: list[str] = []  # members that died and were not replaced

    @property
    def members(self) -> list[M]:
        return [queue.member for queue in self._queues.values()]

    def add(self, member: M) -> None:
        """Gives the member work from now on."""
        self._queues[member.name] = MemberQueue(member)
        self._draining.discard(member.name)

    async def drain(self, name: str) -> M:
        """Gives the member no new work; returns it once what it has is done."""
        self._draining.add(name)
        queue = self._queues[name]
        while queue.load and self._queues.get(name) is queue:
            if self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            else:  # queued, and sent within a moment
                await asyncio.sleep(0.001)
        if self._queues.get(name) is queue:
            del self._queues[name]
        self._draining.discard(name)
        return queue.member

    def _choose(self) -> MemberQueue[M, Q, R]:
        able = [queue for name, queue in self._queues.items() if name not in self._draining]
        if not able:
            raise PoolEmpty(f"no member is left: {', '.join(self.dead) or 'all were drained'}")
        return min(able, key=lambda queue: queue.load)

    def bury(self, error: MemberDied) -> None:
        """Takes a dead member out of service. Its name stays in `dead` until it is replaced."""
        if self._queues.pop(error.name, None) is not None:
            self.dead.append(error.name)
            self._on_event(f"{error}; its work goes to the other {len(self._queues)}")

    def _bury(self, queue: MemberQueue[M, Q, R], error: MemberDied) -> None:
        if self._queues.get(queue.member.name) is queue:  # else buried already, or replaced under the same name
            self.bury(error)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)


class GeneratorPool(MemberPool[G, Request, Completion], Generic[G]):
    """Samples responses on many generators; `generate` is a rollout's GenerateFn."""

    def __init__(self, members: Sequence[G], on_event: Callable[[str], None]) -> None:
        super().__init__(members, on_event)
        self._ids: set[str] = set()  # of requests under way

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Returns completions in the order of the requests. All of one call go to one member: they share the prompt's prefix.

        Raises ValueError for an id that is under way: the two completions could not be told apart.
        """
        loop = asyncio.get_running_loop()
        ids: set[str] = set()
        for request in requests:
            if request.id in self._ids or request.id in ids:
                raise ValueError(f"the request id {request.id} is in use twice: ids are unique while under way")
            ids.add(request.id)
        waiting: list[tuple[Request, asyncio.Future[Completion]]] = [(r, loop.create_future()) for r in requests]
        self._ids |= ids
        try:
            self._enqueue(waiting)
            return list(await asyncio.gather(*(future for _, future in waiting)))
        finally:
            self._ids -= ids

    def _enqueue(self, waiting: list[tuple[Request, asyncio.Future[Completion]]]) -> None:
        queue = self._choose()
        if not queue.waiting:
            asyncio.get_running_loop().call_soon(lambda: self._start(self._send(queue)))
        queue.waiting += waiting
        queue.load += len(waiting)

    async def _send(self, queue: MemberQueue[G, Request, Completion]) -> None:
        batch, queue.waiting = queue.waiting, []
        if not batch:  # the member died between the queueing and this turn: its queue has moved
            return
        futures = {request.id: (request, future) for request, future in batch}
        try:
            async for completions in queue.member.stream([request for request, _ in batch]):
                for completion in completions:
                    _, future = futures.pop(completion.id)
                    queue.load -= 1
                    if not future.done():
                        future.set_result(completion)
            if futures:
                raise RuntimeError(
                    f"{queue.member.name} ended its stream without {len(futures)} of {len(batch)} responses"
                )
        except MemberDied as error:
            self._bury(queue, error)
            late, queue.waiting = queue.waiting, []  # taken, not copied: another stream of this member may die as well
            rest = [pair for pair in [*futures.values(), *late] if not pair[1].done()]
            try:
                if rest:
                    self._enqueue(rest)
            except PoolEmpty as empty:
                _fail(rest, empty)
        except Exception as error:  # noqa: BLE001 - handed to the callers
            queue.load -= len(futures)
            _fail(futures.values(), error)


class VerifierPool(MemberPool[V, ScoreRequest, Observation | Verdict], Generic[V]):
    """Scores responses on many verifiers; `score` is a rollout's ScoreFn.

    A session stays with its verifier while that lives; another would replay it.

    gather_s: how long the first request to an idle member waits for others that travel in the same message.
    """

    def __init__(self, members: Sequence[V], on_event: Callable[[str], None], gather_s: float = 0.0) -> None:
        super().__init__(members, on_event)
        self._home: dict[str, str] = {}  # open session -> member name
        self._gather_s = gather_s

    async def score(self, request: ScoreRequest) -> Observation | Verdict:
        """Returns the answer of one member. Never fails for want of one: without any, the verdict has status ERROR, is counted,
        and is left out of its group's baseline; the dead are replaced at the next weight transfer."""
        future: asyncio.Future[Observation | Verdict] = asyncio.get_running_loop().create_future()
        try:
            self._enqueue([(request, future)])
        except PoolEmpty as empty:
            return Verdict(0.0, status=Status.ERROR, detail=str(empty))
        answer = await future
        if isinstance(answer, Verdict):
            self.release(request.session)
        return answer

    def release(self, session: str) -> None:
        """Forgets a session: a rollout calls it where its trajectory ended without a verdict of the environment's."""
        self._home.pop(session, None)

    def _enqueue(self, waiting: list[tuple[ScoreRequest, asyncio.Future[Observation | Verdict]]]) -> None:
        for pair in waiting:
            home = self._home.get(pair[0].session)
            queue = self._queues[home] if home in self._queues else self._choose()
            if home is None and len(self._home) >= MAX_SESSIONS:
                self._home.pop(next(iter(self._home)))  # the oldest; asked for again, it is replayed
            self._home[pair[0].session] = queue.member.name
            queue.waiting.append(pair)
            queue.load += 1
            if not queue.sending:
                queue.sending = True  # one message at a time: what comes meanwhile makes the next batch
                self._soon(lambda q=queue: self._start(self._send(q)))

    def _soon(self, send: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._gather_s, send) if self._gather_s else loop.call_soon(send)

    async def _send(self, queue: MemberQueue[V, ScoreRequest, Observation | Verdict]) -> None:
        while queue.waiting:
            batch, queue.waiting = queue.waiting, []
            try:
                answers = await queue.member.score([request for request, _ in batch])
            except MemberDied as error:
                self._bury(queue, error)
                # A cancelled request would give its session a home that is never released.
                rest = [pair for pair in [*batch, *queue.waiting] if not pair[1].done()]
                try:
                    self._enqueue(rest)
                except PoolEmpty as empty:
                    # A verdict is never lost with its verifier: the trajectory is counted as an error.
                    for _, future in rest:
                        future.set_result(Verdict(0.0, status=Status.ERROR, detail=str(empty)))
                return
            except Exception as error:  # noqa: BLE001 - handed to the callers
                queue.load -= len(batch)
                _fail(batch, error)
                continue
            queue.load -= len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        queue.sending = False


def _fail(pairs: Iterable[tuple[Any, asyncio.Future[Any]]], error: Exception) -> None:
    for _, future in pairs:
        if not future.done():
            future.set_exception(error)
