"""Pools: many generators, or many verifiers or reward models, behind one callable.

Calls made in the same turn of the event loop travel together: a pool queues them per member and sends one message a
member, so a whole iteration submitted at once is one batch for each engine, scheduled the same way every time. Members are
chosen by the least load (requests queued and under way), ties by their order: which member serves what is deterministic
as long as all is submitted before anything finishes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from actors.inference import Completion, Request
from actors.verifier import MAX_SESSIONS, ScoreRequest
from envs.types import Observation, Status, Verdict


class MemberDied(RuntimeError):
    """A member's process is gone, or it did not answer in time: what it was asked is asked of another."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(name, detail)
        self.name, self.detail = name, detail

    def __str__(self) -> str:
        return f"{self.name} is gone: {self.detail}"


class PoolEmpty(RuntimeError):
    """Every member died. The message has the last cause."""


class GeneratorMember(Protocol):
    name: str

    def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """Completions as they finish. Raises MemberDied."""
        ...


class VerifierMember(Protocol):
    name: str

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        """One answer a request. Raises MemberDied."""
        ...


M = TypeVar("M", bound=GeneratorMember | VerifierMember)
G = TypeVar("G", bound=GeneratorMember)
V = TypeVar("V", bound=VerifierMember)


@dataclass
class _Seat(Generic[M]):
    """A member and what is on its desk."""

    member: M
    load: int = 0
    queue: list = field(default_factory=list)
    busy: bool = False


class _Pool(Generic[M]):
    """Routing, shared by both pools."""

    def __init__(self, members: Sequence[M], on_event: Callable[[str], None]) -> None:
        self._seats: dict[str, _Seat[M]] = {m.name: _Seat(m) for m in members}
        self._draining: set[str] = set()
        self._on_event = on_event
        self._tasks: set[asyncio.Task[None]] = set()
        self.dead: list[str] = []  # members that died and were not replaced

    @property
    def members(self) -> list[M]:
        return [seat.member for seat in self._seats.values()]

    def add(self, member: M) -> None:
        """It gets work from now on."""
        self._seats[member.name] = _Seat(member)
        self._draining.discard(member.name)

    async def drain(self, name: str) -> M:
        """No new work for it; returns it once what it has is done."""
        self._draining.add(name)
        seat = self._seats[name]
        while seat.load and self._seats.get(name) is seat:
            if self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            else:  # queued, and sent within a moment
                await asyncio.sleep(0.001)
        if self._seats.get(name) is seat:
            del self._seats[name]
        self._draining.discard(name)
        return seat.member

    def _choose(self) -> _Seat[M]:
        able = [s for n, s in self._seats.items() if n not in self._draining]
        if not able:
            raise PoolEmpty(f"no member is left: {', '.join(self.dead) or 'all were drained'}")
        return min(able, key=lambda s: s.load)

    def bury(self, error: MemberDied) -> None:
        """The member is gone: no more work for it. Its name stays in `dead` until somebody replaces it."""
        if self._seats.pop(error.name, None) is not None:
            self.dead.append(error.name)
            self._on_event(f"{error}; its work goes to the other {len(self._seats)}")

    def _bury(self, seat: _Seat[M], error: MemberDied) -> None:
        if self._seats.get(seat.member.name) is seat:  # else buried already, or replaced under the same name
            self.bury(error)

    def _start(self, coroutine) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)


