"""Decides whether a configuration can go on from another one's checkpoint. Pure: both are given as plain data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from learner.settings import BODY
from orchestration.config.reward_sections import RewardsSection
from orchestration.errors import ConfigError

# What a resumed run may not change: the optimiser's state or the statistics would be of two runs. How many ranks share the state,
# and at which ZeRO stage, may change.
FIXED_ON_RESUME = (
    "precision.mode",
    "learner.precision",
    "run.seed",
    "batch.prompts",
    "batch.responses",
    "batch.adaptive",
    "learner.betas",
    "learner.eps",
    "learner.weight_decay",
    "learner.lora",
    "model.path",
    "entropy.method",
    "entropy.controller",
)


def check_resumable(before: dict[str, Any], now: dict[str, Any], stage: int) -> None:
    """Raises ConfigError where `now` changes what a resumed run has to keep.

    before  the run's config.yaml, with present key names; it may be older than some keys
    now     the configuration that continues the run, as JSON values
    stage   index of the stage that the checkpoint is in
    """
    for data in (before, now):
        resolve_precision(data)
    check_same_stages(before.get("stages", []), now["stages"], stage)
    for key in FIXED_ON_RESUME:
        section, name = key.split(".")
        was, is_now = before[section].get(name), now[section][name]
        if was != is_now:
            raise ConfigError(f"{key} was {was} and is now {is_now}: a resumed run cannot change it")
    was, is_now = ((data.get("diversity") or {}).get("controller") for data in (before, now))
    if was and is_now and was != is_now:
        raise ConfigError(f"diversity.controller was {was} and is now {is_now}: a resumed run cannot change it")
    own, other = (sorted(data["entropy"].get("environments") or {}) for data in (before, now))
    if own != other:
        raise ConfigError(
            f"entropy.environments had targets for {', '.join(own) or 'none'} and now has them for {', '.join(other) or 'none'}: a "
            "resumed run keeps its controllers, and may change their targets"
        )


def check_same_stages(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], current: int) -> None:
    """Raises ConfigError unless the stages that were begun stay as they are, but for the end of the present one.

    Stages that are still to come may be other ones.
    """
    if bool(before) != bool(now) or len(now) <= min(current, len(before) - 1):
        raise ConfigError(
            f"the run was in stage {current} of {len(before) or 1} and now has {len(now) or 1}: a resumed run keeps its stages "
            "and may add to them"
        )
    for index in range(min(current + 1, len(before))):
        for key in ("name", "environments", *(("iterations", "advance") if index < current else ()), "overrides"):
            if not _same(before[index][key], now[index][key]):
                raise ConfigError(
                    f"stages.{index}.{key} was {before[index][key]} and is now {now[index][key]}: the stage has begun, a resumed "
                    "run cannot change it"
                )


def _same(before: Any, now: Any) -> bool:
    """Compares values of a stage. An environment of a run that is older than `train_prompts` is one without it."""
    if isinstance(before, list) and isinstance(now, list):
        return [{"train_prompts": None, **e} for e in before] == now
    return before == now


def changed_keys(before: Any, now: Any, key: str = "") -> list[str]:
    """Names every key whose value differs, with both values, one line each. Both are configurations as JSON values."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(str(k), before.get(k), now.get(k)) for k in {**before, **now}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(i), was, is_now) for i, (was, is_now) in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [f"{key}: the run had {_short(before)}, it goes on with {_short(now)}"]
    return [line for k, was, is_now in pairs for line in changed_keys(was, is_now, f"{key}.{k}" if key else k)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."


def resolve_precision(data: dict[str, Any]) -> None:
    """Sets learner.precision to the one that was used: left out, it follows the switch. Runs older than the switch had it alone."""
    learner = data["learner"]
    switch = data.setdefault("precision", {"mode": learner["precision"]})
    learner["precision"] = learner["precision"] or BODY[switch["mode"]]


def same_rewards(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Decides whether two `rewards` sections, of which `before` may be older than some keys, give the same reward."""
    with contextlib.suppress(ValidationError):  # what this version refuses differs from `now`
        before = json.loads(RewardsSection.model_validate(before).model_dump_json())
    return before == now
