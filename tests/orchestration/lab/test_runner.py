"""Tests which runs of a grid are still to be done, by what an earlier call has left of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.builders import config_data, stopped_run

from orchestration.config.run_config import RunConfig, validate
from orchestration.lab.grid import Cell
from orchestration.lab.runner import Progress, _todo
from orchestration.run import lifecycle


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(lifecycle.preflight, "run_preflight", lambda config: None)
    run = {"name": "cell", "iterations": 1, "dir": str(tmp_path)}
    return validate(config_data() | {"run": run, "evaluation": {"prompts": 2}})


def left(config: RunConfig, overwrite: bool = False) -> tuple[Any, list[Cell]]:
    """Returns the job that is left of the run, and what is counted as done."""
    progress = Progress(1, lambda text: None)
    todo = _todo(Cell("grpo", 0, config), progress, overwrite)
    assert not progress.failed
    return (None if todo is None else todo[1]), progress.done


def test_a_run_whose_last_evaluation_was_interrupted_is_not_finished(config: RunConfig) -> None:
    checkpoints = stopped_run(config, owes_evaluation=True)
    (config.folder / "metrics.jsonl").write_text('{"iteration": 1.0, "reward/mean": 0.5}\n')
    job, done = left(config)
    assert not done and job.checkpoint == checkpoints.latest()
    stopped_run(config, owes_evaluation=False)
    assert left(config)[0] is None and len(left(config)[1]) == 1
    assert left(config, overwrite=True)[0].overwrite


def test_a_run_without_a_checkpoint_begins_anew_and_removes_none_that_comes_meanwhile(config: RunConfig) -> None:
    config.folder.mkdir()
    (config.folder / "config.yaml").write_text(config.to_yaml())
    (config.folder / "metrics.jsonl").write_text('{"iteration": 0.0, "reward/mean": 0.5}\n')
    job, _ = left(config)
    assert job.checkpoint is None and not job.overwrite
