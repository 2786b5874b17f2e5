"""Many verifiers behind one callable: sessions keep their member, the dead are replaced, no verdict is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from support.builders import make_prompt
from support.fakes import FakeCodec, FakeGeneratorMember, FakeVerifierMember
from support.pools import generators, run, settle

from actors.pool import MemberDied, VerifierPool
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Message, Observation, Status, Verdict


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
