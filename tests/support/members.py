"""Runs the members of a run on actors that only note things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

from actors.handles import RemoteGenerator
from actors.health.lifeline import MemberDied
from actors.health.state import HealthLimits
from actors.inference import Completion, Request, SamplingParams
from orchestration.cluster.actor_slots import Position
from orchestration.cluster.members import Members
from orchestration.config.run_config import validate
from orchestration.errors import PlacementError
from support.builders import config_data
from support.fakes import FakeVerifierMember, fake_response
from support.pools import run


class Generator(RemoteGenerator):
    """Serves at once, unless held; with a lifeline of its own like any other."""

    def __init__(self, name: str) -> None:
        super().__init__(name, cast("Any", None), 1.0)
        self.gate = asyncio.Event()
        self.gate.set()
        self.served: list[str] = []

    async def beat(self) -> int:
        return len(self.served)

    async def stream(self, requests: Any) -> AsyncIterator[list[Completion]]:
        for request in requests:
            await self._line.answer(self.gate.wait(), None)
            self.served.append(request.id)
            yield [fake_response(request, 0)]


class Verifier(FakeVerifierMember):
    busy = False

    async def beat(self) -> int:
        return 0

    def give_up(self, death: MemberDied) -> None:
        self.die()


class Slots:
    """Notes who took which place; `room` says whether there is any beyond the first."""

    def __init__(self, events: list[str]) -> None:
        self.events, self.room = events, asyncio.Event()
        self.room.set()
        self.taken: dict[str, Position] = {}
        self.numbers: dict[str, int] = {}

    def take(self, kind: str, number: int) -> str:
        count = self.numbers[kind] = self.numbers.get(kind, -1) + 1
        name = f"{kind} {count}"
        self.taken[name] = Position(name, kind, number)
        return name

    async def extend(self, slot: Any, limit: float) -> None:
        if not self.room.is_set():
            await asyncio.sleep(0)
            raise PlacementError("the cluster is busy")
        self.events.append(f"room for {slot.role}")

    def name_at(self, role: str) -> str | None:
        return next((n for n, p in self.taken.items() if p.role == role), None)

    def role_of(self, name: str) -> str | None:
        return self.taken[name].role if name in self.taken else None

    def vacate(self, name: str) -> Position:
        return self.taken.pop(name)

    def release(self, role: str) -> None:
        self.events.append(f"gave {role} back")


class Makers:
    """Makes actors that start, or raise what `faults` has next."""

    def __init__(self, slots: Slots, **generators: Any) -> None:
        data = config_data()
        data["generators"] |= generators
        self.config = validate(data)
        self.slots = slots
        self.one_by_one = False
        self.faults: list[Exception] = []
        self.hopeless: set[str] = set()  # roles that nothing starts in
        self.starting: list[int] = [0]  # how many at once, at each start
        self.gate = asyncio.Event()
        self.gate.set()
        self.made: list[Any] = []

    def make(self, kind: str, number: int) -> Any:
        name = self.slots.take(kind, number)
        self.made.append(Generator(name) if kind == "generator" else Verifier(name))
        return self.made[-1]

    async def admit(self, member: Any) -> None:
        self.starting.append(self.starting[-1] + 1)
        await asyncio.sleep(0)
        if self.slots.role_of(member.name) not in self.hopeless:
            await self.gate.wait()
        self.starting.append(self.starting[-1] - 1)
        if self.slots.role_of(member.name) in self.hopeless:
            raise MemberDied(member.name, "its node is gone")
        if self.faults:
            raise self.faults.pop(0)

    def limits(self, kind: str) -> HealthLimits:
        return HealthLimits(1000.0, 1000.0, "some.key")


class Run:
    """Holds members with `count` generators and a verifier, and what was said about them."""

    def __init__(self, count: int = 2, verifiers: int = 1, **generators: Any) -> None:
        self.events: list[str] = []
        self.fetched = 0
        self.slots = Slots(self.events)
        self.makers = Makers(self.slots, count=count, **generators)
        self.members = Members(cast("Any", self.slots), self.events.append, self.fetch)
        self.members.makers = cast("Any", self.makers)
        started = [self.makers.make("generator", i) for i in range(count)]
        self.members.make_pools(started, [self.makers.make("verifier", i) for i in range(verifiers)], [], [])
        self.members.watch_all()
        self.broken: Exception | None = None

    async def fetch(self) -> None:
        self.fetched += 1
        if self.broken is not None:
            raise self.broken
        self.sync()

    def sync(self) -> None:
        self.members.serve([*self.members.joining], 7)

    async def generate(self, name: str, count: int = 2) -> list[Any]:
        return await self.members.generators.generate(
            [Request(f"{name}/{i}", (1,), SamplingParams(4), i) for i in range(count)]
        )

    @property
    def names(self) -> list[str]:
        return [m.name for m in self.members.generators.members]


def going(work: Callable[[Run], Coroutine[Any, Any, None]], count: int = 2, **generators: Any) -> None:
    async def main() -> None:
        held = Run(count, **generators)
        try:
            await work(held)
        finally:
            await held.members.close()

    run(main())