class GeneratorPool(_Pool[G], Generic[G]):
    """`generate` is a rollout's GenerateFn."""

    def __init__(self, members: Sequence[G], on_event: Callable[[str], None]) -> None:
        super().__init__(members, on_event)
        self._asked: set[str] = set()  # ids under way

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """In the order of the requests. All of one call go to one member: the responses of a prompt share its prefix.

        Raises ValueError for an id that is under way: its completion could not be told from the other's.
        """
        loop = asyncio.get_running_loop()
        ids: set[str] = set()
        for request in requests:
            if request.id in self._asked or request.id in ids:
                raise ValueError(f"the request id {request.id} is in use twice: ids are unique while under way")
            ids.add(request.id)
        waiting = [(request, loop.create_future()) for request in requests]
        self._asked |= ids
        try:
            self._enqueue(waiting)
            return list(await asyncio.gather(*(future for _, future in waiting)))
        finally:
            self._asked -= ids

    def _enqueue(self, waiting: list[tuple[Request, asyncio.Future[Completion]]]) -> None:
        seat = self._choose()
        if not seat.queue:
            asyncio.get_running_loop().call_soon(lambda: self._start(self._send(seat)))
        seat.queue += waiting
        seat.load += len(waiting)

    async def _send(self, seat: _Seat[G]) -> None:
        batch, seat.queue = seat.queue, []
        if not batch:  # the member died between the queueing and this turn: its queue has moved
            return
        futures = {request.id: (request, future) for request, future in batch}
        try:
            async for completions in seat.member.stream([request for request, _ in batch]):
                for completion in completions:
                    _, future = futures.pop(completion.id)
                    seat.load -= 1
                    if not future.done():
                        future.set_result(completion)
            if futures:
                raise RuntimeError(
                    f"{seat.member.name} ended its stream without {len(futures)} of {len(batch)} responses"
                )
        except MemberDied as error:
            self._bury(seat, error)
            queue, seat.queue = seat.queue, []  # taken, not copied: another stream of this member may die as well
            rest = [pair for pair in [*futures.values(), *queue] if not pair[1].done()]
            try:
                if rest:
                    self._enqueue(rest)
            except PoolEmpty as empty:
                _fail(rest, empty)
        except Exception as error:  # noqa: BLE001 - handed to whoever asked
            seat.load -= len(futures)
            _fail(futures.values(), error)


class VerifierPool(_Pool[V], Generic[V]):
    """`judge` is a rollout's ScoreFn. A session stays with its verifier while that lives; another would replay it.

    gather_s: how long the first request to a member that is free waits for others to go with.
    """

    def __init__(self, members: Sequence[V], on_event: Callable[[str], None], gather_s: float = 0.0) -> None:
        super().__init__(members, on_event)
        self._home: dict[str, str] = {}  # open session -> member name
        self._gather_s = gather_s

    async def score(self, request: ScoreRequest) -> Observation | Verdict:
        """Never fails for want of a verifier: a trajectory nobody is left to judge has status ERROR, is counted, and is
        left out of its group's baseline; the dead are replaced at the next weight transfer."""
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
        """Nobody will ask for it again: a rollout says so where its trajectory ended without a verdict of the environment's."""
        self._home.pop(session, None)

    def _enqueue(self, waiting: list[tuple[ScoreRequest, asyncio.Future[Observation | Verdict]]]) -> None:
        for pair in waiting:
            home = self._home.get(pair[0].session)
            seat = self._seats[home] if home in self._seats else self._choose()
            if home is None and len(self._home) >= MAX_SESSIONS:
                self._home.pop(next(iter(self._home)))  # the oldest; asked for again, it is replayed
            self._home[pair[0].session] = seat.member.name
            seat.queue.append(pair)
            seat.load += 1
            if not seat.busy:
                seat.busy = True  # one message at a time: what comes meanwhile makes the next batch
                self._soon(lambda s=seat: self._start(self._send(s)))

    def _soon(self, send: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._gather_s, send) if self._gather_s else loop.call_soon(send)

    async def _send(self, seat: _Seat[V]) -> None:
        while seat.queue:
            batch, seat.queue = seat.queue, []
            try:
                answers = await seat.member.score([request for request, _ in batch])
            except MemberDied as error:
                self._bury(seat, error)
                # An answer that nobody waits for any more would give its session a home that nobody releases.
                rest = [pair for pair in [*batch, *seat.queue] if not pair[1].done()]
                try:
                    self._enqueue(rest)
                except PoolEmpty as empty:
                    # A verdict is never lost with its verifier: the trajectory is counted as an error.
                    for _, future in rest:
                        future.set_result(Verdict(0.0, status=Status.ERROR, detail=str(empty)))
                return
            except Exception as error:  # noqa: BLE001 - handed to whoever asked
                seat.load -= len(batch)
                _fail(batch, error)
                continue
            seat.load -= len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        seat.busy = False


def _fail(pairs, error: Exception) -> None:
    for _, future in pairs:
        if not future.done():
            future.set_exception(error)
