"""The monitor: whom it asks, whom it gives up, and that it does so once."""

from __future__ import annotations

import asyncio

from support.pools import run, settle

from actors.health.lifeline import MemberDied
from actors.health.monitor import HealthMonitor
from actors.health.state import HealthLimits, MemberState

LIMITS = HealthLimits(silent_s=10.0, stalled_s=40.0, key="generators.timeout_s")


class Actor:
    """Has done `done` so far; frozen, it answers nothing."""

    def __init__(self, name: str) -> None:
        self.name, self.done, self.asked = name, 0, 0
        self.busy = True
        self.frozen = asyncio.Event()
        self.frozen.set()
        self.dead: MemberDied | None = None

    async def beat(self) -> int:
        self.asked += 1
        await self.frozen.wait()
        if self.dead is not None:
            raise self.dead
        return self.done


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def wait(monitor: HealthMonitor, clock: Clock, seconds: int, working: list[Actor]) -> None:
    for _ in range(seconds):
        clock.now += 1.0
        for actor in working:
            actor.done += 1
        monitor.turn()
        await settle()


def test_four_slow_actors_are_well_and_the_frozen_one_among_them_is_not() -> None:
    async def work() -> None:
        clock, deaths = Clock(), list[tuple[str, str]]()
        monitor = HealthMonitor(lambda kind, member, death: deaths.append((kind, death.name)), clock)
        actors = [Actor(f"generator {i}") for i in range(4)]
        for actor in actors:
            monitor.watch(actor, "generator", LIMITS)
        await wait(monitor, clock, 1000, actors)
        assert deaths == []
        actors[2].frozen.clear()
        await wait(monitor, clock, 30, actors)
        assert deaths == [("generator", "generator 2")]
        assert monitor.state("generator 2") is MemberState.DEAD
        assert monitor.state("generator 0") is MemberState.HEALTHY
        asked = actors[2].asked
        await wait(monitor, clock, 5, actors)
        assert actors[2].asked == asked  # who is dead is asked nothing
        await monitor.stop()

    run(work())


def test_work_without_progress_is_a_death_and_rest_is_not() -> None:
    async def work() -> None:
        clock, deaths = Clock(), list[MemberDied]()
        monitor = HealthMonitor(lambda kind, member, death: deaths.append(death), clock)
        stuck, idle = Actor("verifier 0"), Actor("verifier 1")
        idle.busy = False
        for actor in (stuck, idle):
            monitor.watch(actor, "verifier", LIMITS)
        await wait(monitor, clock, 60, [])
        assert [d.name for d in deaths] == ["verifier 0"]
        assert "no progress for 4" in deaths[0].detail
        await monitor.stop()

    run(work())


def test_a_death_that_somebody_else_found_is_told_once_and_a_quiet_one_never() -> None:
    async def work() -> None:
        clock, deaths = Clock(), list[MemberDied]()
        monitor = HealthMonitor(lambda kind, member, death: deaths.append(death), clock)
        actor, other = Actor("g0"), Actor("g1")
        monitor.watch(actor, "generator", LIMITS)
        monitor.watch(other, "generator", LIMITS)
        actor.dead = why = MemberDied("g0", "killed")
        monitor.report(why)
        monitor.report(why)
        monitor.report(MemberDied("g1", "could not start"), quietly=True)
        monitor.report(MemberDied("stranger", "killed"))
        await wait(monitor, clock, 60, [])
        assert deaths == [why]
        await monitor.stop()

    run(work())


def test_a_process_that_ended_is_noticed_by_the_next_question() -> None:
    async def work() -> None:
        clock, deaths = Clock(), list[MemberDied]()
        monitor = HealthMonitor(lambda kind, member, death: deaths.append(death), clock)
        actor = Actor("g0")
        monitor.watch(actor, "generator", LIMITS)
        actor.dead = MemberDied("g0", "killed")
        await wait(monitor, clock, 2, [])
        assert deaths == [actor.dead]
        await monitor.stop()

    run(work())


def test_a_replacement_is_followed_from_its_start_on() -> None:
    async def work() -> None:
        clock, deaths = Clock(), list[MemberDied]()
        monitor = HealthMonitor(lambda kind, member, death: deaths.append(death), clock)
        monitor.watch(Actor("g0"), "generator", LIMITS)
        monitor.report(MemberDied("g0", "killed"))
        fresh = Actor("g1")
        monitor.restart("g0", fresh)
        assert monitor.state("g0") is None and monitor.state("g1") is MemberState.RESTARTING
        await wait(monitor, clock, 500, [])
        assert fresh.asked == 0 and len(deaths) == 1
        monitor.started("g1", stale=True)
        await wait(monitor, clock, 3, [fresh])
        assert fresh.asked and monitor.state("g1") is MemberState.STALE
        monitor.confirm("g1")
        monitor.confirm("g1")
        assert monitor.states() == [("g1", "generator", MemberState.HEALTHY)]
        fresh.frozen.clear()
        await wait(monitor, clock, 20, [])
        assert [d.name for d in deaths] == ["g0", "g1"]
        await monitor.stop()

    run(work())


def test_nobody_is_blamed_for_the_time_in_which_this_process_itself_stood_still() -> None:
    async def work() -> None:
        clock, deaths = Clock(), list[MemberDied]()
        monitor = HealthMonitor(lambda kind, member, death: deaths.append(death), clock)
        monitor.interval_s = 0.01
        monitor.watch(Actor("g0"), "generator", LIMITS)
        monitor.start()
        await asyncio.sleep(0.05)
        clock.now += 500  # SIGSTOP, a debugger, a suspended laptop
        await asyncio.sleep(0.05)
        assert deaths == []
        assert monitor.state("g0") is MemberState.HEALTHY
        await monitor.stop()

    run(work())


def test_an_answer_that_is_taken_up_before_the_next_question_blames_nobody_either() -> None:
    async def work() -> None:
        clock, deaths = Clock(), list[MemberDied]()
        monitor = HealthMonitor(lambda kind, member, death: deaths.append(death), clock)
        monitor.interval_s = 0.01
        actor = Actor("g0")
        monitor.watch(actor, "generator", LIMITS)
        monitor.start()
        await asyncio.sleep(0.05)
        actor.frozen.clear()  # the next answer waits
        await asyncio.sleep(0.05)
        monitor.interval_s = 3600.0  # and comes long before the next question
        await asyncio.sleep(0.05)
        clock.now += 20_000
        actor.frozen.set()
        await asyncio.sleep(0.05)
        assert deaths == []
        assert monitor.state("g0") is MemberState.HEALTHY
        await monitor.stop()

    run(work())
