"""The buffer: order, bounds, staleness, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import make_group, make_prompt, make_trajectory

from envs.types import Group
from orchestration.run.buffer import Aged, Buffer


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 10))


def group(index: int, version: int = 0) -> Group:
    return make_group([0.0, 1.0], index=index, version=version)


async def settle() -> None:
    """Everything that can go on, does."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_groups_come_out_in_the_order_they_went_in() -> None:
    async def work() -> list[int]:
        buffer = Buffer(8, 0)
        for i in range(5):
            await buffer.put(group(i))
        first, second = await buffer.take(2, 0), await buffer.take(3, 0)
        assert len(buffer) == 0
        return [g.prompt.index for g in (*first, *second)]

    assert run(work()) == [0, 1, 2, 3, 4]


def test_the_age_of_a_group_is_its_oldest_token() -> None:
    turns = make_trajectory([(2, 1), (1, 1)], version=7).turns
    mixed = make_trajectory(version=9)
    object.__setattr__(mixed, "turns", (*mixed.turns, *turns))
    aged = Aged.of(Group(make_prompt(), (make_trajectory(version=8), mixed)))
    assert aged.version_min == 7
    assert aged.staleness(10) == 3


def test_a_producer_waits_for_room_and_goes_on_when_there_is_some() -> None:
    async def work() -> None:
        buffer = Buffer(2, 0)
        tasks = [asyncio.ensure_future(buffer.put(group(i))) for i in range(4)]
        await settle()
        assert [t.done() for t in tasks] == [True, True, False, False]
        await buffer.take(1, 0)
        await settle()
        assert [t.done() for t in tasks] == [True, True, True, False]
        assert len(buffer) == 2
        await buffer.take(2, 0)
        await asyncio.gather(*tasks)

    run(work())


def test_the_learner_waits_until_a_whole_batch_is_there() -> None:
    async def work() -> None:
        buffer = Buffer(4, 0)
        taking = asyncio.ensure_future(buffer.take(2, 0))
        await buffer.put(group(0))
        await settle()
        assert not taking.done()
        await buffer.put(group(1))
        assert [g.prompt.index for g in await taking] == [0, 1]

    run(work())


def test_stale_groups_are_dropped_counted_and_make_room() -> None:
    async def work() -> None:
        buffer = Buffer(3, 1)
        for i, version in enumerate([0, 2, 1]):
            await buffer.put(group(i, version))
        waiting = asyncio.ensure_future(buffer.put(group(3, 3)))
        await settle()
        assert not waiting.done()
        taken = await buffer.take(2, 3)  # version 3 takes groups of versions 2 and 3: the producer had to be let in
        assert [g.prompt.index for g in taken] == [1, 3]
        assert (buffer.dropped, len(buffer)) == (2, 0)

    run(work())


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.integers(0, 3),
    st.integers(0, 8),
    st.integers(1, 12),
)
def test_nothing_stale_is_given_and_nothing_fresh_is_lost(
    versions: list[int], limit: int, version: int, count: int
) -> None:
    fresh = [i for i, v in enumerate(versions) if version - v <= limit]
    count = min(count, len(fresh))
    if not count:
        return

    async def work() -> None:
        buffer = Buffer(len(versions), limit)
        for i, v in enumerate(versions):
            await buffer.put(group(i, v))
        taken = await buffer.take(count, version)
        assert [g.prompt.index for g in taken] == fresh[:count]
        assert buffer.dropped == len(versions) - len(fresh)
        assert len(buffer) == len(fresh) - count

    run(work())


def test_impossible_numbers_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="a buffer of 0 groups"):
        Buffer(0, 0)
    with pytest.raises(ValueError, match="a staleness of -1"):
        Buffer(1, -1)
    with pytest.raises(ValueError, match="a batch of 5 groups never fits in a buffer of 4"):
        run(Buffer(4, 0).take(5, 0))
