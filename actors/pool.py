"""Routes calls to many generators, verifiers or reward models behind one callable; the work of a dead one goes to another.

Calls made in the same turn of the event loop travel together: a pool queues them per member and sends one message a
member, so a whole iteration submitted at once is one batch for each engine, scheduled the same way every time. Members are
chosen by the least load (requests queued and under way), ties by their order: which member serves what is deterministic
as long as all is submitted before anything finishes.

Where every member is dead, work waits for the next that is added: replacing them is the cluster's matter, and so is giving up
(`give_up`). A request that several members died of is not given to yet another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from actors.health.lifeline import MemberDied
from actors.inference import Aborted, Completion, PoolEmpty, Request, ResponseFailed
from actors.verifier import ScoreRequest
from actors.verifier_worker import MAX_SESSIONS
from envs.types import Observation, Status, Verdict


class Member(Protocol):
    """Has a name that is unique in its pool."""

    name: str


class GeneratorMember(Member, Protocol):
    """Samples responses: one generator of a pool."""

    def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """Yields completions as they finish. Raises MemberDied."""
        ...

    async def abort(self, ids: Collection[str]) -> None:
        """Ends responses that nobody waits for any more. Raises MemberDied."""
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


MAX_DEATHS = 5  # times that a request is lost, with its member or by itself: then it is not given to yet another
MAX_ENDED = (
    10_000  # names of ended sessions that wait for a member's next message; beyond it, it finds the oldest by itself
)


@dataclass(eq=False)
class Work(Generic[Q, R]):
    """Holds a request, the future of its answer, and how often it was lost."""

    request: Q
    future: asyncio.Future[R]
    deaths: int = 0


@dataclass
class MemberQueue(Generic[M, Q, R]):
    """Holds a member and its work: what waits to be sent, and how much that is together with what is under way."""

    member: M
    load: int = 0
    waiting: list[Work[Q, R]] = field(default_factory=list["Work[Q, R]"])
    sending: bool = False  # a verifier is sent one message at a time
    ended: deque[str] = field(
        default_factory=lambda: deque[str](maxlen=MAX_ENDED)
    )  # sessions that a verifier can close


class MemberPool(Generic[M, Q, R]):
    """Chooses members by load; what both pools share.

    on_death: is told of every member that a call found dead; what it does with it is its own matter (`bury` was called before).
    """

    def __init__(self, members: Sequence[M], on_death: Callable[[MemberDied], None]) -> None:
        self._queues: dict[str, MemberQueue[M, Q, R]] = {m.name: MemberQueue(m) for m in members}
        self._draining: set[str] = set()
        self._on_death = on_death
        self._tasks: set[asyncio.Task[None]] = set()
        self._homeless: list[Work[Q, R]] = []  # what waits for a member
        self._over: Exception | None = None  # why none will come

    @property
    def members(self) -> list[M]:
        return [queue.member for queue in self._queues.values()]

    @property
    def starved(self) -> bool:
        """Returns whether work waits and no member is there to do it."""
        return bool(self._homeless)

    def add(self, member: M) -> None:
        """Gives the member work from now on, first of all what waits for one."""
        self._queues[member.name] = MemberQueue(member)
        self._draining.discard(member.name)
        self._over = None
        homeless, self._homeless = self._homeless, []
        self._place([work for work in homeless if not work.future.done()])

    def raise_if_over(self) -> None:
        """Raises what was given to `give_up`, until a member is added."""
        if self._over is not None:
            raise self._over

    def give_up(self, error: Exception) -> None:
        """Fails everything that waits for a member, and what is asked until one is added. error: PoolEmpty, or what says more."""
        self._over = error
        homeless, self._homeless = self._homeless, []
        _fail(homeless, error)

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

    def _choose(self) -> MemberQueue[M, Q, R] | None:
        """Returns the member with the least load; None where there is none."""
        able = [queue for name, queue in self._queues.items() if name not in self._draining]
        return min(able, key=lambda queue: queue.load, default=None)

    def _place(self, works: Sequence[Work[Q, R]]) -> None:
        """Gives work to members, or lets it wait for one. Raises PoolEmpty where none will come."""
        raise NotImplementedError

    def _wait(self, works: Sequence[Work[Q, R]]) -> None:
        """Lets work wait for a member. Raises what was given to `give_up`."""
        self.raise_if_over()
        self._homeless += works

    def bury(self, death: MemberDied) -> bool:
        """Takes a dead member out of service, and gives what it had not begun to others. Returns False where it was none."""
        queue = self._queues.pop(death.name, None)
        if queue is None:
            return False
        late, queue.waiting = queue.waiting, []
        self._again(late, death, counts=False)
        return True

    def _died(self, queue: MemberQueue[M, Q, R], works: Sequence[Work[Q, R]], death: MemberDied) -> None:
        """Gives the work that a member died with to others."""
        if self._queues.get(queue.member.name) is queue:  # else buried already, or replaced under the same name
            self.bury(death)
            self._on_death(death)
        self._again(works, death, counts=True)

    def _again(self, works: Sequence[Work[Q, R]], loss: Exception, *, counts: bool) -> None:
        """Gives work that was lost to another member; `counts`: it was under way."""
        left = [work for work in works if not work.future.done()]
        for work in left:
            work.deaths += counts
            if work.deaths >= MAX_DEATHS:
                self._surrender(work, loss)
        left = [work for work in left if not work.future.done()]
        try:
            self._place(left)
        except Exception as over:  # noqa: BLE001 - what `give_up` was given
            _fail(left, over)

    def _surrender(self, work: Work[Q, R], loss: Exception) -> None:
        """Answers a request that was lost too often."""
        _fail([work], PoolEmpty(f"one and the same request was lost {MAX_DEATHS} times, the last time because {loss}"))

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)


class GeneratorPool(MemberPool[G, Request, Completion], Generic[G]):
    """Samples responses on many generators; `begin` is a rollout's BeginFn, `generate` a GenerateFn."""

    def __init__(self, members: Sequence[G], on_death: Callable[[MemberDied], None]) -> None:
        super().__init__(members, on_death)
        self._ids: set[str] = set()  # of requests under way
        self.begun, self.aborted = 0, 0  # requests so far: all, and those that nobody waited for to the end

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Returns completions in the order of the requests. Raises as `begin` does."""
        return list(await asyncio.gather(*self.begin(requests)))

    def begin(self, requests: Sequence[Request]) -> list[asyncio.Future[Completion]]:
        """Returns a future for each request, in order. All of one call go to one member: they share the prompt's prefix.

        Raises ValueError for an id that is under way: the two completions could not be told apart. Raises PoolEmpty where no
        member is left and none will come. A future that is cancelled ends its response at the generator too.
        """
        loop = asyncio.get_running_loop()
        ids: set[str] = set()
        for request in requests:
            if request.id in self._ids or request.id in ids:
                raise ValueError(f"the request id {request.id} is in use twice: ids are unique while under way")
            ids.add(request.id)
        works = [Work[Request, Completion](request, loop.create_future()) for request in requests]
        self._place(works)
        self._ids |= ids
        self.begun += len(works)
        for work in works:
            work.future.add_done_callback(lambda _, name=work.request.id: self._ids.discard(name))
        return [work.future for work in works]

    def _place(self, works: Sequence[Work[Request, Completion]]) -> None:
        if not works:
            return None
        queue = self._choose()
        if queue is None:
            return self._wait(works)
        if not queue.waiting:
            # Its turn comes after those that are to run already, and before those that the callers begin: these wait for answers.
            self._start(self._send(queue))
        queue.waiting += works
        queue.load += len(works)
        return None

    async def _send(self, queue: MemberQueue[G, Request, Completion]) -> None:
        batch, queue.waiting = queue.waiting, []
        left = {work.request.id: work for work in batch if not work.future.cancelled()}
        queue.load -= len(batch) - len(left)
        if not left:  # all were cancelled, or the member died between the queueing and this turn: its queue has moved
            return
        cancelled, count = self._abort_cancelled(queue.member, left), len(left)
        try:
            async for completions in queue.member.stream([work.request for work in left.values()]):
                for completion in completions:
                    work = left.pop(completion.id)
                    queue.load -= 1
                    if not work.future.done():
                        work.future.set_result(completion)
            if left:
                raise RuntimeError(f"{queue.member.name} ended its stream without {len(left)} of {count} responses")
        except MemberDied as death:
            self._died(queue, list(left.values()), death)
        except (ResponseFailed, Aborted) as error:  # what was cancelled is done with, and is not asked again
            queue.load -= len(left)
            self._again(list(left.values()), error, counts=True)
        except Exception as error:  # noqa: BLE001 - handed to the callers
            queue.load -= len(left)
            _fail(left.values(), error)
        finally:
            for work in left.values():  # they are elsewhere now
                work.future.remove_done_callback(cancelled)

    def _abort_cancelled(
        self, member: G, left: Mapping[str, Work[Request, Completion]]
    ) -> Callable[[asyncio.Future[Completion]], None]:
        """Ends at the member what is cancelled of `left`, from now on; returns the callback on each of these futures."""
        waiting = False

        async def abort() -> None:
            nonlocal waiting
            waiting = False
            names = [name for name, work in left.items() if work.future.cancelled()]
            if not names:
                return
            self.aborted += len(names)
            with contextlib.suppress(MemberDied):  # the stream of these responses raises it too
                await member.abort(names)

        def on_end(future: asyncio.Future[Completion]) -> None:
            nonlocal waiting
            if future.cancelled() and not waiting:  # one message for all that are cancelled in this turn of the loop
                waiting = True
                asyncio.get_running_loop().call_soon(lambda: self._start(abort()))

        for work in left.values():
            work.future.add_done_callback(on_end)
        return on_end


class VerifierPool(MemberPool[V, ScoreRequest, Observation | Verdict], Generic[V]):
    """Scores responses on many verifiers; `score` is a rollout's ScoreFn.

    A session stays with its verifier while that lives; another would replay it.

    gather_s: how long the first request to an idle member waits for others that travel in the same message.
    """

    def __init__(self, members: Sequence[V], on_death: Callable[[MemberDied], None], gather_s: float = 0.0) -> None:
        super().__init__(members, on_death)
        self._home: dict[str, str] = {}  # open session -> member name
        self._gather_s = gather_s

    async def score(self, request: ScoreRequest) -> Observation | Verdict:
        """Returns the answer of one member; waits for a replacement where all are dead. Raises PoolEmpty where none will come: a
        response that nobody judged is never given a verdict."""
        work = Work[ScoreRequest, Observation | Verdict](request, asyncio.get_running_loop().create_future())
        self._place([work])
        answer = await work.future
        if isinstance(answer, Verdict):
            self._home.pop(request.session, None)  # the verifier has closed it by itself
        return answer

    def release(self, session: str) -> None:
        """Forgets a session, and lets its verifier close it: a rollout calls it for every trajectory that ended."""
        home = self._home.pop(session, None)
        if home in self._queues:
            self._queues[home].ended.append(session)  # it travels with the next message

    def _place(self, works: Sequence[Work[ScoreRequest, Observation | Verdict]]) -> None:
        for index, work in enumerate(works):
            session = work.request.session
            home = self._home.get(session)
            queue = self._queues[home] if home in self._queues else self._choose()
            if queue is None:
                return self._wait(works[index:])
            if home is None and len(self._home) >= MAX_SESSIONS:
                self._home.pop(next(iter(self._home)))  # the oldest; asked for again, it is replayed
            self._home[session] = queue.member.name
            queue.waiting.append(work)
            queue.load += 1
            if not queue.sending:
                queue.sending = True  # one message at a time: what comes meanwhile makes the next batch
                self._soon(lambda q=queue: self._start(self._send(q)))
        return None

    def _surrender(self, work: Work[ScoreRequest, Observation | Verdict], loss: Exception) -> None:
        """Costs the response that every verifier dies of its verdict: it is counted as an error, and left out of its group."""
        detail = f"{MAX_DEATHS} verifiers died while they judged it, the last time because {loss}"
        work.future.set_result(Verdict(0.0, status=Status.ERROR, detail=detail))

    def _soon(self, send: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._gather_s, send) if self._gather_s else loop.call_soon(send)

    async def _send(self, queue: MemberQueue[V, ScoreRequest, Observation | Verdict]) -> None:
        while queue.waiting:
            given_up = [work for work in queue.waiting if work.future.done()]  # cancelled: their sessions stay closed
            queue.load -= len(given_up)
            batch, queue.waiting = [work for work in queue.waiting if not work.future.done()], []
            if not batch:
                break
            requests = [work.request for work in batch]
            requests[0] = replace(requests[0], ended=(*requests[0].ended, *queue.ended))
            queue.ended.clear()
            try:
                answers = await queue.member.score(requests)
            except MemberDied as death:
                return self._died(queue, batch, death)
            except Exception as error:  # noqa: BLE001 - handed to the callers
                queue.load -= len(batch)
                _fail(batch, error)
                continue
            queue.load -= len(batch)
            for work, answer in zip(batch, answers, strict=True):
                if not work.future.done():
                    work.future.set_result(answer)
        queue.sending = False
        return None


def _fail(works: Iterable[Work[Any, Any]], error: Exception) -> None:
    for work in works:
        if not work.future.done():
            work.future.set_exception(error)
