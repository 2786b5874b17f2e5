"""Pools: who gets what, how it travels, and that a death loses nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import make_prompt
from support.fakes import FakeCodec, FakeGeneratorMember, FakeVerifierMember, fake_response

from actors.inference import Completion, Request, SamplingParams
from actors.pool import GeneratorPool, MemberDied, PoolEmpty, VerifierPool
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Message, Observation, Status, Verdict


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def requests(name: str, count: int) -> list[Request]:
    return [Request(f"{name}/{i}", (1, 2), SamplingParams(4), i) for i in range(count)]


def generators(*members: FakeGeneratorMember) -> tuple[GeneratorPool, list[str]]:
    events: list[str] = []
    return GeneratorPool(members, events.append), events


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


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
        assert pool.dead == (["g0"] if died else [])
        assert len(events) == len(pool.dead)
        assert all("g0 is gone: killed by a test" in e for e in events)

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
        assert (pool.dead, len(events)) == (["g0"], 1)

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


def test_when_the_last_member_dies_everybody_who_waits_is_told_why() -> None:
    async def work() -> None:
        members = [FakeGeneratorMember(f"g{i}", die_after=1) for i in range(2)]
        pool, events = generators(*members)
        results = await asyncio.gather(*(pool.generate(requests(n, 3)) for n in "abcd"), return_exceptions=True)
        assert [type(r) for r in results] == [PoolEmpty] * 4
        assert str(results[0]) == "no member is left: g0, g1"
        assert len(events) == 2
        with pytest.raises(PoolEmpty):
            await pool.generate(requests("e", 1))
        heir = FakeGeneratorMember("g2")
        pool.add(heir)
        assert len(await pool.generate(requests("e", 2))) == 2

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
        assert (pool.dead, events) == ([], [])
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
        with pytest.raises(PoolEmpty):
            await pool.generate(requests("b", 1))

    run(work())


# --- verifiers ----------------------------------------------------------------------------------------------------------


def ask(session: str, responses: int = 1) -> ScoreRequest:
    return ScoreRequest(session, make_prompt(), ("x",) * responses)


def verifiers(*members: FakeVerifierMember) -> tuple[VerifierPool, list[str]]:
    events: list[str] = []
    return VerifierPool(members, events.append), events


def until(turns: int) -> Any:
    """Answers with observations, and with a verdict on the given turn."""

    def score(request: ScoreRequest) -> Observation | Verdict:
        if len(request.responses) < turns:
            return Observation((Message("tool", str(len(request.responses))),))
        return Verdict(1.0)

    return score


def test_a_session_stays_with_its_verifier() -> None:
    async def work() -> None:
        members = [FakeVerifierMember(f"v{i}", until(4)) for i in range(3)]
        pool, _ = verifiers(*members)
        names = [f"s{i}" for i in range(7)]
        for turn in (1, 2, 3, 4):
            answers = await asyncio.gather(*(pool.score(ask(s, turn)) for s in (names if turn % 2 else names[::-1])))
            assert all(isinstance(a, Verdict) == (turn == 4) for a in answers)
        homes = [{s for batch in m.batches for s in batch} for m in members]
        assert sorted(map(len, homes)) == [2, 2, 3]
        assert not homes[0] & homes[1]
        assert not (homes[0] | homes[1]) & homes[2]
        assert pool._home == {}  # scored sessions are forgotten

    run(work())


@pytest.mark.parametrize(
    ("limit", "room"),
    [({"max_turns": 2}, 500), ({"max_total_tokens": 6}, 500), ({}, 40), ({"max_seconds": 0.5}, 500)],
)
def test_a_pool_forgets_sessions_that_a_limit_ended(limit: dict[str, Any], room: int) -> None:
    """A pool forgets a session at its verdict, and these sessions never got one."""
    settings = RolloutSettings(
        SamplingSettings.model_validate({"max_tokens": 5, "max_turns": 9, **limit}),
        responses=3,
        max_model_len=room,
        seed=0,
    )

    async def work() -> None:
        pool, _ = verifiers(*(FakeVerifierMember(f"v{i}", until(100)) for i in range(2)))
        generate = generators(FakeGeneratorMember("g0"))[0].generate
        ticks = iter(range(10**6))
        group = await rollout_group(
            make_prompt(),
            generate,
            pool.score,
            FakeCodec(),
            settings,
            "s",
            lambda: next(ticks),
            release=pool.release,
        )
        assert all(t.verdict.detail for t in group.trajectories)  # the limit's name
        assert pool._home == {}

    run(work())


def test_a_pool_forgets_sessions_whose_rollout_was_cancelled_though_their_verifier_dies_later() -> None:
    settings = RolloutSettings(SamplingSettings(max_tokens=5, max_turns=9), responses=3, max_model_len=500, seed=0)

    async def work() -> None:
        members = [FakeVerifierMember(f"v{i}", until(2), hold=i == 0) for i in range(2)]
        pool, _ = verifiers(*members)
        generate = generators(FakeGeneratorMember("g0"))[0].generate
        parts = (generate, pool.score, FakeCodec(), settings, "s")
        rollout = asyncio.ensure_future(rollout_group(make_prompt(), *parts, release=pool.release))
        while not members[0].batches:
            await asyncio.sleep(0)
        rollout.cancel()
        await asyncio.wait({rollout})
        members[0].die()
        await settle()
        assert pool.dead == ["v0"]
        assert pool._home == {}
        assert isinstance(await pool.score(ask("other")), Observation)

    run(work())


def test_what_comes_while_a_verifier_works_makes_its_next_message() -> None:
    async def work() -> None:
        member = FakeVerifierMember("v0", hold=True)
        pool, _ = verifiers(member)
        tasks = []
        for name in "abc":
            tasks.append(asyncio.ensure_future(pool.score(ask(name))))
            await settle()
        tasks.append(asyncio.ensure_future(pool.score(ask("d"))))
        member.release()
        await asyncio.gather(*tasks)
        assert member.batches == [["a"], ["b", "c", "d"]]
        assert pool._queues["v0"].load == 0

    run(work())


def test_a_verifiers_death_moves_its_sessions_and_later_turns_follow() -> None:
    async def work() -> None:
        members = [FakeVerifierMember(f"v{i}", until(2), hold=True) for i in range(2)]
        pool, events = verifiers(*members)
        tasks = [asyncio.ensure_future(pool.score(ask(s))) for s in "abcd"]
        await settle()
        tasks.append(asyncio.ensure_future(pool.score(ask("e"))))  # queued behind v0's first message
        await settle()
        members[0].die()
        members[1].release()
        assert all(isinstance(a, Observation) for a in await asyncio.gather(*tasks))
        assert Counter(s for b in members[1].batches for s in b) == Counter("abcde")
        assert len(events) == 1
        answers = await asyncio.gather(*(pool.score(ask(s, 2)) for s in "abcde"))
        assert answers == [Verdict(1.0)] * 5

    run(work())


def test_without_a_verifier_left_a_trajectory_is_an_error_and_not_lost() -> None:
    async def work() -> None:
        member = FakeVerifierMember("v0", hold=True)
        pool, _ = verifiers(member)
        tasks = [asyncio.ensure_future(pool.score(ask(s))) for s in "ab"]
        await settle()
        tasks.append(asyncio.ensure_future(pool.score(ask("c"))))
        gone = asyncio.ensure_future(pool.score(ask("d")))
        await settle()
        gone.cancel()  # its answer is nobody's any more, and must not spoil the others'
        member.die()
        for verdict in await asyncio.gather(*tasks):
            assert isinstance(verdict, Verdict)
            assert (verdict.status, verdict.reward) == (Status.ERROR, 0.0)
            assert verdict.detail == "no member is left: v0"
        late = await pool.score(ask("e"))  # nobody to ask any more, until a replacement comes
        assert isinstance(late, Verdict)
        assert late.status is Status.ERROR
        assert pool.dead == ["v0"]
        pool.add(FakeVerifierMember("v1"))
        fresh = await pool.score(ask("f"))
        assert isinstance(fresh, Verdict)
        assert fresh.status is Status.OK

    run(work())


def test_a_fault_of_a_verifier_goes_to_whoever_asked_and_the_next_call_is_served() -> None:
    async def work() -> None:
        def score(request: ScoreRequest) -> Verdict:
            if request.session == "bad":
                raise ValueError("cannot be scored")
            return Verdict(1.0)

        member = FakeVerifierMember("v0", score)
        pool, _ = verifiers(member)
        with pytest.raises(ValueError, match="cannot be scored"):
            await pool.score(ask("bad"))
        assert await pool.score(ask("good")) == Verdict(1.0)
        assert pool._queues["v0"].load == 0

    run(work())


def test_a_death_crosses_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(MemberDied("g0", "no answer within 3 s")))
    assert (str(error), error.name) == ("g0 is gone: no answer within 3 s", "g0")
