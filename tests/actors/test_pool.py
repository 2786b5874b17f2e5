"""Pools: who gets what, how it travels, and that a death loses nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeGeneratorMember, fake_response
from support.pools import generators, requests, run, settle

from actors.health.lifeline import MemberDied
from actors.inference import Completion, PoolEmpty, Request, ResponseFailed
from actors.pool import MAX_DEATHS, GeneratorPool

# --- generators: routing ------------------------------------------------------------------------------------------------


def test_completions_come_back_in_the_order_of_the_requests() -> None:
    async def work() -> None:
        pool, _ = generators(FakeGeneratorMember("g0"), FakeGeneratorMember("g1"))
        calls = [requests(f"p{i}", 3) for i in range(4)]
        for asked, responses in zip(calls, await asyncio.gather(*map(pool.generate, calls)), strict=True):
            assert responses == [fake_response(r, 0) for r in asked]

    run(work())


def test_calls_of_one_turn_travel_as_one_message_a_member_to_the_least_loaded() -> None:
    async def work() -> list[list[list[str]]]:
        members = [FakeGeneratorMember(f"g{i}") for i in range(3)]
        pool, _ = generators(*members)
        await asyncio.gather(
            *(pool.generate(requests(n, c)) for n, c in [("a", 4), ("b", 1), ("c", 2), ("d", 1), ("e", 1)])
        )
        return [[[i.split("/")[0] for i in batch] for batch in m.batches] for m in members]

    # a -> g0 (4), b -> g1 (1), c -> g2 (2), d -> g1 (2), e -> g1, the first of the two with load 2
    expected = [[["a"] * 4], [["b", "d", "e"]], [["c"] * 2]]
    assert run(work()) == expected
    assert run(work()) == expected


def test_all_responses_of_a_prompt_go_to_one_member() -> None:
    async def work() -> None:
        members = [FakeGeneratorMember(f"g{i}") for i in range(2)]
        pool, _ = generators(*members)
        await asyncio.gather(*(pool.generate(requests(f"p{i}", 5)) for i in range(6)))
        homes = [{i.split("/")[0] for i in m.served} for m in members]
        assert not homes[0] & homes[1]
        assert [len(m.served) for m in members] == [15, 15]

    run(work())


def test_load_counts_what_is_under_way() -> None:
    async def work() -> None:
        busy, idle = FakeGeneratorMember("g0", hold=True), FakeGeneratorMember("g1")
        pool, _ = generators(busy, idle)
        first = asyncio.ensure_future(pool.generate(requests("a", 2)))
        await settle()
        for name in ("b", "c"):
            await pool.generate(requests(name, 3))  # g1 is free again each time
        assert len(idle.batches) == 2
        busy.release()
        await first
        await pool.generate(requests("d", 1))
        assert busy.batches[-1] == ["d/0"]  # loads are equal again: the first member

    run(work())


def test_an_id_in_use_twice_is_refused_rather_than_waited_for() -> None:
    async def work() -> None:
        member = FakeGeneratorMember("g0", hold=True)
        pool, _ = generators(member)
        first = asyncio.ensure_future(pool.generate(requests("a", 1)))
        await settle()
        for asked in (requests("a", 1), requests("b", 1) * 2):
            with pytest.raises(ValueError, match=r"the request id \w/0 is in use twice"):
                await pool.generate(asked)
        member.release()
        await first
        await pool.generate(requests("a", 1))  # free again

    run(work())


# --- generators: death --------------------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
def test_a_death_at_any_moment_loses_nothing_and_serves_nothing_twice(
    after: int, others: int, sizes: list[int], staggered: bool
) -> None:
    async def work() -> None:
        members = [
            FakeGeneratorMember("g0", die_after=after),
            *(FakeGeneratorMember(f"g{i + 1}") for i in range(others)),
        ]
        pool, events = generators(*members)
        calls = [requests(f"p{i}", n) for i, n in enumerate(sizes)]
        tasks = []
        for asked in calls:
            tasks.append(asyncio.ensure_future(pool.generate(asked)))
            if staggered:  # several streams of one member under way when it dies
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        for asked, responses in zip(calls, await asyncio.gather(*tasks), strict=True):
            assert responses == [fake_response(r, 0) for r in asked]
        await settle()
        served = Counter(i for m in members for i in m.served)
        assert served == Counter(r.id for asked in calls for r in asked)
        assert all(queue.load == 0 for queue in pool._queues.values())
        died = sum(len(b) for b in members[0].batches) > after
        assert [str(death) for death in events] == ["g0 is gone: killed by a test"] * died
        assert ("g0" not in [m.name for m in pool.members]) == died

    run(work())


class DyingWhileAsked:
    """Ends its stream with its death in the same turn of the event loop in which a request was queued and not yet sent."""

    name = "g0"

    def __init__(self) -> None:
        self.ask: Callable[[], None] = lambda: None
        self.batches: list[list[str]] = []

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        self.batches.append([r.id for r in requests])
        yield []
        self.ask()
        await asyncio.sleep(0)  # what was asked is in the queue now
        raise MemberDied(self.name, "killed by a test")

    async def abort(self, ids: Collection[str]) -> None: ...


def test_what_is_queued_for_a_member_that_dies_goes_elsewhere_once() -> None:
    async def work() -> None:
        dying, heir = DyingWhileAsked(), FakeGeneratorMember("g1", hold=True)
        pool = GeneratorPool([dying, heir], lambda _: None)
        tasks = [asyncio.ensure_future(pool.generate(requests(*p))) for p in [("a", 2), ("b", 9)]]
        dying.ask = lambda: tasks.append(asyncio.ensure_future(pool.generate(requests("c", 2))))
        await settle()
        assert len(tasks) == 3
        heir.release()
        await asyncio.gather(*tasks)
        assert dying.batches == [["a/0", "a/1"]]  # c was queued for it, because b keeps g1 busy, and never sent
        expected = Counter(r.id for p in [("a", 2), ("b", 9), ("c", 2)] for r in requests(*p))
        assert Counter(heir.served) == expected
        assert Counter(i for b in heir.batches for i in b) == expected

    run(work())


def test_two_streams_of_a_member_that_dies_are_both_taken_over() -> None:
    async def work() -> None:
        members = [FakeGeneratorMember("g0", hold=True)]
        pool, events = generators(*members)
        tasks = []
        for name in "abc":
            tasks.append(asyncio.ensure_future(pool.generate(requests(name, 2))))
            await settle()
        assert len(members[0].batches) == 3
        heir = FakeGeneratorMember("g1")
        pool.add(heir)
        members[0].die()
        await asyncio.gather(*tasks)
        assert Counter(heir.served) == Counter(f"{n}/{i}" for n in "abc" for i in range(2))
        assert [death.name for death in events] == ["g0"]

    run(work())


def test_an_old_stream_that_ends_late_does_not_bury_the_replacement_of_the_same_name() -> None:
    async def work() -> None:
        old, new = FakeGeneratorMember("g0", hold=True), FakeGeneratorMember("g0")
        pool, _ = generators(old, FakeGeneratorMember("g1"))
        late = asyncio.ensure_future(pool.generate(requests("a", 2)))
        await settle()
        pool.bury(MemberDied("g0", "no weights"))
        pool.add(new)
        old.die()
        assert len(await late) == 2
        assert [m.name for m in pool.members] == ["g1", "g0"]
        assert new in pool.members

    run(work())


def test_when_the_last_member_dies_work_waits_for_the_next_one() -> None:
    async def work() -> None:
        members = [FakeGeneratorMember(f"g{i}", die_after=1) for i in range(2)]
        pool, events = generators(*members)
        calls = [requests(n, 3) for n in "abcd"]
        tasks = [asyncio.ensure_future(pool.generate(asked)) for asked in calls]
        await settle()
        assert len(events) == 2 and pool.starved and not any(task.done() for task in tasks)
        heir = FakeGeneratorMember("g2")
        pool.add(heir)
        for asked, responses in zip(calls, await asyncio.gather(*tasks), strict=True):
            assert responses == [fake_response(r, 0) for r in asked]
        served = Counter(i for m in [*members, heir] for i in m.served)
        assert served == Counter(r.id for asked in calls for r in asked)
        assert not pool.starved

    run(work())


def test_when_no_member_will_come_everybody_who_waits_is_told_why() -> None:
    async def work() -> None:
        pool, _ = generators(FakeGeneratorMember("g0", die_after=1))
        waiting = [asyncio.ensure_future(pool.generate(requests(n, 3))) for n in "ab"]
        await settle()
        why = PoolEmpty("no generator is left, and none could be started")
        pool.give_up(why)
        assert await asyncio.gather(*waiting, return_exceptions=True) == [why, why]
        with pytest.raises(PoolEmpty):
            await pool.generate(requests("e", 1))
        pool.add(FakeGeneratorMember("g2"))
        assert len(await pool.generate(requests("e", 2))) == 2

    run(work())


def test_a_request_that_every_member_dies_of_is_given_up() -> None:
    async def work() -> None:
        pool, events = generators(*(FakeGeneratorMember(f"g{i}", die_after=0) for i in range(MAX_DEATHS + 2)))
        with pytest.raises(PoolEmpty, match=f"the same request was lost {MAX_DEATHS} times, .* g4 is gone"):
            await pool.generate(requests("a", 1))
        assert len(events) == MAX_DEATHS
        assert len(pool.members) == 2

    run(work())


class Unwilling(FakeGeneratorMember):
    """Ends a request for a reason of its own the first times that it is asked, after it has answered the others."""

    def __init__(self, name: str, times: int) -> None:
        super().__init__(name)
        self.times = times

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        last = requests[-1]
        self.times -= 1
        async for done in super().stream(requests if self.times < 0 else requests[:-1]):
            yield done
        if self.times >= 0:
            raise ResponseFailed(f"the engine ended {last.id}")


def test_a_response_that_an_engine_ends_is_asked_for_again_and_only_that_one() -> None:
    async def work() -> None:
        member = Unwilling("g0", 2)
        pool, events = generators(member)
        asked = requests("a", 3)
        assert await pool.generate(asked) == [fake_response(r, 0) for r in asked]
        assert member.batches == [["a/0", "a/1"], [], ["a/2"]]
        assert events == [] and pool._queues["g0"].load == 0
        hopeless, _ = generators(Unwilling("g0", 99))
        with pytest.raises(PoolEmpty, match="the engine ended b/0"):
            await hopeless.generate(requests("b", 1))

    run(work())


class Broken:
    """Fails with an error of its own that is not a death."""

    name = "g0"

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        yield [fake_response(requests[0], 0)]
        if self.error is not None:
            raise self.error

    async def abort(self, ids: Collection[str]) -> None: ...


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("bad token"), ValueError, "bad token"),
        (None, RuntimeError, "g0 ended its stream without 2 of 3 responses"),
    ],
)
def test_a_fault_goes_to_whoever_asked_and_the_member_stays(
    error: Exception | None, kind: type[Exception], text: str
) -> None:
    async def work() -> None:
        pool = GeneratorPool([Broken(error)], lambda _: None)
        with pytest.raises(kind, match=text):
            await pool.generate(requests("a", 3))
        assert len(pool.members) == 1
        assert pool._queues["g0"].load == 0

    run(work())


# --- add, drain ---------------------------------------------------------------------------------------------------------


def test_a_drained_member_ends_what_it_has_and_gets_nothing_new() -> None:
    async def work() -> None:
        leaving, staying = FakeGeneratorMember("g0", hold=True), FakeGeneratorMember("g1")
        pool, events = generators(leaving, staying)
        first = asyncio.ensure_future(pool.generate(requests("a", 2)))
        draining = asyncio.ensure_future(pool.drain("g0"))  # in the same turn: nothing was sent yet
        await settle()
        assert not draining.done()
        await pool.generate(requests("b", 2))
        assert [len(leaving.batches), len(staying.batches)] == [1, 1]
        leaving.release()
        assert await draining is leaving
        assert len(await first) == 2
        assert pool.members == [staying]
        assert events == []
        pool.add(leaving)
        await asyncio.gather(pool.generate(requests("c", 1)), pool.generate(requests("d", 1)))
        assert leaving.batches[-1] == ["d/0"]

    run(work())


def test_a_drain_ends_when_its_member_dies_and_an_idle_member_leaves_at_once() -> None:
    async def work() -> None:
        leaving, staying = FakeGeneratorMember("g0", hold=True), FakeGeneratorMember("g1")
        pool, _ = generators(leaving, staying)
        first = asyncio.ensure_future(pool.generate(requests("a", 2)))
        await settle()
        draining = asyncio.ensure_future(pool.drain("g0"))
        await settle()
        leaving.die()
        assert await draining is leaving
        assert len(await first) == 2
        assert await pool.drain("g1") is staying
        waiting = asyncio.ensure_future(pool.generate(requests("b", 1)))
        await settle()
        assert not waiting.done()
        pool.add(staying)
        assert len(await waiting) == 1

    run(work())
