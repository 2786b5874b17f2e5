"""The generator's states and its streaming, over a fake engine."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest
from support.fakes import FakeEngine, fake_response

from actors.generator import Generator, GeneratorAsleep, StaleGenerator
from actors.inference import Completion, EngineDead, Request, SamplingParams
from learner.weights.protocol import WeightManifest, WeightSyncError

REQUESTS = [Request(f"r{i}", (1, 2, i), SamplingParams(8, stop_token_ids=(3,)), seed=i) for i in range(12)]


async def collect(generator: Generator, requests: list[Request]) -> list[Completion]:
    return [item async for batch in generator.stream(requests) for item in batch]


def test_a_new_generator_refuses_to_serve() -> None:
    engine = FakeEngine()
    generator = Generator(engine, name="generator 1")
    with pytest.raises(StaleGenerator, match="generator 1 has weights nobody has called current, but version 0"):
        asyncio.run(collect(generator, REQUESTS))
    with pytest.raises(StaleGenerator):
        asyncio.run(generator.sequence_logprobs([[1, 2]]))
    assert engine.events == []


def test_base_weights_can_be_marked_current_only_as_the_version_they_are() -> None:
    generator = Generator(FakeEngine(version=4))
    with pytest.raises(ValueError, match="weights of version 4, so they cannot be called version 0"):
        generator.mark_current(0)
    generator.mark_current(4)
    assert not generator.stale
    assert generator.required == 4


def test_a_replacement_serves_only_from_the_required_version_on() -> None:
    engine = FakeEngine()
    generator = Generator(engine, required=7)
    generator.mark_current(0)
    assert generator.stale
    assert asyncio.run(generator.receive_weights(WeightManifest(6, ()), 1.0)) == 6
    with pytest.raises(StaleGenerator, match="version 6, but version 7 is the current one"):
        asyncio.run(collect(generator, REQUESTS))
    asyncio.run(generator.receive_weights(WeightManifest(7, ()), 1.0))
    responses = asyncio.run(collect(generator, REQUESTS))
    assert {response.version_min for response in responses} == {7}
    assert [event[0] for event in engine.events[:3]] == ["receive", "receive", "submit"]


def test_requiring_a_newer_version_stops_service() -> None:
    generator = Generator(FakeEngine())
    generator.mark_current(0)
    generator.require(1)
    assert generator.stats().stale
    with pytest.raises(StaleGenerator):
        asyncio.run(collect(generator, REQUESTS))


def test_a_failed_transfer_leaves_it_stale_until_one_succeeds() -> None:
    engine = FakeEngine()
    generator = Generator(engine)
    generator.mark_current(0)
    engine.fail_next_receive = WeightSyncError("generator", "load of version 1", "broken")
    with pytest.raises(WeightSyncError, match="load of version 1"):
        asyncio.run(generator.receive_weights(WeightManifest(1, ()), 1.0))
    assert generator.stale
    assert generator.version is None
    asyncio.run(generator.receive_weights(WeightManifest(1, ()), 1.0))
    assert not generator.stale


def test_completions_stream_as_they_finish_and_coalesce() -> None:
    async def run() -> None:
        engine = FakeEngine(hold=True)
        generator = Generator(engine)
        generator.mark_current(0)
        batches = generator.stream(REQUESTS)
        first: asyncio.Task[Any] = asyncio.ensure_future(anext(batches))
        await asyncio.wait_for(asyncio.to_thread(engine.submitted.wait, 5), 5)
        engine.release(5)
        assert await asyncio.wait_for(first, 5) == [fake_response(request, 0) for request in REQUESTS[:5]]
        second: asyncio.Task[Any] = asyncio.ensure_future(anext(batches))
        await asyncio.to_thread(engine.release)  # from another thread, as a real engine does
        rest = await asyncio.wait_for(second, 5)
        rest += [item async for batch in batches for item in batch]
        assert [item.id for item in rest] == [request.id for request in REQUESTS[5:]]
        assert engine.events[0] == ("submit", tuple(request.id for request in REQUESTS), 0)

    asyncio.run(run())


def test_the_death_of_the_engine_reaches_the_stream() -> None:
    async def run() -> list[Completion]:
        engine = FakeEngine(hold=True)
        generator = Generator(engine)
        generator.mark_current(0)
        got: list[Completion] = []

        async def read() -> None:
            async for batch in generator.stream(REQUESTS):
                got.extend(batch)

        task = asyncio.ensure_future(read())
        await asyncio.to_thread(engine.submitted.wait, 5)
        engine.release(2)
        engine.die(RuntimeError("out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"):
            await asyncio.wait_for(task, 5)
        return got

    assert [item.id for item in asyncio.run(run())] == ["r0", "r1"]


def test_an_empty_stream_ends_at_once() -> None:
    generator = Generator(FakeEngine())
    generator.mark_current(0)
    assert asyncio.run(collect(generator, [])) == []


def test_close_frees_the_engine_and_ends_service() -> None:
    engine = FakeEngine()
    generator = Generator(engine)
    generator.mark_current(0)
    generator.close()
    assert engine.events == [("close",)]
    assert generator.stale


def test_stale_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(StaleGenerator("generator 2", 3, 5)))
    assert (error.name, error.loaded, error.required) == ("generator 2", 3, 5)
    assert "version 3" in str(error)


def test_what_is_asked_during_a_transfer_waits_for_its_end() -> None:
    engine, received, go_on = FakeEngine(), threading.Event(), threading.Event()

    def slow(manifest: WeightManifest, timeout_s: float) -> int:
        received.set()
        assert go_on.wait(10)
        engine.version = manifest.version
        return 0

    engine.receive_weights = slow  # type: ignore[method-assign]

    async def work() -> None:
        generator = Generator(engine)
        generator.mark_current(0)
        transfer = asyncio.ensure_future(generator.receive_weights(WeightManifest(1, ()), 1.0))
        await asyncio.to_thread(received.wait, 10)
        asked = asyncio.ensure_future(collect(generator, REQUESTS))
        scored = asyncio.ensure_future(generator.sequence_logprobs([[1, 2]]))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not asked.done() and not scored.done() and engine.events == []
        go_on.set()
        await transfer
        assert {response.version_min for response in await asked} == {1}
        assert await scored == [[-2.0]]

    asyncio.run(asyncio.wait_for(work(), 20))


def test_what_will_be_asked_is_scored_as_soon_as_its_weights_are_there_and_once() -> None:
    async def work() -> None:
        engine = FakeEngine()
        generator, manifest = Generator(engine), [WeightManifest(version, ()) for version in range(6)]
        await generator.receive_weights(manifest[1], 1.0, [[1, 2]])
        while ("score", 1, 1) not in engine.events:
            await asyncio.sleep(0.001)
        assert await generator.sequence_logprobs([(1, 2)]) == [[-2.0]]
        assert engine.events == [("receive", 1), ("score", 1, 1)]
        assert await generator.sequence_logprobs([(1, 2)]) == [[-2.0]]  # asked again, it is scored again
        await generator.receive_weights(manifest[2], 1.0, [[1, 2]])
        assert await generator.sequence_logprobs([[1, 2], [3, 4]]) == [[-2.0], [-4.0]]  # others than those begun
        await generator.receive_weights(manifest[3], 1.0, [[1, 2]])
        while ("score", 1, 3) not in engine.events:
            await asyncio.sleep(0.001)
        await generator.receive_weights(manifest[4], 1.0)  # what was begun is of the version before
        before = len(engine.events)
        assert await generator.sequence_logprobs([[1, 2]]) == [[-2.0]]
        assert engine.events[before:] == [("score", 1, 4)]
        await generator.sleep()
        await generator.receive_weights(manifest[5], 1.0, [[1, 2]])  # its cache sleeps
        await generator.wake("kv_cache")
        assert engine.events[-3:] == [("sleep",), ("receive", 5), ("wake", "kv_cache")]

    asyncio.run(asyncio.wait_for(work(), 20))


def test_an_engine_that_ends_while_it_scores_is_told_to_who_asks() -> None:
    async def work() -> None:
        engine = FakeEngine()

        def dead(sequences: Any) -> list[list[float]]:
            raise EngineDead("it was closed")

        engine.sequence_logprobs = dead  # type: ignore[method-assign]
        generator = Generator(engine)
        await generator.receive_weights(WeightManifest(1, ()), 1.0, [[1, 2]])
        with pytest.raises(EngineDead):
            await generator.sequence_logprobs([[1, 2]])

    asyncio.run(asyncio.wait_for(work(), 20))


@pytest.mark.parametrize("end", ["the next transfer", "forget", "close"])
def test_after_a_failed_transfer_it_waits_for_the_next(end: str) -> None:
    async def work() -> None:
        engine = FakeEngine()
        generator = Generator(engine)
        generator.mark_current(0)
        engine.fail_next_receive = WeightSyncError("generator", "load of version 1", "broken")
        with pytest.raises(WeightSyncError):
            await generator.receive_weights(WeightManifest(1, ()), 1.0)
        asked = asyncio.ensure_future(collect(generator, REQUESTS))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not asked.done()
        if end == "the next transfer":
            await generator.receive_weights(WeightManifest(1, ()), 1.0)
            assert len(await asked) == len(REQUESTS)
        else:
            generator.forget() if end == "forget" else generator.close()
            with pytest.raises(StaleGenerator):
                await asked

    asyncio.run(asyncio.wait_for(work(), 20))


# --- sleep --------------------------------------------------------------------------------------------------------------


def test_a_generator_serves_only_with_both_parts_of_its_memory_awake() -> None:
    async def work() -> None:
        engine = FakeEngine()
        generator = Generator(engine, name="generator 3")
        generator.mark_current(0)
        await generator.sleep()
        for memory in ("weights", "kv_cache"):
            for asked in (collect(generator, REQUESTS), generator.sequence_logprobs([[1, 2]])):
                with pytest.raises(GeneratorAsleep, match="generator 3 sleeps while the learner has its GPU"):
                    await asked
            await generator.wake(memory)
        assert len(await collect(generator, REQUESTS)) == len(REQUESTS)
        assert [e[:2] for e in engine.events[:4]] == [
            ("sleep",),
            ("wake", "weights"),
            ("wake", "kv_cache"),
            engine.events[3][:2],
        ]
        assert engine.events[3][0] == "submit"

    asyncio.run(work())


def test_weights_that_arrive_wake_the_weights_and_nothing_else() -> None:
    async def work() -> None:
        generator = Generator(FakeEngine())
        generator.mark_current(0)
        await generator.sleep()
        await generator.receive_weights(WeightManifest(1, ()), 1.0)
        with pytest.raises(GeneratorAsleep):
            await collect(generator, REQUESTS)
        await generator.wake("kv_cache")
        assert {r.version_min for r in await collect(generator, REQUESTS)} == {1}

    asyncio.run(work())


def test_being_asleep_can_be_told_across_processes() -> None:
    assert str(pickle.loads(pickle.dumps(GeneratorAsleep("generator 0")))).startswith("generator 0 sleeps")
