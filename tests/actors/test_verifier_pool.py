"""Many verifiers behind one callable: sessions keep their member, the dead are replaced, no verdict is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from support.builders import make_prompt
from support.fakes import FakeCodec, FakeGeneratorMember, FakeVerifierMember
from support.pools import generators, run, settle

from actors.health.lifeline import MemberDied
from actors.inference import PoolEmpty
from actors.pool import MAX_DEATHS, VerifierPool
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Message, Observation, Status, Verdict


def ask(session: str, responses: int = 1) -> ScoreRequest:
    return ScoreRequest(session, make_prompt(), ("x",) * responses)


def verifiers(*members: FakeVerifierMember) -> tuple[VerifierPool, list[MemberDied]]:
    events: list[MemberDied] = []
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
        begin = generators(FakeGeneratorMember("g0"))[0].begin
        ticks = iter(range(10**6))
        group = await rollout_group(
            make_prompt(),
            begin,
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
        begin = generators(FakeGeneratorMember("g0"))[0].begin
        parts = (begin, pool.score, FakeCodec(), settings, "s")
        rollout = asyncio.ensure_future(rollout_group(make_prompt(), *parts, release=pool.release))
        while not members[0].batches:
            await asyncio.sleep(0)
        rollout.cancel()
        await asyncio.wait({rollout})
        members[0].die()
        await settle()
        assert [m.name for m in pool.members] == ["v1"]
        assert pool._home == {}
        assert isinstance(await pool.score(ask("other")), Observation)

    run(work())


def test_the_next_message_to_a_verifier_names_its_sessions_that_a_limit_ended() -> None:
    async def work() -> None:
        members = [FakeVerifierMember(f"v{i}", until(2)) for i in range(2)]
        pool, _ = verifiers(*members)
        await asyncio.gather(*(pool.score(ask(s)) for s in "abcd"))  # a and c at v0, b and d at v1
        for session in ("a", "b", "d", "unknown"):
            pool.release(session)
        assert await pool.score(ask("c", 2)) == Verdict(1.0)
        pool.release("c")  # it had its verdict, and the verifier has closed it
        await asyncio.gather(*(pool.score(ask(s)) for s in "efgh"))
        assert [m.ended for m in members] == [[(), ("a",), ()], [(), ("b", "d")]]

    run(work())


def test_a_session_that_is_cancelled_before_it_is_sent_is_not_sent() -> None:
    """It would be opened after its end was told, and stay."""

    async def work() -> None:
        member = FakeVerifierMember("v0", until(2), hold=True)
        pool, _ = verifiers(member)
        first = asyncio.ensure_future(pool.score(ask("a")))
        await settle()
        late = [asyncio.ensure_future(pool.score(ask(s))) for s in "bc"]
        await settle()
        late[0].cancel()
        pool.release("b")
        member.release()
        await asyncio.gather(first, late[1])
        assert member.batches == [["a"], ["c"]]
        assert member.ended == [(), ("b",)]
        assert pool._queues["v0"].load == 0
        last = asyncio.ensure_future(pool.score(ask("d")))
        await asyncio.sleep(0)
        last.cancel()
        await settle()
        assert member.batches == [["a"], ["c"]], "nothing is left to send"
        assert pool._queues["v0"].load == 0 and not pool._queues["v0"].sending
        await pool.score(ask("e"))

    run(work())


def test_names_of_ended_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.pool.MAX_ENDED", 3)

    async def work() -> None:
        member = FakeVerifierMember("v0", until(2))
        pool, _ = verifiers(member)
        await asyncio.gather(*(pool.score(ask(s)) for s in "abcde"))
        for session in "abcde":
            pool.release(session)
        await pool.score(ask("f"))
        assert member.ended[-1] == ("c", "d", "e")

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


def test_without_a_verifier_left_responses_wait_for_the_next_and_none_has_a_verdict_that_nobody_gave() -> None:
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
        await settle()
        tasks.append(asyncio.ensure_future(pool.score(ask("e"))))
        await settle()
        assert not any(task.done() for task in tasks)
        heir = FakeVerifierMember("v1")
        pool.add(heir)
        assert await asyncio.gather(*tasks) == [Verdict(1.0, True)] * 4
        assert sorted(s for b in heir.batches for s in b) == ["a", "b", "c", "e"]

    run(work())


def test_where_no_verifier_will_come_the_run_hears_it() -> None:
    async def work() -> None:
        member = FakeVerifierMember("v0", hold=True)
        pool, _ = verifiers(member)
        waiting = asyncio.ensure_future(pool.score(ask("a")))
        await settle()
        member.die()
        await settle()
        pool.give_up(PoolEmpty("none could be started"))
        for task in (waiting, asyncio.ensure_future(pool.score(ask("b")))):
            with pytest.raises(PoolEmpty, match="none could be started"):
                await task

    run(work())


def test_the_response_that_every_verifier_dies_of_costs_its_own_verdict_alone() -> None:
    async def work() -> None:
        members = [FakeVerifierMember(f"v{i}", hold=True) for i in range(MAX_DEATHS + 1)]
        pool, _ = verifiers(*members[:1])
        asked = asyncio.ensure_future(pool.score(ask("poison")))
        for i in range(MAX_DEATHS):
            await settle()
            members[i].die()
            await settle()
            pool.add(members[i + 1])
        verdict = await asked
        assert isinstance(verdict, Verdict)
        assert (verdict.status, verdict.reward) == (Status.ERROR, 0.0)
        assert f"{MAX_DEATHS} verifiers died" in verdict.detail
        members[-1].release()
        assert await pool.score(ask("next")) == Verdict(1.0, True)

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
