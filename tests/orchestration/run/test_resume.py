"""The checkpoint that a run goes on from: when there is nothing left to do, and what refuses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.builders import config_data, stages_data, stopped_run

from learner.checkpoint import Checkpoints
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import ConfigError
from orchestration.run.resume import checkpoints_of, is_finished, is_over, resume_state


def run_in(folder: Path, iterations: int = 9, **changes: Any) -> RunConfig:
    return validate(config_data() | {"run": {"name": "demo", "iterations": iterations, "dir": str(folder)}} | changes)


def test_a_run_is_over_with_its_last_stage_or_its_cap() -> None:
    config = validate(stages_data(advance={"reward": 0.5, "window": 1}))

    def over(iteration: int, stage: int, done: int, rewards: list[float]) -> bool:
        return is_over(
            config, {"iteration": iteration, "curriculum": {"stage": stage, "iteration": done, "rewards": rewards}}
        )

    assert not over(3, 0, 3, [])
    assert not over(4, 1, 1, [0.4])
    assert over(4, 1, 1, [0.6])
    assert over(8, 1, 5, [0.1])


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        ({}, {"precision": "bf16"}, "precision.mode was fp32 and is now bf16"),
        ({"precision": "bf16"}, {"precision": "bf16-fp32head"}, "precision.mode was bf16 and is now bf16-fp32head"),
        (
            {"precision": {"mode": "bf16", "allow_mixed": True}},
            {"precision": {"mode": "bf16", "allow_mixed": True}, "learner": {"lr": 0.1, "precision": "fp32"}},
            "learner.precision was bf16 and is now fp32",
        ),
        ({"precision": "bf16"}, {"precision": "bf16", "learner": {"lr": 0.1, "precision": "bf16"}}, None),
        ({"precision": "bf16"}, {"precision": {"mode": "bf16", "allow_mixed": True}}, None),
    ],
)
def test_a_resumed_run_may_not_change_its_precision(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], refused: str | None
) -> None:
    old, new = run_in(tmp_path, **before), run_in(tmp_path, **now)
    checkpoints = stopped_run(old)
    if refused is None:
        assert resume_state(new, checkpoints)[1] == checkpoints.latest()
        return
    with pytest.raises(ConfigError, match=refused):
        resume_state(new, checkpoints)


def test_what_cannot_be_resumed_is_one_sentence(tmp_path: Path) -> None:
    config = run_in(tmp_path)
    with pytest.raises(ConfigError, match=r"nothing to resume: \S+ holds no whole checkpoint"):
        resume_state(config, checkpoints_of(config))
    assert not is_finished(config)
    checkpoints = stopped_run(config)
    done = run_in(tmp_path, iterations=1)
    with pytest.raises(ConfigError, match=r"at iteration 1 of 1: raise run\.iterations"):
        resume_state(done, checkpoints)
    assert is_finished(done) and not is_finished(config)
    fewer = run_in(tmp_path, environments=[{"name": "countdown"}])
    with pytest.raises(ConfigError, match="the run had 2 environments and now has 1"):
        resume_state(fewer, checkpoints)
    (config.folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="the run's own configuration cannot be read"):
        resume_state(config, checkpoints)


def test_a_checkpoint_from_before_there_were_stages_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    with checkpoints.writing(1) as draft:
        checkpoints.commit(draft, {"iteration": 1})
    with pytest.raises(ConfigError, match="was written before there were stages"):
        resume_state(run_in(tmp_path), checkpoints)
