"""What of the section `rewards` is refused, and what it adds to the plan of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.builders import config_data, stages_data
from support.reward_terms import judge, model, nobody, refused

from actors.rewards.endpoint import Endpoint
from orchestration.cluster import placement
from orchestration.cluster.actor_settings import judge_engine, layout_key
from orchestration.config.preflight import run_preflight
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError
from orchestration.sampling.reward_function import make_judge

GENERATOR = {"path": "some/model", "max_model_len": 64}


def own_judge(max_tokens: int = 16, **values: Any) -> dict[str, Any]:
    return {"judge": {"weight": 1.0, "max_tokens": max_tokens, "generator": {**GENERATOR, **values}}}


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ({"verdict": 0}, "weights are 0 throughout (verdict)"),
        ({"verdict": 0, "overlong": {"weight": 0, "buffer": 4}}, "0 throughout (verdict and overlong.weight)"),
        ({"length": {}}, "rewards.length.weight is missing"),
        ({"lenght": {"weight": 1}}, "unknown key rewards.lenght: did you mean 'length'?"),
        ({"length": {"weight": 1, "freee": 1}}, "unknown key rewards.length.freee: did you mean 'free'?"),
        ({"length": {"weight": 1, "free": 16}}, "rewards.length.free (16) has to be under sampling.max_tokens (16)"),
        ({"length": {"weight": 1, "free": 9, "full": 9}}, "has to be under rewards.length.full (9)"),
        ({"length": {"weight": 1, "correct": [0]}}, "rewards.length.correct"),
        ({"function": 3}, "rewards.function is 3"),
        ({"function": {"weight": 1}}, "rewards.function.path is missing"),
        ({"function": "my.py:score", "verdict": 0, "functoin": 1}, "did you mean 'function'?"),
        ({"function": {"path": "my.py:score", "weight": 0}}, "0 throughout (verdict and function.weight)"),
        ({"format": {"weight": 1, "pattern": "(a"}}, "'(a' is not a regular expression: missing )"),
        ({"overlong": {"weight": 1, "buffer": 17}}, "rewards.overlong.buffer (17)"),
        ({"overlong": {"weight": 1, "buffer": 17}}, "sampling.max_tokens is 16: make the buffer smaller"),
        (model(clip=[1, 1]), "clip goes from 1 to 1: the first has to be the smaller"),
        (model(scale=0), "scale is 0, so that every response would have the same score"),
        (model(gpus=2), "rewards.model.gpus is 2"),
        ({"judge": {"weight": 1, "model": "m"}}, "rewards.judge: nobody answers: give url and model"),
        (judge(generator=GENERATOR), "both are given (url, model and generator): leave one out"),
        (own_judge(max_tokens=64), "rewards.judge.max_tokens (64) leaves no room for a question in"),
        (own_judge(gpus=1), "rewards.judge.generator.gpus is 1 and generators.gpus 0"),
        ({"judge": own_judge()["judge"] | {"retries": 9}}, "retries is an endpoint's, and the judge is generators"),
        (own_judge(gpus=2), "rewards.judge.generator.gpus is 2"),
        (
            judge(url="localhost:8000"),
            "it is not an address of an endpoint: give something like http://localhost:8000/v1",
        ),
        (judge(url="http://localhost:8a/v1"), "its port is not a number from 0 to 65535"),
        (judge(url="http://localhost:99999/v1"), "its port is not a number from 0 to 65535"),
        (judge(rubric="rate it"), "would never see what it judges: write {response}"),
        (judge(score="[0-9]+"), "'[0-9]+' has 0 groups: exactly one of them is the number"),
        (judge(score="(a"), "'(a' is not a regular expression"),
        (judge(low=1, high=1), "low (1) has to be under high (1)"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(rewards: dict[str, Any], expected: str) -> None:
    assert expected in refused(**rewards)


@pytest.mark.parametrize(
    "values",
    [
        {"api_key_env": "sk-very-secret-1"},
        {"url": "https://user:sk-very-secret-1@host/v1"},
        {"url": "https://host/v1?key=sk-very-secret-1"},
        {"url": "sk-very-secret-1"},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_shown(values: dict[str, str]) -> None:
    assert "sk-very-secret-1" not in refused(**judge(**values))


def test_a_buffer_has_to_fit_every_stage() -> None:
    data = stages_data(overrides={"sampling.max_tokens": 4}) | {"rewards": {"overlong": {"weight": 1, "buffer": 8}}}
    with pytest.raises(ConfigError, match=r"stages\.1 .*rewards\.overlong\.buffer \(8\).*max_tokens is 4"):
        validate(data)


def preflight(**rewards: Any) -> None:
    run_preflight(validate(config_data(rewards=rewards)))


def test_what_only_the_machine_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preflight(format={"weight": 1})  # countdown and arithmetic have forms of their own
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="names SOME_KEY, which is not set here"):
        preflight(**judge(api_key_env="SOME_KEY"))
    monkeypatch.setenv("SOME_KEY", "sk-1")
    preflight(**judge(api_key_env="SOME_KEY"))
    for wrong in (" \n", "sk-\u00e9", "sk-1\nsk-2"):
        monkeypatch.setenv("SOME_KEY", wrong)
        with pytest.raises(
            ConfigError, match=r"the variable SOME_KEY, which .* holds no key that a header could carry"
        ) as caught:
            preflight(**judge(api_key_env="SOME_KEY"))
        assert "sk-" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"the model folder \S+ does not exist"):
        preflight(**model(path=str(tmp_path / "gone")))
    with pytest.raises(
        ConfigError,
        match=r"the 'answer' of a prompt's task, and environments\.0 \(countdown\) has none: name another key",
    ):
        preflight(**judge(rubric="{response} {reference}"))
    data = config_data(rewards={"format": {"weight": 1}})
    data["environments"] = [{"name": "toolbox"}]
    with pytest.raises(ConfigError, match=r"environments\.0 \(toolbox\) has none: give rewards\.format\.pattern"):
        run_preflight(validate(data))


def test_the_key_is_in_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-very-secret-1")
    config = validate(config_data(rewards=judge(api_key_env="SOME_KEY")))
    made = make_judge(config, None, nobody)
    assert made is not None and isinstance(made.backend, Endpoint) and made.backend._key == "sk-very-secret-1"
    assert "sk-very-secret-1" not in config.to_yaml() + str(config.model_dump()) + repr(made.settings) + repr(
        made.backend.settings
    )
    assert "SOME_KEY" in config.to_yaml()
    assert make_judge(validate(config_data()), None, nobody) is None


def test_a_cache_file_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.judge\.cache_file \S+ cannot be used"):
        make_judge(validate(config_data(rewards=judge(cache_file=str(tmp_path)))), None, nobody)


def test_terms_survive_the_disk() -> None:
    rewards = {
        "verdict": 0.5,
        "length": {"weight": 0.1, "shape": "cosine", "correct": [0, -1], "wrong": [-1, 0]},
        "format": {"weight": 0.2, "pattern": "(?s)<think>.*</think>.+"},
        "overlong": {"weight": 1, "buffer": 4},
        **model(clip=[-1, 1]),
        **judge(cache_file="runs/judge.jsonl"),
    }
    config = validate(config_data(rewards=rewards))
    assert validate(yaml.safe_load(config.to_yaml())) == config
    assert list(config.rewards.terms) == ["length", "format", "overlong", "model", "judge"]


def test_reward_models_are_part_of_the_plan() -> None:
    slots = placement.plan(validate(config_data(rewards=model(count=2, cpus=0.5, gpus=1))))
    assert [(s.cpus, s.gpus) for s in slots if s.role.startswith("reward-model")] == [(0.5, 1), (0.5, 1)]
    assert not any("reward" in s.role for s in placement.plan(validate(config_data())))
    with pytest.raises(Exception, match="reward-models 2"):
        placement.check(slots, {"CPU": 100, "GPU": 1}, [{"CPU": 100, "GPU": 1}])


def test_generators_that_judge_are_part_of_the_plan_and_of_what_warm_actors_agree_in() -> None:
    config = validate(config_data(rewards=own_judge(count=2, cpus=0.5)))
    assert [s.cpus for s in placement.plan(config) if s.role.startswith("judge")] == [0.5, 0.5]
    assert config.judge_generator is not None
    assert judge_engine(config, config.judge_generator).dtype == config.engine_dtype
    other = validate(config_data(rewards=own_judge(count=2, cpus=0.5, path="another/model")))
    weight = config_data(rewards=own_judge(count=2, cpus=0.5))
    weight["rewards"]["judge"]["weight"] = 0.5
    assert layout_key(config) != layout_key(other)
    assert layout_key(config) == layout_key(validate(weight))
