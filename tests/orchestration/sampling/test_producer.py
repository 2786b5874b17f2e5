"""The producer: which pass it asks for, and that an interrupted batch leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from support.builders import stages_data
from support.fakes import FakeRun

from envs import catalog
from orchestration.config.run_config import validate
from orchestration.sampling.curriculum import Curriculum, stages_of
from orchestration.sampling.producer import SynchronousProducer

CONFIG = validate(stages_data(overrides={"sampling.temperature": 0.5}))


def made() -> tuple[SynchronousProducer, Curriculum, FakeRun]:
    environments = [catalog.load(e.name, e.params, seed=0) for e in CONFIG.all_environments]
    curriculum, fake = Curriculum(environments, stages_of(CONFIG), 0), FakeRun()
    return SynchronousProducer(CONFIG, curriculum, cast("Any", fake)), curriculum, fake


def test_a_batch_is_named_by_its_iteration_and_sampled_as_in_its_stage() -> None:
    producer, _, fake = made()
    sampled = asyncio.run(producer.next_batch(3, CONFIG.at_stage(1)))
    assert len(sampled.groups) == CONFIG.batch.prompts
    ((stamp, keys, temperature),) = fake.events
    assert (stamp, temperature) == ("iteration 3", 0.5)
    assert keys == tuple(f"0:countdown/train/{i}" for i in range(CONFIG.batch.prompts))


def test_an_abandoned_batch_is_drawn_again() -> None:
    async def main(steps: int) -> None:
        producer, curriculum, fake = made()
        await producer.next_batch(1, CONFIG)
        before = curriculum.state_dict()
        task = asyncio.ensure_future(producer.next_batch(2, CONFIG))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert (curriculum.state_dict() != before) == (steps > 0)
        producer.abandon()
        assert curriculum.state_dict() == before
        await producer.next_batch(2, CONFIG)
        keys = [event[1] for event in fake.events]
        n = CONFIG.batch.prompts
        assert keys == [tuple(f"0:countdown/train/{i}" for i in range(k * n, k * n + n)) for k in range(2)]

    for steps in (0, 3):  # before its first step, and within it
        asyncio.run(asyncio.wait_for(main(steps), 10))
