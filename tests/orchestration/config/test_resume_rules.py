"""Tests what a resumed run may not change: its stages so far, its precision, and the keys that its statistics depend on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.builders import config_data, stages_data

from orchestration.config.resume_rules import (
    FIXED_ON_RESUME,
    check_resumable,
    check_same_stages,
    resolve_precision,
    same_rewards,
)
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError


def test_a_resumed_run_keeps_the_stages_it_has_begun() -> None:
    before = validate(stages_data()).model_dump(mode="json")["stages"]

    def now(**second: Any) -> list[dict[str, Any]]:
        return validate(stages_data(**second)).model_dump(mode="json")["stages"]

    check_same_stages(before, now(name="other", environments=[{"name": "arithmetic"}]), 0)  # it was still to come
    check_same_stages(before, now(iterations=9, advance={"reward": 0.5}), 1)  # the end of the present one
    check_same_stages([], [], 0)
    with pytest.raises(ConfigError, match=r"stages\.1\.name was two and is now other: the stage has begun"):
        check_same_stages(before, now(name="other"), 1)
    longer = now()
    longer[0]["iterations"] = 7
    with pytest.raises(ConfigError, match=r"stages\.0\.iterations was 3 and is now 7"):
        check_same_stages(before, longer, 1)
    for stages, current in (([], 1), (before[:1], 1)):
        with pytest.raises(ConfigError, match=r"the run was in stage 1 of 2 and now has 1"):
            check_same_stages(before, stages, current)


def test_a_run_older_than_the_switch_can_be_resumed() -> None:
    data: dict[str, Any] = {"learner": {"precision": "bf16"}}
    resolve_precision(data)
    assert (data["learner"]["precision"], data["precision"]["mode"]) == ("bf16", "bf16")


def test_fixed_keys_are_fixed_and_others_are_free() -> None:
    def plain(**changes: Any) -> dict[str, Any]:
        return json.loads(validate(config_data() | changes).model_dump_json())

    check_resumable(plain(), plain(learner={"lr": 0.5}), 0)
    seed = plain()
    seed["run"]["seed"] += 1
    with pytest.raises(ConfigError, match=r"run\.seed was 0 and is now 1: a resumed run cannot change it"):
        check_resumable(plain(), seed, 0)
    for key in FIXED_ON_RESUME:
        section, name = key.split(".")
        assert name in plain()[section], f"{key} is a key of the configuration"


def test_the_environments_that_have_a_controller_are_fixed_and_their_targets_are_free() -> None:
    def plain(**targets: float) -> dict[str, Any]:
        entropy = {"method": {"kind": "repo"}, "controller": {"kind": "doubling"}, "target": {"fraction": 0.7}}
        own = {"environments": {name: {"fraction": value} for name, value in targets.items()}} if targets else {}
        return json.loads(validate(config_data(entropy=entropy | own)).model_dump_json())

    check_resumable(plain(arithmetic=0.5), plain(arithmetic=0.9), 0)
    for before, now in ((plain(), plain(arithmetic=0.5)), (plain(arithmetic=0.5), plain())):
        with pytest.raises(ConfigError, match=r"entropy\.environments had targets for .*arithmetic"):
            check_resumable(before, now, 0)


def test_diversity_may_come_and_go_and_its_target_change_but_not_its_controller() -> None:
    def plain(**section: Any) -> dict[str, Any]:
        return json.loads(validate(config_data(diversity=section)).model_dump_json())

    off = json.loads(validate(config_data()).model_dump_json())
    assert off["diversity"] is None
    older = {key: value for key, value in off.items() if key != "diversity"}
    for before, now in ((off, plain()), (older, plain()), (plain(), off), (older, off)):
        check_resumable(before, now, 0)
    check_resumable(plain(target={"fraction": 0.9}), plain(target={"solutions": 3.0}), 0)
    before, now = (plain(controller={"kind": "fixed", "value": value}) for value in (0.5, 0.6))
    with pytest.raises(ConfigError, match=r"diversity\.controller was .*'value': 0\.5.* and is now .*'value': 0\.6"):
        check_resumable(before, now, 0)


def test_a_reward_is_the_same_whether_its_later_keys_are_written_or_not() -> None:
    now = json.loads(validate(config_data(rewards={"format": {"weight": 0.5}})).rewards.model_dump_json())
    assert same_rewards(now, now)
    assert same_rewards({"format": {"weight": 0.5}}, now)
    assert not same_rewards({"format": {"weight": 0.25}}, now)
    assert not same_rewards({"a term of another version": {}}, now)
