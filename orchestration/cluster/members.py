"""Keeps the generators and scorers of a run in number: follows them, replaces the dead, adds and drains.

Everything here happens beside the run, which goes on with the members that are left. A replacement takes the dead one's slot, where
its resources are; a generator joins with the next weight transfer, or at once where none is left to sample.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from actors.handles import RemoteGenerator, RemoteLearner, RemoteRewardModel, RemoteVerifier
from actors.health.lifeline import MemberDied
from actors.health.monitor import HealthMonitor
from actors.health.state import MemberState
from actors.inference import PoolEmpty
from actors.pool import GeneratorPool, MemberPool, VerifierPool
from orchestration.cluster.actor_makers import ActorMakers, AnyMember
from orchestration.cluster.actor_slots import ActorSlots
from orchestration.cluster.dumps import Member
from orchestration.cluster.placement import generator_slot
from orchestration.errors import ConfigError, IsentropeError, PlacementError

ATTEMPTS = 3  # to start the last member of a kind; while others are left, attempts go on
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0  # between them
DRAIN_S = 60.0  # for a generator that leaves to end what it has; the rest goes to others

Report = Callable[[str], None]


class Members:
    """Holds the generators, verifiers, reward models and judges of a run.

    report      gets a sentence about everything that happens to them
    fetch       asks for a weight transfer now, since generators wait to join and none is left to sample
    """

    def __init__(self, slots: ActorSlots, report: Report, fetch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._slots, self._report, self._fetch = slots, report, fetch
        self.makers: ActorMakers  # of the present run
        self.learner: RemoteLearner
        self.generators: GeneratorPool[RemoteGenerator]
        self.verifiers: VerifierPool[RemoteVerifier]
        # Empty unless the reward has such a term:
        self.reward_models: VerifierPool[RemoteRewardModel]
        self.judges: GeneratorPool[RemoteGenerator]
        self.monitor = HealthMonitor(self._on_dead)
        self.joining: dict[str, RemoteGenerator] = {}  # they answer, and lack the current weights
        self.replaced = 0  # actors so far
        self._wanted: set[int] = set()  # slots of generators
        self._scorers: dict[str, set[str]] = {}  # the slots of every other kind
        self._failing: dict[str, Exception] = {}  # slot -> why it could not be filled in ATTEMPTS attempts
        self._turns: dict[str, asyncio.Lock] = {}  # one change of a slot at a time
        self.engine_starts = (
            asyncio.Lock()
        )  # held while one starts where they share a GPU, and while the learner has it
        self._came = asyncio.Event()  # a generator joined, or none will
        self._tasks: set[asyncio.Task[None]] = set()

    # --- pools --------------------------------------------------------------------------------------------------------

    def make_pools(
        self,
        generators: Sequence[RemoteGenerator],
        verifiers: Sequence[RemoteVerifier],
        models: Sequence[RemoteRewardModel],
        judges: Sequence[RemoteGenerator],
    ) -> None:
        """Puts the members into pools, new ones: what waited in older pools is nobody's any more."""
        term, found = self.makers.config.rewards.model, self.monitor.report
        self.generators = GeneratorPool(generators, found)
        self.verifiers = VerifierPool(verifiers, found)
        self.reward_models = VerifierPool(models, found, gather_s=0.0 if term is None else term.gather_ms / 1000)
        self.judges = GeneratorPool(judges, found)

    def renew_pools(self) -> None:
        """Puts those in service into new pools."""
        self.make_pools(
            self.generators.members, self.verifiers.members, self.reward_models.members, self.judges.members
        )

    def _pool(self, kind: str) -> MemberPool[Any, Any, Any]:
        return {
            "generator": self.generators,
            "verifier": self.verifiers,
            "reward-model": self.reward_models,
            "judge": self.judges,
        }[kind]

    def watch_all(self) -> None:
        """Follows every member from now on."""
        self._wanted = set(range(len(self.generators.members)))
        for kind in ("generator", "verifier", "reward-model", "judge"):
            self._scorers[kind] = {f"{kind} {i}" for i in range(len(self._pool(kind).members))}
            for member in self._pool(kind).members:
                self.monitor.watch(member, kind, self.makers.limits(kind))
        self._start_monitor()

    def _start_monitor(self) -> None:
        self.monitor.interval_s = min(5.0, max(0.2, self.makers.config.cluster.silent_s / 10))
        self.monitor.start()

    def watch_learner(self, learner: RemoteLearner) -> None:
        """Follows the ranks of a learner group from now on."""
        self.learner = learner
        for rank in learner.ranks:
            self.monitor.watch(rank, "learner rank", self.makers.limits("learner rank"))
        self._start_monitor()

    async def close(self) -> None:
        """Ends what goes on beside the run; the actors themselves stay."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.monitor.stop()

    def states(self) -> list[dict[str, object]]:
        """Returns name, kind, state and, where it is known, the process of every actor."""
        return [
            {
                "name": member.name,
                "kind": kind,
                "state": str(state),
                "node": member.whereabouts and member.whereabouts.node,
                "pid": member.whereabouts and member.whereabouts.pid,
            }
            for member, kind, state in self.monitor.entries()
        ]

    def dumpable(self) -> list[Member]:
        """Returns every actor whose stacks can be asked for."""
        found = [(m, m.whereabouts) for m, _, state in self.monitor.entries() if state is not MemberState.RESTARTING]
        return [Member(m.name, m, at and at.pid, at and at.node) for m, at in found]

    def answering(self) -> list[Any]:
        """Returns the handle of every actor that is not known to be dead or starting."""
        gone = (MemberState.DEAD, MemberState.RESTARTING)
        return [member for member, _, state in self.monitor.entries() if state not in gone]

    def busy(self) -> str:
        """Names the actors that work is under way at: "generator 0, generator 1"."""
        return ", ".join(member.name for member, _, state in self.monitor.entries() if member.busy)

    # --- death and replacement ----------------------------------------------------------------------------------------

    def _on_dead(self, kind: str, member: Any, death: MemberDied) -> None:
        if kind == "learner rank":
            self.learner.give_up(death)  # every call of it, under way or later, raises this
            return
        member.give_up(death)
        self.joining.pop(death.name, None)
        pool = self._pool(kind)
        pool.bury(death)
        left = len(pool.members)
        self._report(f"{death}; its work " + (f"goes to the other {left}" if left else "waits for a replacement"))
        role = self._slots.role_of(death.name)
        if role is not None:
            self._change(kind, role, partial(self._replace, kind, role, death.name))

    async def _replace(self, kind: str, role: str, name: str) -> None:
        """Starts a replacement for a dead member; nothing where it was drained meanwhile."""
        if self._slots.role_of(name) == role:
            self._slots.vacate(name)
            await self._fill(kind, role, name)

    async def _fill(self, kind: str, role: str, former: str | None) -> None:
        """Starts an actor in an empty slot, again and again until one answers or the slot is not wanted any more.

        former: the dead actor that is replaced; None for one more.
        """
        number, name, wait, failed = int(role.split()[-1]), former, FIRST_WAIT_S, 0
        while role in self._roles(kind):
            try:
                async with self._alone(kind):
                    fresh: AnyMember = self.makers.make(kind, number)
                    if name is None:
                        self.monitor.watch(fresh, kind, self.makers.limits(kind), starting=True)
                    else:
                        self.monitor.restart(name, fresh)
                    name = fresh.name
                    await self.makers.admit(fresh)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next attempt may do; the last of a kind raises it
                failed += 1
                if name is not None and self._slots.role_of(name) == role:
                    self._slots.vacate(name)
                    self.monitor.report(MemberDied(name, str(error)), quietly=True)
                if failed >= ATTEMPTS:
                    self._could_not(kind, role, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
            else:
                self._failing.pop(role, None)
                self.replaced += former is not None
                self._enter(kind, role, fresh, "was added" if former is None else "replaces one that is gone")
                return
        self._failing.pop(role, None)
        if name is not None:
            self.monitor.forget(name)
        self._slots.release(role)

    @contextlib.asynccontextmanager
    async def _alone(self, kind: str) -> AsyncGenerator[None]:
        """Lets one engine at a time start where engines share a GPU, and none while the learner has it: each measures how much of
        it is free."""
        if self.makers.one_by_one and kind in ("generator", "judge"):
            async with self.engine_starts:
                yield
        else:
            yield

    def _enter(self, kind: str, role: str, fresh: AnyMember, why: str) -> None:
        """Gives work to a member that answers; a generator first waits for weights."""
        if role not in self._roles(kind):  # drained while it started
            self.monitor.forget(fresh.name)
            self._slots.vacate(fresh.name)
            self._slots.release(role)
        elif kind == "generator" and isinstance(fresh, RemoteGenerator):
            self.joining[fresh.name] = fresh
            self.monitor.started(fresh.name, stale=True)
            self._came.set()
            self._report(f"{fresh.name} {why}, and joins with the next weight transfer")
            if not self.generators.members:
                # Not within the slot's turn: the transfer may wait for the replacement of this very one.
                self._begin(kind, self._fetch_weights())
        else:
            self.monitor.started(fresh.name)
            self._pool(kind).add(fresh)
            self._report(f"{fresh.name} {why}")

    async def _fetch_weights(self) -> None:
        try:
            await self._fetch()
        except Exception as error:  # noqa: BLE001 - raised where a generator is waited for
            self.generators.give_up(error)

    def _roles(self, kind: str) -> set[str]:
        """Returns the slots of a kind that are to be filled."""
        return {f"generator {n}" for n in self._wanted} if kind == "generator" else self._scorers[kind]

    def _could_not(self, kind: str, role: str, error: Exception) -> None:
        """Notes a slot that could not be filled in ATTEMPTS attempts, and says so once."""
        if role not in self._failing:
            self._report(f"{role} could not be started in {ATTEMPTS} attempts, the last time because {_reason(error)}")
        self._failing[role] = error
        self._give_up_on(kind)

    def _give_up_on(self, kind: str) -> None:
        """Ends all waits for a kind of which nobody is left, and no slot can be filled."""
        roles, others = self._roles(kind), self.joining if kind == "generator" else {}
        if self._pool(kind).members or others or not roles or not roles <= self._failing.keys():
            return
        error = self._failing[max(roles)]
        if not isinstance(error, ConfigError):
            error = PoolEmpty(f"no {kind} is left, and none could be started in {ATTEMPTS} attempts: {_reason(error)}")
        self._pool(kind).give_up(error)
        self._came.set()

    # --- weights ------------------------------------------------------------------------------------------------------

    def present(self) -> Sequence[RemoteGenerator]:
        """Returns the generators in service and those that join."""
        return [*self.generators.members, *self.joining.values()]

    async def weight_receivers(self) -> Sequence[RemoteGenerator]:
        """Returns the generators in service and those that join; waits for one where there is none. Raises PoolEmpty."""
        while not (members := self.present()):
            self.generators.raise_if_over()
            self._came.clear()
            await self._came.wait()  # ended by a replacement, or by giving up
        return members

    def lost(self, death: MemberDied) -> None:
        """Takes a generator that a transfer or a comparison broke at out of service."""
        self.monitor.report(death)

    def serve(self, names: Sequence[str], version: int) -> None:
        """Gives work to the generators among `names` that were waiting for weights, and now have them."""
        for name in names:
            if (fresh := self.joining.pop(name, None)) is not None:
                self.monitor.confirm(name)
                self.generators.add(fresh)
                self._report(f"{name} serves from version {version} on")

    # --- number -------------------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> int:
        """Returns how many generators there are to be."""
        return len(self._wanted)

    def scale(self, count: int) -> str:
        """Changes the number of generators, beside the run; returns a sentence about what begins. Raises ConfigError."""
        try:
            self.makers.config.generators.check_count(count)
        except ValueError as error:
            raise ConfigError(f"{error}: nothing was changed") from None
        now = len(self._wanted)
        if not now:
            raise ConfigError(
                "the run is starting its first generators: nothing was changed, ask again when it generates"
            )
        free = (n for n in itertools.count() if n not in self._wanted)
        for number in list(itertools.islice(free, max(0, count - now))):
            self._wanted.add(number)
            self._change("generator", f"generator {number}", partial(self._grow, number))
        # Those that do not serve leave first.
        for number in sorted(self._wanted, key=lambda n: (self._serves(n), -n))[: max(0, now - count)]:
            self._wanted.discard(number)
            self._change("generator", f"generator {number}", partial(self._shrink, number))
        self._give_up_on("generator")
        return f"generators: {now} -> {count}" if count != now else f"there are {now} generators already"

    def _serves(self, number: int) -> bool:
        """Returns whether a slot has a generator that lives."""
        name = self._slots.name_at(f"generator {number}")
        dead = (None, MemberState.DEAD, MemberState.RESTARTING)
        return name is not None and self.monitor.state(name) not in dead

    async def _grow(self, number: int) -> None:
        """Starts one more generator, as soon as there is room for it."""
        slot, said = generator_slot(self.makers.config, number), False
        if self._slots.name_at(slot.role) is not None:  # it was to leave, and is wanted again
            return
        while number in self._wanted:
            try:
                await self._slots.extend(slot, self.makers.config.cluster.start_timeout_s)
                break
            except PlacementError as error:
                if not said:
                    self._report(f"{slot.role} waits for room: {error}")
                said = True
        await self._fill("generator", slot.role, None)

    async def _shrink(self, number: int) -> None:
        """Ends a generator after what it has under way, or hands that over."""
        name = self._slots.name_at(f"generator {number}")
        if name is None or number in self._wanted or not self._serves(number):
            return  # nobody is there, or who starts one sees that none is wanted; or it is wanted again
        member = self.joining.pop(name, None)
        if member is None:
            try:
                member = await asyncio.wait_for(self.generators.drain(name), DRAIN_S)
            except TimeoutError:
                member = next((m for m in self.generators.members if m.name == name), None)
        self.monitor.forget(name)
        leaving = MemberDied(name, "it was drained")
        self.generators.bury(leaving)
        if member is not None:  # else it died meanwhile
            member.give_up(leaving)  # what is still under way goes to others
        self._slots.release(self._slots.vacate(name).role)
        self._report(f"{name} was drained")
        self._give_up_on("generator")

    def _change(self, kind: str, role: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begins a change of a slot, after those of the same slot that were begun before."""

        async def in_turn() -> None:
            async with self._turns.setdefault(role, asyncio.Lock()):
                await work()

        self._begin(kind, in_turn())

    def _begin(self, kind: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(kind, work))
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, kind: str, work: Coroutine[Any, Any, None]) -> None:
        """Does work beside the run. What breaks it off is said, and raised where one of the kind is waited for and none is left."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - nobody waits for this task, and the run must not either
            self._report(f"a change of a {kind} broke off: {_reason(error)}")
            if not self._pool(kind).members:
                self._pool(kind).give_up(error)
                self._came.set()


def _reason(error: Exception) -> str:
    """Returns an error's sentence; of one that is not ours with its type, since its text alone may say nothing."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, IsentropeError | MemberDied) else f"{type(error).__name__}: {text}"
