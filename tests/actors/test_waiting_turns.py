"""A turn that waits for weights: what ends its wait. A generator has no limit of its own for it, so every case is here.

A new transfer, `forget` (a learner group that is built anew) and `close`: test_generator.py. The driver's death:
tests/integration/test_waiting_turns.py. What is left is a transfer that is never made again: the health monitor's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.fakes import FakeEngine, fake_response
from support.pools import requests, run, settle

from actors.generator import Generator
from actors.handles import RemoteGenerator
from actors.health.lifeline import MemberDied
from actors.health.monitor import HealthMonitor
from actors.health.state import HealthLimits
from actors.inference import Aborted
from actors.pool import GeneratorPool
from learner.weights.protocol import WeightManifest, WeightSyncError

LIMITS = HealthLimits(silent_s=10.0, stalled_s=40.0, key="generators.timeout_s")


def remote(call: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(remote=call)


async def streamed(generator: Generator, asked: Sequence[Any]) -> AsyncIterator[Awaitable[Any]]:
    """Yields a reference for each message, as a streaming call of Ray's does."""
    async for completions in generator.stream(asked):
        reference = asyncio.get_running_loop().create_future()
        reference.set_result(completions)
        yield reference


def handle(name: str) -> tuple[RemoteGenerator, Generator, FakeEngine]:
    """Returns the handle that a run has, over a generator of this process in the place of Ray's actor."""
    engine = FakeEngine()
    generator = Generator(engine, name=name)
    generator.mark_current(0)

    async def beat() -> int:
        return generator.done

    actor = SimpleNamespace(
        stream=remote(lambda asked: streamed(generator, asked)),
        sequence_logprobs=remote(generator.sequence_logprobs),
        beat=remote(beat),
        abort=remote(generator.abort),
        receive_weights=remote(generator.receive_weights),
    )
    return RemoteGenerator(name, cast("Any", actor), 5.0), generator, engine


async def break_transfer(generator: Generator, engine: FakeEngine) -> None:
    engine.fail_next_receive = WeightSyncError("generator", "load of version 1", "broken")
    with pytest.raises(WeightSyncError):
        await generator.receive_weights(WeightManifest(1, ()), 1.0)


async def let_pass(monitor: HealthMonitor, clock: list[float], seconds: int) -> None:
    for _ in range(seconds):
        clock[0] += 1.0
        monitor.turn()
        await settle()


@pytest.mark.parametrize("others", [0, 1])
def test_a_transfer_that_is_never_made_again_costs_the_generator_its_place_and_no_turn(others: int) -> None:
    async def work() -> None:
        clock, deaths = [0.0], list[MemberDied]()
        waiting, generator, engine = handle("generator 0")
        pool = GeneratorPool([waiting], deaths.append)

        def on_dead(kind: str, member: Any, death: MemberDied) -> None:
            deaths.append(death)
            member.give_up(death)
            pool.bury(death)

        monitor = HealthMonitor(on_dead, lambda: clock[0])
        monitor.watch(waiting, "generator", LIMITS)
        await break_transfer(generator, engine)
        futures = pool.begin(requests("a", 3))
        if others:
            pool.add(handle("generator 1")[0])
        await let_pass(monitor, clock, 40)
        assert not deaths and not any(f.done() for f in futures)
        await let_pass(monitor, clock, 2)
        (death,) = deaths
        assert str(death) == (
            "generator 0 is gone: it has work and made no progress for 41 s (generators.timeout_s = 40)"
        )
        if not others:  # they wait for the replacement, which the cluster makes
            assert pool.starved
            pool.add(handle("generator 1")[0])
        assert list(await asyncio.gather(*futures)) == [fake_response(r, 0) for r in requests("a", 3)]
        await monitor.stop()

    run(work())


