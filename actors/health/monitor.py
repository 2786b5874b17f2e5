"""Asks every actor what it has done, again and again, and gives up those that a limit was passed for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from actors.health.lifeline import MemberDied
from actors.health.state import Health, HealthLimits, MemberState


class Watched(Protocol):
    """Answers, beside its work, how much it has done."""

    name: str

    @property
    def busy(self) -> bool:
        """Returns whether calls are under way that have to make progress."""
        ...

    async def beat(self) -> int:
        """Returns a count of what the actor has done so far; waits until it is given up. Raises MemberDied."""
        ...


@dataclass
class _Entry:
    member: Watched
    kind: str
    health: Health
    asking: asyncio.Task[None] | None = None


class HealthMonitor:
    """Follows the actors of a run. `on_dead` gets each actor that was given up, once, with its kind and the reason.

    A question stays under way as long as it takes: what counts is when the last answer came. clock: seconds, only forward.
    """

    def __init__(
        self, on_dead: Callable[[str, Any, MemberDied], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.moves = 0  # times that an actor was heard to have done more than before
        self.interval_s = 1.0  # between two questions to the same actor
        self._on_dead, self._clock = on_dead, clock
        self._looked: float | None = None  # when; None while nobody asks
        self._entries: dict[str, _Entry] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, member: Watched, kind: str, limits: HealthLimits, *, starting: bool = False) -> None:
        """Follows an actor from now on; one that is starting is not asked before `started`."""
        state = MemberState.RESTARTING if starting else MemberState.HEALTHY
        self._entries[member.name] = _Entry(member, kind, Health(limits, self._clock(), state))

    def restart(self, name: str, member: Watched) -> None:
        """Notes that `member` is being started in the place of the dead `name`; it is not asked before `started`."""
        entry = self._entries.pop(name)
        entry.health.restart()
        self._entries[member.name] = _Entry(member, entry.kind, entry.health)

    def started(self, name: str, *, stale: bool = False) -> None:
        """Notes that a replacement answers, and follows it."""
        self._entries[name].health.started(self._clock(), stale=stale)

    def confirm(self, name: str) -> None:
        """Notes that a generator has the current weights; nothing where it had them before."""
        health = self._entries[name].health
        if health.state is MemberState.STALE:
            health.confirm(self._clock())

    def forget(self, name: str) -> None:
        """Follows the actor no longer."""
        entry = self._entries.pop(name, None)
        if entry is not None and entry.asking is not None:
            entry.asking.cancel()

    def report(self, death: MemberDied, *, quietly: bool = False) -> None:
        """Gives an actor up that somebody else found dead. quietly: who says so sees to the rest as well."""
        entry = self._entries.get(death.name)
        if entry is not None and entry.health.state is not MemberState.DEAD:
            entry.health.die(death.detail)
            if not quietly:
                self._on_dead(entry.kind, entry.member, death)

    def state(self, name: str) -> MemberState | None:
        """Returns the state of an actor; None where it is not followed."""
        entry = self._entries.get(name)
        return None if entry is None else entry.health.state

    def states(self) -> list[tuple[str, str, MemberState]]:
        """Returns name, kind and state of every actor that is followed."""
        return [(name, entry.kind, entry.health.state) for name, entry in self._entries.items()]

    def entries(self) -> list[tuple[Any, str, MemberState]]:
        """Returns every actor that is followed, with its kind and its state."""
        return [(e.member, e.kind, e.health.state) for e in self._entries.values()]

    def start(self) -> None:
        """Begins to ask, in the running event loop."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ends all questions."""
        tasks = [entry.asking for entry in self._entries.values() if entry.asking is not None]
        tasks += [] if self._task is None else [self._task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = self._looked = None

    async def _run(self) -> None:
        self._looked = self._clock()
        while True:
            await asyncio.sleep(self.interval_s)
            self._notice_a_standstill()
            self.turn()

    def _notice_a_standstill(self) -> None:
        """Excuses everybody where this process itself was stopped or starved: nobody could be heard meanwhile.

        Called before anybody is judged, also by an answer: one may be taken up before the loop of questions is."""
        if self._looked is None:
            return
        now = self._clock()
        if now - self._looked > 3 * self.interval_s + 1:
            for entry in self._entries.values():
                entry.health.excuse(now)
        self._looked = now

    def turn(self) -> None:
        """Asks everybody who has answered the question before, and gives up those that a limit was passed for."""
        for entry in list(self._entries.values()):
            if entry.health.state in (MemberState.DEAD, MemberState.RESTARTING):
                continue
            if entry.asking is None or entry.asking.done():
                entry.asking = asyncio.get_running_loop().create_task(self._ask(entry))
            self._judge(entry)

    async def _ask(self, entry: _Entry) -> None:
        busy = entry.member.busy
        try:
            done = await entry.member.beat()
        except MemberDied as death:
            self.report(death)
        else:
            self._notice_a_standstill()
            if entry.health.hear(done, busy and entry.member.busy, self._clock()):
                self.moves += 1
            self._judge(entry)

    def _judge(self, entry: _Entry) -> None:
        health = entry.health
        if health.state is not MemberState.DEAD and health.look(self._clock()) is MemberState.DEAD:
            self._on_dead(entry.kind, entry.member, MemberDied(entry.member.name, health.reason))
