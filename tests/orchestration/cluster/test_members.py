"""The members of a run: who is replaced, and when nobody is left, on actors that only note things.

The same on real actors: tests/integration/test_run.py and tests/chaos.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from support.members import Run, going
from support.pools import settle

from actors.health.lifeline import MemberDied
from actors.health.state import MemberState
from actors.inference import PoolEmpty
from orchestration.cluster import members as members_module
from orchestration.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(members_module, "LONGEST_WAIT_S", 0.0)


def test_a_dead_generator_is_replaced_beside_the_run_and_serves_after_the_next_transfer() -> None:
    async def work(r: Run) -> None:
        r.members.lost(MemberDied("generator 0", "killed"))
        assert r.events == ["generator 0 is gone: killed; its work goes to the other 1"]
        await settle()
        assert r.names == ["generator 1"] and list(r.members.joining) == ["generator 2"]
        assert r.fetched == 0  # somebody samples: there is no hurry
        assert r.members.monitor.state("generator 2") is MemberState.STALE
        assert [m.name for m in await r.members.weight_receivers()] == ["generator 1", "generator 2"]
        r.members.serve(["generator 1", "generator 2"], 5)
        assert r.names == ["generator 1", "generator 2"] and not r.members.joining
        assert r.members.monitor.state("generator 2") is MemberState.HEALTHY
        assert r.events[-1] == "generator 2 serves from version 5 on"
        assert r.members.replaced == 1

    going(work)


def test_the_only_generator_dies_and_what_it_had_is_answered_by_its_replacement() -> None:
    async def work(r: Run) -> None:
        only = r.makers.made[0]
        only.gate.clear()
        asked = asyncio.ensure_future(r.generate("a"))
        await settle()
        r.members.monitor.report(MemberDied("generator 0", "frozen"))
        assert r.events == ["generator 0 is gone: frozen; its work waits for a replacement"]
        assert [c.id for c in await asked] == ["a/0", "a/1"]
        assert r.fetched == 1 and r.names == ["generator 1"]
        assert only.served == []

    going(work, count=1)


def test_who_waits_for_a_generator_hears_why_a_transfer_to_the_replacement_failed() -> None:
    async def work(r: Run) -> None:
        r.broken = MemberDied("learner rank 0", "killed")
        r.makers.made[0].gate.clear()
        asked = asyncio.ensure_future(r.generate("a"))
        await settle()
        r.members.lost(MemberDied("generator 0", "killed"))
        with pytest.raises(MemberDied, match="learner rank 0"):
            await asked

    going(work, count=1)


def test_a_replacement_that_fails_to_start_is_tried_again_as_long_as_others_are_left() -> None:
    async def work(r: Run) -> None:
        r.makers.faults = [MemberDied("x", "no GPU is free")] * 9
        r.members.lost(MemberDied("generator 0", "killed"))
        for _ in range(10):
            await settle()
        assert list(r.members.joining) == ["generator 11"]
        assert len([e for e in r.events if "could not be started in 3 attempts" in e]) == 1
        assert len(await r.generate("a")) == 2

    going(work)


@pytest.mark.parametrize(
    ("error", "kind"), [(MemberDied("x", "no GPU is free"), PoolEmpty), (ConfigError("no module 'mine'"), ConfigError)]
)
def test_where_nobody_is_left_and_none_can_be_started_whoever_waits_hears_it(
    error: Exception, kind: type[Exception]
) -> None:
    async def work(r: Run) -> None:
        r.makers.faults = [error] * 99
        for i in range(2):
            r.makers.made[i].gate.clear()
        asked = asyncio.ensure_future(r.generate("a"))
        await settle()
        for i in range(2):
            r.members.lost(MemberDied(f"generator {i}", "killed"))
        receivers = asyncio.ensure_future(cast("Any", r.members.weight_receivers()))
        with pytest.raises(kind, match=r"no GPU is free|no module 'mine'"):
            await asked
        with pytest.raises(kind):
            await receivers

    going(work)


def test_a_defect_at_a_replacement_is_an_attempt_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(r: Run) -> None:
        def broken(kind: str, number: int) -> Any:
            raise KeyError("a defect")

        monkeypatch.setattr(r.makers, "make", broken)
        r.makers.made[0].gate.clear()
        asked = asyncio.ensure_future(r.generate("a"))
        await settle()
        r.members.lost(MemberDied("generator 0", "killed"))
        with pytest.raises(PoolEmpty, match="in 3 attempts: KeyError: 'a defect'"):
            await asked

    going(work, count=1)


def test_a_dead_verifier_is_replaced_and_the_response_it_had_is_judged_by_the_next() -> None:
    async def work(r: Run) -> None:
        r.members.lost(MemberDied("verifier 0", "killed"))
        assert r.events == ["verifier 0 is gone: killed; its work waits for a replacement"]
        await settle()
        assert [m.name for m in r.members.verifiers.members] == ["verifier 1"]
        assert r.members.monitor.state("verifier 1") is MemberState.HEALTHY

    going(work)


def test_one_verifier_that_cannot_be_started_ends_nothing_while_another_may_come() -> None:
    async def work(r: Run) -> None:
        r.makers.hopeless = {"verifier 0"}
        r.makers.gate.clear()
        for name in ("verifier 0", "verifier 1"):
            r.members.lost(MemberDied(name, "killed"))
        for _ in range(5):
            await settle()
        r.members.verifiers.raise_if_over()
        r.makers.gate.set()
        await settle()
        assert [m.name for m in r.members.verifiers.members] == ["verifier 3"]

    going(work, verifiers=2)


def test_where_the_transfer_to_a_replacement_waits_and_it_dies_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The transfer waits for a generator, and a generator for nothing but its slot's turn."""

    async def work(r: Run) -> None:
        async def fetch() -> None:
            r.fetched += 1
            if r.fetched == 1:  # breaks at the one it was for, and waits for another
                r.members.lost(MemberDied("generator 1", "killed"))
                await r.members.weight_receivers()
            r.sync()

        monkeypatch.setattr(r.members, "_fetch", fetch)
        r.members.lost(MemberDied("generator 0", "killed"))
        assert len(await r.generate("a")) == 2
        assert r.names == ["generator 2"]

    going(work, count=1)


def test_a_generator_that_dies_while_the_learner_has_the_gpu_is_replaced_when_it_leaves() -> None:
    async def work(r: Run) -> None:
        r.makers.one_by_one = True  # as where they share GPUs
        await r.members.engine_starts.acquire()
        r.members.lost(MemberDied("generator 0", "killed asleep"))
        await settle()
        assert len(r.makers.made) == 3 and not r.members.joining  # two generators and a verifier: nothing was started
        assert [m.name for m in r.members.present()] == ["generator 1"]
        r.members.engine_starts.release()
        await settle()
        assert [m.name for m in r.members.present()] == ["generator 1", "generator 2"]

    going(work)
