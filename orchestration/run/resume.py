"""Reads what a run goes on from, its own configuration and a checkpoint, and checks both before anything is started."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes none of the standard library's before Python 3.12

from envs.quoting import shortened
from learner.checkpoint import CheckpointError, Checkpoints, read_state, verify
from orchestration.config.loader import parse_overrides, put, read_yaml, sentence
from orchestration.config.resume_rules import changed_keys, check_resumable, same_rewards
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import ConfigError
from orchestration.run.folder import CONFIG, look_where_it_looked
from orchestration.sampling.curriculum import stages_of

Count = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, Field(strict=True)]


class _Curriculum(TypedDict):
    stage: Count
    iteration: Count
    rewards: list[Number]
    given: Annotated[list[list[Count]], Field(min_length=1)]
    again: NotRequired[list[Count]]
    tried: NotRequired[list[list[tuple[Count, Number, Number]]]]


class _Series(TypedDict):
    count: Count
    first: list[Number]
    last: list[Number]
    squares: Number


class _AllSeries(TypedDict):
    reward: _Series
    check: _Series
    length: _Series


class _Drift(TypedDict):
    stage: Number
    checked: bool
    before: dict[str, Number]
    now: dict[str, Number]
    series: _AllSeries


class _Alarms(TypedDict):
    runs: dict[str, Annotated[int, Field(strict=True)]]


class _Learner(TypedDict):
    steps: Count
    steering: dict[str, dict[str, dict[str, Number]]]
    ledger: dict[str, Number]


class _Pending(TypedDict):
    next: Count
    running: list[tuple[Count, Count, Count, bool]]
    finished: list[Count]


class _State(TypedDict):
    """Says what state.json is made of; older checkpoints lack some of it."""

    iteration: Count
    policy_version: Count
    owes_evaluation: bool
    rewards: NotRequired[dict[str, Any]]
    curriculum: _Curriculum
    drift: NotRequired[_Drift]
    alarms: NotRequired[_Alarms]
    learner: _Learner
    pending: NotRequired[_Pending]


@dataclass(frozen=True, slots=True)
class Resumed:
    """Holds what a run goes on from.

    notes  lines for a person: checkpoints that cannot be used and why, keys that differ from the run's own configuration
    """

    state: dict[str, Any]
    checkpoint: Path
    notes: tuple[str, ...]


def checkpoints_of(config: RunConfig) -> Checkpoints:
    """Returns the checkpoints in the run's folder."""
    return Checkpoints(config.folder / "checkpoints", config.checkpoint.keep)


def config_of_run(run: Path, overrides: Sequence[str]) -> RunConfig:
    """Returns the configuration that the run in a folder was started with, with overrides. Raises ConfigError."""
    data = own_config(run)
    look_where_it_looked(run)
    if (Path(str(data["run"]["dir"])) / str(data["run"]["name"])).resolve() != run.resolve():  # the folder was moved
        data["run"] |= {"dir": str(run.resolve().parent), "name": run.resolve().name}
    for key, value in parse_overrides(overrides):
        put(data, key, value)
    return validate(data)


def own_config(run: Path) -> dict[str, Any]:
    """Reads RUN/config.yaml as JSON values, with the present keys. Raises ConfigError, one sentence."""
    file = run / CONFIG
    try:
        data = read_yaml(file)
    except ConfigError as error:
        raise ConfigError(f"without its own configuration the run cannot be resumed: {error}") from None
    learner = data.get("learner")
    if isinstance(learner, dict) and "precision" not in data and learner.get("precision"):
        data["precision"] = {"mode": learner["precision"]}  # runs older than the switch
    try:
        return json.loads(RunConfig.model_validate(data).model_dump_json())
    except ValidationError as error:
        raise ConfigError(
            f"{file} is not the configuration of a run, so it cannot be resumed: {sentence(error, data, RunConfig)[:500]}"
        ) from None


def resume_from(config: RunConfig, checkpoints: Checkpoints, step: int | None = None) -> Resumed | None:
    """Returns the checkpoint that `config` goes on from, and None where there is none yet: the run starts from nothing.

    step: the iteration of the checkpoint; None: the latest that is whole. Raises ConfigError where `config` cannot go on from it,
    or where none is whole.
    """
    candidates = _candidates(checkpoints, step)
    if not candidates:
        return None
    before, now = own_config(config.folder), json.loads(config.model_dump_json())
    notes, bad = changed_keys(before, now), []
    for checkpoint in candidates:
        try:
            state = _checked_state(checkpoint)
        except CheckpointError as error:
            bad.append(str(error))
            continue
        _check(config, before, now, state, checkpoint)
        notes += [f"a checkpoint cannot be used, the run goes on from {checkpoint.name}: {reason}" for reason in bad]
        return Resumed(state, checkpoint, tuple(notes))
    raise ConfigError(f"no checkpoint in {checkpoints.folder} can be used: {'; '.join(b[:400] for b in bad[:4])}")


