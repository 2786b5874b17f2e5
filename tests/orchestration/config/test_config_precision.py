"""Precision as one switch: what it sets, how it is written, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.builders import config_data

from orchestration.config.run_config import load_config, validate
from orchestration.errors import ConfigError


def written(folder: Path, data: Any) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("mode", "trainer", "engine", "head"),
    [
        ("fp32", "fp32", "float32", False),
        ("bf16", "bf16", "bfloat16", False),
        ("fp16", "fp16", "float16", False),
        ("bf16-fp32head", "bf16", "bfloat16", True),
    ],
)
def test_one_switch_sets_trainer_engine_and_head(mode: str, trainer: str, engine: str, head: bool) -> None:
    config = validate(config_data() | {"precision": mode})
    assert (config.trainer_precision, config.engine_dtype, config.fp32_head) == (trainer, engine, head)
    assert config.exact == (mode == "fp32")
    assert validate(config_data(precision={"mode": mode})) == config
    again = validate(yaml.safe_load(config.to_yaml()))
    assert again == config
    # What the switch says anyway may be said again.
    same = validate(config_data(precision={"mode": mode}, learner={"precision": trainer}, generators={"dtype": engine}))
    assert (same.trainer_precision, same.engine_dtype) == (trainer, engine)


def test_a_mixed_pair_has_to_be_asked_for() -> None:
    mixed = validate(config_data(precision={"allow_mixed": True}, generators={"dtype": "bfloat16"}))
    assert (mixed.trainer_precision, mixed.engine_dtype, mixed.exact) == ("fp32", "bfloat16", False)
    assert validate(yaml.safe_load(mixed.to_yaml())) == mixed


@pytest.mark.parametrize("recipe", [None, "fp32", "bf16", {"mode": "fp32"}, {"mode": "bf16", "loss_scale_power": 3}])
@pytest.mark.parametrize(
    ("words", "mode", "allow_mixed"),
    [
        (["precision=fp16"], "fp16", False),
        (["--precision", "fp16"], "fp16", False),
        (["precision.mode=fp16"], "fp16", False),
        (["precision=fp16", "precision.allow_mixed=true"], "fp16", True),
        (["precision.allow_mixed=true", "precision=fp16"], "fp16", True),
        (["precision={mode: fp16, allow_mixed: true}"], "fp16", True),
    ],
)
def test_overrides_of_precision_on_either_form(
    tmp_path: Path, recipe: Any, words: list[str], mode: str, allow_mixed: bool
) -> None:
    data = config_data() if recipe is None else config_data() | {"precision": recipe}
    config = load_config(written(tmp_path, data), words)
    assert (config.precision.mode, config.precision.allow_mixed) == (mode, allow_mixed)


def test_an_override_of_one_key_leaves_the_recipes_mode(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, config_data() | {"precision": "bf16"}), ["precision.allow_mixed=true"])
    assert (config.precision.mode, config.precision.allow_mixed) == ("bf16", True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fp8", "precision.mode is 'fp8': input should be 'fp32', 'bf16', 'fp16' or 'bf16-fp32head'"),
        (16, "precision: 16 is neither a mode, one of fp32, bf16, fp16, bf16-fp32head, nor a section"),
        (["bf16"], "precision: ['bf16'] is neither a mode"),
        ({"mod": "bf16"}, "unknown key precision.mod: did you mean 'mode'?"),
        ({"mode": "fp16", "loss_scale_power": 40}, "precision.loss_scale_power is 40"),
    ],
)
def test_a_precision_that_is_none_is_one_sentence(value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config_data() | {"precision": value})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
