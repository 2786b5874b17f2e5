"""The loop beside generators that work ahead: stops, resumes and stages, over fakes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from support.builders import stages_data
from support.fakes import FakeRun

from envs import catalog
from learner.checkpoint import Checkpoints, read_state
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import Stopped
from orchestration.run.loop import Run
from orchestration.run.state import RunState
from orchestration.run.stop import StopSignal
from orchestration.sampling.asynchronous import AsynchronousProducer
from orchestration.sampling.curriculum import Curriculum, stages_of


def asynchronous(config: RunConfig, folder: Path, stop: StopSignal | None = None, saved: Path | None = None) -> FakeRun:
    """Runs with batch.staleness, from a checkpoint where one is given; `stop` is set when the third batch is trained on."""
    fake, trained = FakeRun(), itertools.count(1)

    async def train(batches: Sequence[Any]) -> dict[str, float]:
        fake.events.append(("train",))
        if stop is not None and next(trained) == 3:
            stop.set(2)
        return {"loss": 0.0}

    fake.train = train  # type: ignore[method-assign]
    environments = [catalog.load(e.name, e.params, seed=0) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), 0, config.batch.adaptive)
    state = RunState.fresh(config, curriculum)
    if saved is not None:
        state.load_state_dict(read_state(saved), saved)
        fake.version = state.policy_version
    assert state.pending is not None
    anything = cast("Any", fake)
    producer = AsynchronousProducer(config, curriculum, anything, state.pending)
    run = Run(config, anything, producer, anything, state, Checkpoints(folder, 9), anything, stop or StopSignal())

    async def main() -> None:
        try:
            await run.train()
        finally:
            await producer.close()

    if stop is None:
        asyncio.run(main())
    else:
        with pytest.raises(Stopped):
            asyncio.run(main())
    return fake


def prompts_of(fake: FakeRun) -> list[str]:
    return [key for name, keys, *_ in (e for e in fake.events if len(e) == 3) for key in keys if "iteration" in name]


@pytest.mark.parametrize("adaptive", [None, {"revisit": 0.5}])
def test_an_asynchronous_run_that_is_stopped_trains_on_the_same_prompts(
    tmp_path: Path, adaptive: dict[str, Any] | None
) -> None:
    data = stages_data()
    data["environments"] = data.pop("stages")[0]["environments"]
    data["batch"] |= {"staleness": 2, "ahead": 2, "adaptive": adaptive}
    data["run"]["iterations"] = 6
    data["evaluation"] = {"prompts": 0}
    config = validate(data)
    whole = asynchronous(config, tmp_path / "whole")
    ages = [r["staleness/max"] for r in whole.rows]
    assert len(ages) == 6 and 0 < max(ages) <= 2
    first = asynchronous(config, tmp_path / "stopped", StopSignal())
    saved = Checkpoints(tmp_path / "stopped", 9).latest()
    assert saved is not None
    second = asynchronous(config, tmp_path / "stopped", saved=saved)
    assert [r["iteration"] for r in (*first.rows, *second.rows)] == [1, 2, 3, 4, 5, 6]
    again = read_state(saved)["pending"]["running"]
    assert (
        len(prompts_of(first)) + len(prompts_of(second)) - len(again)
        == len(prompts_of(whole))
        == 6 * config.batch.prompts
    )
    if adaptive is None:
        assert sorted(set(prompts_of(first)) | set(prompts_of(second))) == sorted(prompts_of(whole))


def test_an_advance_rule_ends_an_asynchronous_stage_and_says_what_is_left(tmp_path: Path) -> None:
    data = stages_data()
    data["batch"] |= {"staleness": 1}
    data["stages"][0] |= {"iterations": 9, "advance": {"reward": 0.1, "window": 2}}
    data["stages"][1]["iterations"] = 2
    data["evaluation"] = {"prompts": 0}
    config = validate(data)
    fake = asynchronous(config, tmp_path)
    n = config.batch.prompts
    said = f"0 groups of the stage were still under way and {n} waited: they are not trained on"
    assert [e[1] for e in fake.events if e[0] == "event" and "still under way" in e[1]] == [said]
    assert [(r["stage/index"], r["stage/iteration"]) for r in fake.rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]
