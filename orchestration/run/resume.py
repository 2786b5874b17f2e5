"""Reads the checkpoint that a run goes on from, and checks that its configuration can go on from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from learner.checkpoint import CheckpointError, Checkpoints, read_state
from orchestration.config.loader import with_present_names
from orchestration.config.resume_rules import check_resumable, same_rewards
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError
from orchestration.sampling.curriculum import stages_of


def checkpoints_of(config: RunConfig) -> Checkpoints:
    """Returns the checkpoints in the run's folder."""
    return Checkpoints(config.folder / "checkpoints", config.checkpoint.keep)


def resume_state(config: RunConfig, checkpoints: Checkpoints) -> tuple[dict[str, Any], Path]:
    """Returns state.json and the folder of the latest checkpoint. Raises ConfigError where `config` cannot go on from it."""
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        raise ConfigError(f"nothing to resume: {checkpoints.folder} holds no whole checkpoint")
    try:
        state = read_state(checkpoint)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    if "curriculum" not in state:
        raise ConfigError(f"{checkpoint} was written before there were stages: this version cannot go on from it")
    if is_over(config, state):
        more = "give the last stage more iterations, or add a stage" if config.stages else "raise run.iterations"
        raise ConfigError(
            f"nothing to do: {checkpoint} is at iteration {state['iteration']} of {config.iterations}: {more}"
        )
    _check_environments(config, state)
    try:
        before = with_present_names(yaml.safe_load((config.folder / "config.yaml").read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"the run's own configuration cannot be read, so it cannot be resumed: {error}") from None
    now = json.loads(config.model_dump_json())
    check_resumable(before, now, state["curriculum"]["stage"])
    # The checkpoint's own rewards: a run that was resumed with others and killed before its first checkpoint has left config.yaml.
    if not same_rewards(state.get("rewards") or before.get("rewards") or {}, now["rewards"]):
        state.pop("drift", None)  # the monitor compares with the start of the same reward
    return state, checkpoint


def _check_environments(config: RunConfig, state: Mapping[str, Any]) -> None:
    before, now = len(state["curriculum"]["given"][0]), len(config.all_environments)
    if before > now or (before != now and not config.stages):
        raise ConfigError(
            f"the run had {before} environments and now has {now}: a resumed run cannot change their number"
        )


def is_over(config: RunConfig, state: Mapping[str, Any]) -> bool:
    """Decides whether a checkpoint's state is the end of the run: of its last stage, or of its iterations."""
    at, stages = state["curriculum"], stages_of(config)
    last_ended = at["stage"] + 1 == len(stages) and stages[-1].ends_at(at["iteration"], at["rewards"])
    return last_ended or state["iteration"] >= config.iterations


def is_finished(config: RunConfig) -> bool:
    """Decides whether the latest checkpoint of the run's folder is its end."""
    latest = checkpoints_of(config).latest()
    try:
        return latest is not None and is_over(config, read_state(latest))
    except CheckpointError:
        return False  # `resume_state` reports what is wrong with it