def test_a_comparison_that_waits_for_weights_ends_with_its_generator() -> None:
    async def work() -> None:
        clock = [0.0]
        waiting, generator, engine = handle("generator 0")
        monitor = HealthMonitor(lambda kind, member, death: member.give_up(death), lambda: clock[0])
        monitor.watch(waiting, "generator", LIMITS)
        await break_transfer(generator, engine)
        asked = asyncio.ensure_future(waiting.sequence_logprobs([[1, 2]]))
        await settle()
        await let_pass(monitor, clock, 42)
        with pytest.raises(MemberDied, match="generator 0 is gone: it has work and made no progress"):
            await asked
        await monitor.stop()

    run(work())


def test_a_generator_without_turns_may_wait_for_weights_as_long_as_it_likes() -> None:
    async def work() -> None:
        clock, deaths = [0.0], list[MemberDied]()
        waiting, generator, engine = handle("generator 0")
        monitor = HealthMonitor(lambda kind, member, death: deaths.append(death), lambda: clock[0])
        monitor.watch(waiting, "generator", LIMITS)
        await break_transfer(generator, engine)
        await let_pass(monitor, clock, 400)
        assert deaths == []
        await monitor.stop()

    run(work())


def test_a_transfer_may_take_longer_than_a_generator_may_be_without_a_step() -> None:
    """Turns are under way in an asynchronous run; a healthy generator was given up in the middle of a long transfer."""
    began, go_on = threading.Event(), threading.Event()

    def slow(manifest: WeightManifest, timeout_s: float) -> int:
        began.set()
        assert go_on.wait(10)
        raise WeightSyncError("generator", "bucket 3 of version 1", "the learner is gone")

    async def work() -> None:
        clock, deaths = [0.0], list[MemberDied]()
        waiting, _, engine = handle("generator 0")
        engine.receive_weights = slow  # type: ignore[method-assign]
        monitor = HealthMonitor(lambda kind, member, death: deaths.append(death), lambda: clock[0])
        monitor.watch(waiting, "generator", LIMITS)
        transfer = asyncio.ensure_future(waiting.receive_weights(WeightManifest(1, ()), 1.0, []))
        await asyncio.to_thread(began.wait, 10)
        GeneratorPool([waiting], deaths.append).begin(requests("a", 3))
        await let_pass(monitor, clock, 400)
        assert deaths == []
        go_on.set()
        with pytest.raises(WeightSyncError, match="the learner is gone"):
            await transfer
        await let_pass(monitor, clock, 40)
        assert deaths == []
        await let_pass(monitor, clock, 3)
        assert [d.name for d in deaths] == ["generator 0"]
        await monitor.stop()

    run(work())


def test_a_turn_that_nobody_waits_for_any_more_is_not_begun_after_the_transfer() -> None:
    async def work() -> None:
        waiting, generator, engine = handle("generator 0")
        pool = GeneratorPool([waiting], lambda death: None)
        await break_transfer(generator, engine)
        left, over = pool.begin(requests("a", 3)), pool.begin(requests("b", 2))
        await settle()
        for future in (*over, left[1]):
            future.cancel()
        await settle()
        while pool.aborted < 3 or engine.events[-1][0] != "abort":
            await asyncio.sleep(0.001)
        await generator.receive_weights(WeightManifest(1, ()), 1.0)
        assert [c.id for c in await asyncio.gather(left[0], left[2])] == ["a/0", "a/2"]
        assert [e[1] for e in engine.events if e[0] == "submit"] == [("a/0", "a/2")]
        assert pool.begin(requests("b", 1))  # the name is free again

    run(work())


def test_a_stream_all_of_whose_turns_were_ended_says_so() -> None:
    async def work() -> None:
        _, generator, engine = handle("generator 0")
        await break_transfer(generator, engine)

        async def collect() -> list[Any]:
            return [c async for batch in generator.stream(requests("a", 2)) for c in batch]

        asked = asyncio.ensure_future(collect())
        await settle()
        await generator.abort(["a/0", "a/1"])
        await generator.receive_weights(WeightManifest(1, ()), 1.0)
        with pytest.raises(Aborted):
            await asked

    run(work())
