"""Requests that nobody waits for any more: they end at their generator, once, and nothing else does."""

from __future__ import annotations

import asyncio

from support.fakes import FakeGeneratorMember
from support.pools import generators, requests, run, settle


def test_what_is_cancelled_ends_at_its_member_and_the_rest_goes_on() -> None:
    async def work() -> None:
        member = FakeGeneratorMember("g0", hold=True)
        pool, events = generators(member)
        waits = pool.begin(requests("a", 3))
        kept = pool.begin(requests("b", 2))
        await settle()
        waits[0].cancel()
        waits[2].cancel()
        await settle()  # ends the hold too
        assert member.aborted == {"a/0", "a/2"}
        assert [c.id for c in await asyncio.gather(waits[1], *kept)] == ["a/1", "b/0", "b/1"]
        await settle()
        assert [queue.load for queue in pool._queues.values()] == [0]
        assert (pool.begun, pool.aborted) == (5, 2) and not events
        assert [c.id for c in await pool.generate(requests("a", 3))] == ["a/0", "a/1", "a/2"]  # the ids are free again

    run(work())


def test_what_is_cancelled_before_it_was_sent_is_never_sent() -> None:
    async def work() -> None:
        member = FakeGeneratorMember("g0")
        pool, _ = generators(member)
        waits = pool.begin(requests("a", 2))
        waits[0].cancel()
        await waits[1]
        assert member.batches == [["a/1"]] and member.aborted == set()
        waits = pool.begin(requests("b", 2))
        for wait in waits:
            wait.cancel()
        await settle()
        assert member.batches == [["a/1"]]
        assert [queue.load for queue in pool._queues.values()] == [0]

    run(work())


def test_what_is_cancelled_after_its_member_died_is_ended_where_it_went() -> None:
    async def work() -> None:
        dying = FakeGeneratorMember("g0", hold=True)
        pool, _ = generators(dying)
        (wait,) = pool.begin(requests("a", 1))
        await settle()
        heir = FakeGeneratorMember("g1", hold=True)
        pool.add(heir)
        dying.die()
        await settle()
        wait.cancel()
        await settle()
        assert (dying.aborted, heir.aborted) == (set(), {"a/0"})
        assert heir.served == []

    run(work())