def _candidates(checkpoints: Checkpoints, step: int | None) -> list[Path]:
    if step is None:
        return checkpoints.candidates()
    found = checkpoints.at(step)
    if found is None:
        there = ", ".join(p.name for p in checkpoints.steps()) or "none"
        raise ConfigError(f"{checkpoints.folder} has no checkpoint of iteration {step}: there are {there}")
    return [found]


def _checked_state(checkpoint: Path) -> dict[str, Any]:
    """Reads a checkpoint's state and all its files. Raises CheckpointError."""
    state = read_state(checkpoint)
    if "curriculum" not in state:
        raise CheckpointError(f"{checkpoint} was written before there were stages: this version cannot go on from it")
    try:
        TypeAdapter(_State).validate_python(state)
    except ValidationError as error:
        first = error.errors()[0]
        where = shortened(".".join(str(part) for part in first["loc"]))
        raise CheckpointError(f"{checkpoint}/state.json: {where}: {first['msg']}") from None
    verify(checkpoint, state)
    return state


def _check(
    config: RunConfig, before: dict[str, Any], now: dict[str, Any], state: dict[str, Any], checkpoint: Path
) -> None:
    """Raises ConfigError where the run is over or `config` cannot go on from this state."""
    if is_over(config, state):
        more = "give the last stage more iterations, or add a stage" if config.stages else "raise run.iterations"
        raise ConfigError(
            f"nothing to do: {checkpoint} is at iteration {state['iteration']} of {config.iterations}: {more}"
        )
    _check_place(config, before, state)
    _check_pending(config, state)
    check_resumable(before, now, state["curriculum"]["stage"])
    # The checkpoint's own rewards: a run that was resumed with others and killed before its first checkpoint has left config.yaml.
    if not same_rewards(state.get("rewards") or before["rewards"], now["rewards"]):
        state.pop("drift", None)  # the monitor compares with the start of the same reward


def _check_place(config: RunConfig, own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raises ConfigError where the state is of a stage that the run did not have, or of more or fewer environments."""
    stage, stages = state["curriculum"]["stage"], len(own["stages"]) or 1
    if stage >= stages:
        raise ConfigError(f"the checkpoint is of stage {stage}, counted from 0, and the run has had {stages}")
    before, now = len(state["curriculum"]["given"][0]), len(config.all_environments)
    if before > now or (before != now and not config.stages):
        raise ConfigError(
            f"the run had {before} environments and now has {now}: a resumed run cannot change their number"
        )


def _check_pending(config: RunConfig, state: Mapping[str, Any]) -> None:
    """Raises ConfigError where groups that were begun would be lost, or name environments that the run does not have."""
    pending: Mapping[str, Any] = state.get("pending", {"running": [], "finished": []})
    count, environments = len(pending["running"]) + len(pending["finished"]), len(config.all_environments)
    if count and not config.batch.staleness:
        raise ConfigError(
            f"the checkpoint has {count} groups that were begun and not trained on, and a run with batch.staleness 0 has none: "
            "resume it with batch.staleness 1 or more"
        )
    if any(environment >= environments for _, environment, *_ in pending["running"]):
        raise ConfigError(f"the checkpoint has groups of environments that are not among the run's {environments}")


def is_over(config: RunConfig, state: Mapping[str, Any]) -> bool:
    """Decides whether a checkpoint's state is the end of the run: of its last stage, or of its iterations, and no evaluation is
    still to be made."""
    if config.evaluation.prompts and state.get("owes_evaluation"):
        return False
    at, stages = state["curriculum"], stages_of(config)
    last_ended = at["stage"] + 1 == len(stages) and stages[-1].ends_at(at["iteration"], at["rewards"])
    return last_ended or state["iteration"] >= config.iterations


def is_finished(config: RunConfig) -> bool:
    """Decides whether the latest checkpoint of the run's folder is its end."""
    latest = checkpoints_of(config).latest()
    try:
        return latest is not None and is_over(config, read_state(latest))
    except CheckpointError:
        return False  # `resume_from` reports what is wrong with it
