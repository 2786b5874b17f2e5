"""Overrides of the command line, and configurations that go to disk and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import config_data, stages_data
from support.configs import message, written

from learner.entropy import build
from orchestration.config.loader import parse_overrides
from orchestration.config.run_config import (
    load_config,
    validate,
)
from orchestration.errors import ConfigError

# --- overrides ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["learner.lr=1e-4"], ["--learner.lr=1e-4"], ["--learner.lr", "1e-4"], ["--learner.lr", "1.0E-4"]]
)
def test_the_three_forms_of_an_override(tmp_path: Path, words: list[str]) -> None:
    assert load_config(written(tmp_path, config_data()), words).learner.lr == 1e-4


def test_overrides_reach_lists_sections_and_what_the_recipe_left_out(tmp_path: Path) -> None:
    words = [
        "environments.1.weight=3",
        "environments.0.params.numbers=3",
        "--entropy.method.kind",
        "repo_r",
        "entropy.controller={kind: doubling, high: 0.5}",
        "evaluation.temperatures=[1, 0.3]",
        "run.sinks=[jsonl]",
        "cluster.address=null",
        "--learner.packing=true",
        "learner.betas=[0.8, 0.9]",
    ]
    config = load_config(written(tmp_path, config_data()), words)
    assert config.environments[1].weight == 3
    assert config.environments[0].params == {"numbers": 3}
    assert config.entropy.kind == "repo_r"
    assert config.entropy.controller.model_dump()["high"] == 0.5
    assert config.evaluation.temperatures == [1, 0.3]
    assert (config.run.sinks, config.cluster.address, config.learner.packing) == (["jsonl"], None, True)
    assert config.learner.betas == (0.8, 0.9)


def test_the_last_override_counts(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, config_data()), ["run.seed=1", "--run.seed", "2"]).run.seed == 2


@given(st.floats(1e-12, 1e12), st.sampled_from(["{:e}", "{:.3E}", "{!r}", "{:g}"]))
def test_numbers_are_read_however_they_are_written(value: float, form: str) -> None:
    text = form.format(value)
    ((key, parsed),) = parse_overrides([f"learner.lr={text}"])
    assert (key, parsed) == ("learner.lr", float(text))
    assert isinstance(parsed, int | float)


def test_text_that_looks_like_little_stays_text() -> None:
    words = ["a=nan", "b=inf", "c=e5", "d=1e", "e=x=y", "f=", "g=v1e3", "h='1e3'"]
    assert parse_overrides(words) == [
        ("a", "nan"), ("b", "inf"), ("c", "e5"), ("d", "1e"), ("e", "x=y"), ("f", None), ("g", "v1e3"), ("h", "1e3"),
    ]  # fmt: skip


def test_a_file_may_write_1e_minus_4(tmp_path: Path) -> None:
    text = yaml.safe_dump(config_data()).replace("lr: 0.001", "lr: 1e-4")
    assert "lr: 1e-4" in text
    assert load_config(written(tmp_path, text)).learner.lr == 1e-4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["learner.lr"], r"'learner\.lr' is not an override: write learner\.lr=VALUE or --learner\.lr VALUE"),
        (["--learner.lr"], r"'--learner\.lr' is not an override"),
        (["environments.2.name=x"], r"override environments\.2\.name: '2' is not an index into a list of 2"),
        (["environments.first.name=x"], "'first' is not an index into a list of 2"),
        (["learner.lr.x=1"], r"override learner\.lr\.x: learner\.lr is a value, not a section"),
        (["lerner.lr=1"], r"unknown key lerner: did you mean 'learner'"),
        (["learner.lrr=1"], r"unknown key learner\.lrr: did you mean 'lr'"),
    ],
)
def test_an_override_that_cannot_be_is_one_sentence(tmp_path: Path, words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(written(tmp_path, config_data()), words)


# --- to disk and back ---------------------------------------------------------------------------------------------------

METHODS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "bonus"},
    {"kind": "repo", "centred": False},
    {"kind": "repo_r", "part": "positive"},
    {"kind": "repo_d"},
    {"kind": "clip_higher"},
    {"kind": "adapo"},
    {"kind": "lower_clip"},
    {"kind": "entrocraft"},
    {"kind": "clip_cov", "low": 0.5},
    {"kind": "kl_cov", "share": 0.004, "form": "kl", "clipped": True},
]
CONTROLLERS: list[dict[str, Any]] = [
    {"kind": "fixed", "value": 0.025},
    {"kind": "doubling", "low": 0.0125, "high": 0.05, "start": 0.02, "allow_negative": False},
    {"kind": "proportional", "gain": 0.3, "start": 0.03, "low": 0.02},
    {"kind": "additive", "step": 0.002, "gated": True, "dead_band": 0.05},
    {"kind": "band", "dead_band": 0.1},
    {"kind": "pi", "integral": 0.5, "max_change": 0.01},
    {"kind": "isentropic", "gain": 0.5},
]


def test_every_kind_is_written_and_read_here() -> None:
    assert [m["kind"] for m in METHODS] == list(build.METHODS)
    assert [c["kind"] for c in CONTROLLERS] == list(build.CONTROLLERS)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["kind"])
@pytest.mark.parametrize("controller", CONTROLLERS, ids=lambda c: c["kind"])
def test_a_configuration_survives_yaml(method: dict[str, Any], controller: dict[str, Any]) -> None:
    if method["kind"] == "none" and controller["kind"] != "fixed":
        assert "no coefficient to steer" in message(entropy={"method": method, "controller": controller})
        return
    schedule = [[1, 1.0], [50, 0.25]]
    target = {"fraction": 0.7, "start_responses": 2, "over": "successful", "schedule": schedule, "release_at": 80}
    entropy = {"method": method, "controller": controller, "target": target}
    learner = {"lr": 1e-5, "betas": [0.9, 0.99], "updates": 2}
    if controller["kind"] == "isentropic" and method["kind"] not in ("bonus", "repo", "repo_r"):
        assert "linear in its coefficient" in message(entropy=entropy, learner=learner)
        return
    if (controller["kind"], method["kind"]) == ("pi", "entrocraft"):  # 0 is where it changes nothing
        assert "have to be above 0" in message(entropy=entropy, learner=learner)
        return
    config = validate(config_data(entropy=entropy, learner=learner))
    again = validate(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert again.entropy.method.model_dump().items() >= method.items()
    assert again.entropy.controller.model_dump().items() >= controller.items()
    assert again.to_yaml() == config.to_yaml()


@settings(max_examples=20)
@given(st.floats(1e-12, 1.0), st.text("\x85\u2028\n\t :#'\"{é1e-", max_size=6))
def test_values_and_any_text_survive_the_disk(tmp_path_factory: pytest.TempPathFactory, lr: float, text: str) -> None:
    data = config_data(learner={"lr": lr}, run={"name": "1e3"})
    data["environments"][0]["params"] = {"system": text, text: ["1e3", 1e3, "1e-05"]}
    config = validate(data)
    assert load_config(written(tmp_path_factory.mktemp("run"), config.to_yaml())) == config


def test_validation_does_not_change_what_it_is_given() -> None:
    data = config_data(entropy={"method": {"kind": "repo_r"}})
    before = copy.deepcopy(data)
    validate(data)
    assert data == before


# --- clip ranges, and methods that were called otherwise ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("surrogate", "low", "high"), [("ppo", "0.2", "0.2"), ("gspo", "0.0003", "0.0004"), ("cispo", "1", "4")]
)
def test_a_clip_range_that_is_left_out_is_written_beside_its_key(surrogate: str, low: str, high: str) -> None:
    objective: dict[str, Any] = {"surrogate": surrogate, "aggregation": "sequence"}
    config = validate(config_data(objective=objective))
    text = config.to_yaml()
    assert f"  clip_low: null  # {low}, as of {surrogate}\n  clip_high: null  # {high}, as of {surrogate}\n" in text
    assert validate(yaml.safe_load(text)) == config
    given_high = validate(config_data(objective={**objective, "clip_high": 0.3}))
    assert given_high.objective.clip == (config.objective.clip[0], 0.3)
    assert "  clip_high: 0.3\n" in given_high.to_yaml()


def test_a_clip_range_that_was_left_out_follows_the_surrogate_of_a_stage() -> None:
    data = stages_data(overrides={"objective.surrogate": "gspo", "objective.aggregation": "sequence"})
    config = validate(data)
    assert [config.at_stage(i).objective.clip for i in (0, 1)] == [(0.2, 0.2), (3e-4, 4e-4)]


def test_reinforce_pp_trains_on_one_response_a_prompt() -> None:
    assert validate(config_data(batch={"responses": 1}, objective={"advantage": "reinforce_pp"})).batch.responses == 1


def test_what_was_called_repo_d_before_is_read_as_repo(tmp_path: Path) -> None:
    """A run's config.yaml has every key, and of the two only the former one has `centred`; the name alone is the paper's REPO-D."""
    for written_as, kind in (({"kind": "repo_d", "centred": True}, "repo"), ({"kind": "repo_d"}, "repo_d")):
        data = config_data(entropy={"method": written_as, "controller": {"kind": "doubling"}})
        assert load_config(written(tmp_path, data)).entropy.kind == kind
