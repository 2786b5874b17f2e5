"""The number of generators while a run goes on: who comes, who leaves, and what becomes of a slot that is wanted again.

The same on real actors: tests/chaos/elastic.py.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from support.members import Makers, Run, Slots, going
from support.pools import settle

from actors.health.lifeline import MemberDied
from orchestration.cluster import members as members_module
from orchestration.cluster.members import Members
from orchestration.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(members_module, "LONGEST_WAIT_S", 0.0)


def test_scaling_up_and_down_changes_who_serves() -> None:
    async def work(r: Run) -> None:
        assert r.members.scale(4) == "generators: 1 -> 4"
        await settle()
        assert sorted(r.members.joining) == ["generator 1", "generator 2", "generator 3"]
        r.sync()
        assert len(r.names) == 4
        assert r.members.scale(2) == "generators: 4 -> 2"
        await settle()
        assert r.names == ["generator 0", "generator 1"]
        assert "gave generator 3 back" in r.events and "generator 3 was drained" in r.events
        assert r.members.scale(2) == "there are 2 generators already"
        assert r.members.scale(3) == "generators: 2 -> 3"  # the place that is free
        await settle()
        assert [p.role for p in r.slots.taken.values() if p.kind == "generator"][-1] == "generator 2"

    going(work, count=1)


def test_a_drained_generator_ends_what_it_has_and_one_that_does_not_hands_it_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(r: Run) -> None:
        leaving = r.makers.made[1]
        for generator in r.makers.made[:2]:
            generator.gate.clear()
        asked = [asyncio.ensure_future(r.generate(n)) for n in "ab"]
        await settle()
        r.members.scale(1)
        await settle()
        assert r.names == ["generator 0", "generator 1"]
        r.makers.made[0].gate.set()
        monkeypatch.setattr(members_module, "DRAIN_S", 0.05)
        assert [len(done) for done in await asyncio.gather(*asked)] == [2, 2]
        assert r.names == ["generator 0"] and leaving.served == []

    monkeypatch.setattr(members_module, "DRAIN_S", 0.2)
    going(work)


def test_a_generator_that_is_drained_while_it_starts_never_serves() -> None:
    async def work(r: Run) -> None:
        r.members.scale(2)
        r.members.scale(1)
        await settle()
        assert r.names == ["generator 0"] and not r.members.joining
        assert [n for n in r.slots.taken if n.startswith("generator")] == ["generator 0"]

    going(work, count=1)


def test_one_more_waits_for_room_and_says_so_once() -> None:
    async def work(r: Run) -> None:
        r.slots.room.clear()
        r.members.scale(2)
        await settle()
        assert [e for e in r.events if "waits for room" in e] == ["generator 1 waits for room: the cluster is busy"]
        r.slots.room.set()
        await settle()
        assert list(r.members.joining) == ["generator 1"]

    going(work, count=1)


@pytest.mark.parametrize("count", [1, 4, 10**9])
def test_the_number_stays_within_its_bounds(count: int) -> None:
    async def work(r: Run) -> None:
        with pytest.raises(
            ConfigError, match=rf"{count} generators, and there have to be 2 to 3 \(.*nothing was changed"
        ):
            r.members.scale(count)

    going(work, min=2, max=3)


def test_nothing_is_scaled_before_the_first_generators_are_there() -> None:
    members = Members(cast("Any", None), lambda text: None, cast("Any", None))
    members.makers = cast("Any", Makers(Slots([])))
    with pytest.raises(ConfigError, match="is starting its first generators: nothing was changed"):
        members.scale(2)


def test_a_generator_that_dies_while_it_is_drained_is_not_replaced() -> None:
    async def work(r: Run) -> None:
        r.makers.made[1].gate.clear()
        r.makers.made[0].gate.clear()
        asked = [asyncio.ensure_future(r.generate(n)) for n in "ab"]
        await settle()
        r.members.scale(1)
        await settle()
        r.members.lost(MemberDied("generator 1", "killed"))
        r.makers.made[0].gate.set()
        assert [len(done) for done in await asyncio.gather(*asked)] == [2, 2]
        await settle()
        assert r.names == ["generator 0"] and not r.members.joining and r.members.replaced == 0
        assert not [e for e in r.events if "broke off" in e]
        assert [n for n in r.slots.taken if n.startswith("generator")] == ["generator 0"]

    going(work)


def test_a_slot_that_is_wanted_again_while_it_is_drained_has_one_actor_at_a_time() -> None:
    async def work(r: Run) -> None:
        for generator in r.makers.made[:2]:
            generator.gate.clear()
        asked = [asyncio.ensure_future(r.generate(n)) for n in "ab"]
        await settle()
        r.members.scale(1)
        await settle()
        assert r.members.scale(2) == "generators: 1 -> 2"
        await settle()
        assert [n for n in r.slots.taken if n.startswith("generator")] == ["generator 0", "generator 1"]
        for generator in r.makers.made[:2]:
            generator.gate.set()
        await asyncio.gather(*asked)
        await settle()
        assert [(n, p.role) for n, p in r.slots.taken.items() if p.kind == "generator"] == [
            ("generator 0", "generator 0"),
            ("generator 2", "generator 1"),
        ]
        assert r.events.index("gave generator 1 back") < r.events.index("room for generator 1")

    going(work)


def test_a_slot_that_is_restarting_and_wanted_again_is_filled_once() -> None:
    async def work(r: Run) -> None:
        r.makers.gate.clear()
        r.members.lost(MemberDied("generator 1", "killed"))
        await settle()
        r.members.scale(1)
        r.members.scale(2)
        await settle()
        r.makers.gate.set()
        await settle()
        assert list(r.members.joining) == ["generator 2"]
        assert len([n for n in r.slots.taken if n.startswith("generator")]) == 2

    going(work)


def test_whoever_cannot_be_started_leaves_before_one_that_serves() -> None:
    async def work(r: Run) -> None:
        r.makers.hopeless = {"generator 0"}
        r.members.lost(MemberDied("generator 0", "its node is gone"))
        for _ in range(5):
            await settle()
        r.members.scale(1)
        for _ in range(5):
            await settle()
        assert r.names == ["generator 1"] and len(await r.generate("a")) == 2
        assert "gave generator 0 back" in r.events
        attempts = len(r.makers.made)
        await settle()
        assert len(r.makers.made) == attempts  # nobody tries any more

    going(work)


def test_a_slot_that_left_does_not_count_as_one_that_cannot_be_filled() -> None:
    async def work(r: Run) -> None:
        r.makers.hopeless = {"generator 2", "generator 0"}
        for name in ("generator 2", "generator 0"):
            r.members.lost(MemberDied(name, "its node is gone"))
        for _ in range(5):
            await settle()
        r.members.scale(2)
        for _ in range(5):
            await settle()
        r.makers.gate.clear()
        r.members.lost(MemberDied("generator 1", "killed"))
        asked = asyncio.ensure_future(r.generate("a"))
        for _ in range(5):
            await settle()
        assert not asked.done()  # the first attempt at its replacement is under way
        r.makers.gate.set()
        assert len(await asked) == 2

    going(work, count=3)


@pytest.mark.parametrize("one_by_one", [True, False])
def test_engines_that_share_a_gpu_start_one_after_the_other(one_by_one: bool) -> None:
    async def work(r: Run) -> None:
        r.makers.one_by_one = one_by_one
        r.members.scale(4)
        await settle()
        assert len(r.members.joining) == 3
        assert max(r.makers.starting) == (1 if one_by_one else 3)

    going(work, count=1)
