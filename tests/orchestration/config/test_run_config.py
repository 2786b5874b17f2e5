"""The configuration: every mistake is one sentence with the numbers in it, and nothing is lost on the way to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.builders import config_data
from support.configs import message, written

from orchestration.config.run_config import (
    RECIPES,
    RunConfig,
    find_recipe,
    load_config,
    recipe_names,
    validate,
)
from orchestration.errors import ConfigError, IsentropeError, NumericsError, PlacementError, Stopped

# --- recipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_the_disk(name: str) -> None:
    config = load_config(name)
    assert validate(yaml.safe_load(config.to_yaml())) == config
    assert (RECIPES / f"{name}.yaml").read_text().startswith("#"), "a recipe begins with what it is for"


def test_the_nearest_recipe_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestration.config.run_config.RECIPES", tmp_path)
    for name in ("countdown-repo", "smoke"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config_data()))
    assert find_recipe("smoke") == tmp_path / "smoke.yaml"
    with pytest.raises(
        ConfigError, match=r"'countdown_repo'.*did you mean 'countdown-repo'\? shipped: countdown-repo, smoke"
    ):
        find_recipe("countdown_repo")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("repo", "isentropic", 0.7)),
        ({"target": {"fraction": 0.9}}, ("repo", "isentropic", 0.9)),
        ({"target": {"nats": 0.3}}, ("repo", "isentropic", None)),
        ({"controller": {"kind": "fixed"}}, ("repo", "fixed", 0.7)),
        ({"method": {"kind": "none"}}, ("none", "fixed", None)),
        ({"method": {"kind": "repo_r"}, "target": {"fraction": 0.5}}, ("repo_r", "fixed", 0.5)),
    ],
)
def test_an_entropy_section_holds_entropy_unless_it_names_another_method(given: Any, expected: tuple[Any, ...]) -> None:
    entropy = validate(config_data(entropy=given)).entropy
    controller = entropy.controller.model_dump()["kind"]
    assert (entropy.kind, controller, entropy.target.fraction) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [", "is not valid YAML"), ("- 1\n", "a mapping of sections, not list"), ("", "not NoneType")],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(written(tmp_path, text))
    assert "\n" not in str(caught.value)


# --- sentences ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "responses", "expected"),
    [
        ({}, 4, ("none", "fixed")),
        ({}, 3, ("none", "fixed")),
        ({}, 2, ("none", None)),  # in groups of two no solution is more common than another
        ({"entropy": {}}, 4, ("repo", None)),
        ({"entropy": {"method": {"kind": "none"}}}, 4, ("none", None)),
        ({"diversity": None}, 4, ("none", None)),
        ({"diversity": {"target": {"fraction": 0.7}}}, 4, ("none", "additive")),
    ],
)
def test_without_a_word_on_control_a_run_has_solution_diversity(
    sections: dict[str, Any], responses: int, expected: tuple[str, str | None]
) -> None:
    data = {**config_data(batch={"responses": responses}), **sections}
    if "entropy" not in sections:
        del data["entropy"]
    config = validate(data)
    kind = None if config.diversity is None else config.diversity.controller.kind
    assert (config.entropy.kind, kind) == expected
    assert validate(config.model_dump(mode="json")) == config  # as a resumed run reads it


def test_the_smallest_configuration_is_valid_and_fills_in_the_rest() -> None:
    config = validate(config_data())
    assert (config.entropy.kind, config.objective.advantage, config.verifiers.count) == ("repo", "grpo", 1)
    assert config.folder == Path("runs/demo")
    assert validate(config_data(learner={"updates": 4, "epochs": 2})).total_steps == 3 * 4 * 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lerner": {"lr": 1.0}}, "unknown key lerner: did you mean 'learner'?"),
        ({"learner": {"learning_rat": 1.0, "zero_stge": 1}}, "unknown key learner."),
        ({"learner": {"zero_stge": 1}}, "unknown key learner.zero_stge: did you mean 'zero_stage'?"),
        ({"entropy": {"metod": {"kind": "none"}}}, "unknown key entropy.metod: did you mean 'method'?"),
        ({"entropy": {"target": {"fracton": 0.7}}}, "unknown key entropy.target.fracton: did you mean 'fraction'?"),
        (
            {"entropy": {"method": {"kind": "repo_r", "centered": True}}},
            "unknown key entropy.method.centered: did you mean 'centred'?",
        ),
        (
            {"entropy": {"method": {"kind": "repo_r"}, "controller": {"kind": "doubling", "hi": 1.0}}},
            "unknown key entropy.controller.hi: did you mean 'high'?",
        ),
        (
            {"entropy": {"method": {"kind": "repor"}}},
            "entropy.method: unknown entropy method 'repor': did you mean 'repo_r'?",
        ),
        (
            {"entropy": {"method": {"kind": "repo_r"}, "controller": {"kind": "doublng"}}},
            "entropy.controller: unknown entropy controller 'doublng': did you mean 'doubling'?",
        ),
    ],
)
def test_an_unknown_key_names_its_nearest_neighbour_at_every_level(change: dict[str, Any], expected: str) -> None:
    assert expected in message(**change)


def test_an_unknown_key_in_a_list_says_where() -> None:
    data = config_data()
    data["environments"][1]["wieght"] = 2
    with pytest.raises(ConfigError, match=r"unknown key environments\.1\.wieght: did you mean 'weight'\?"):
        validate(data)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"batch": {"prompts": "many"}}, "batch.prompts is 'many': input should be a valid integer"),
        ({"batch": {"prompts": 4.0}}, "batch.prompts is 4.0: input should be a valid integer"),
        ({"sampling": {"max_total_tokens": 1}}, "sampling.max_total_tokens (1) is for all responses of a trajectory"),
        ({"sampling": {"max_seconds": 0}}, "sampling.max_seconds is 0: input should be greater than 0"),
        ({"learner": {"lr": 0}}, "learner.lr is 0: input should be greater than 0"),
        ({"learner": {"lr": float("inf")}}, "learner.lr is inf: input should be a finite number"),
        ({"learner": {"packing": 1}}, "learner.packing is 1: input should be a valid boolean"),
        ({"learner": {"precision": "fp8"}}, "learner.precision is 'fp8': input should be 'fp32', 'bf16' or 'fp16'"),
        ({"learner": {"betas": [0.9]}}, "learner.betas.1"),
        ({"run": {"name": "a b"}}, "run.name is 'a b'"),
        ({"run": {"sinks": ["jsonl", "stdout"]}}, "run.sinks.1 is 'stdout'"),
        ({"sampling": {"temperature": 0.0}}, "sampling.temperature is 0.0: input should be greater than 0"),
        ({"entropy": {"target": {"nats": -1.0}}}, "entropy.target.nats is -1.0: input should be greater than 0"),
        ({"entropy": {"method": "repo_r"}}, "the entropy method needs a kind, one of: none"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(change: dict[str, Any], expected: str) -> None:
    assert expected in message(**change)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"learner": {"updates": 3}},
            ["4 prompts x 4 responses = 16 trajectories", "learner.updates = 3"],
        ),
        ({"learner": {"updates": 16, "ranks": 2}}, ["an update of 1 trajectories", "learner.ranks = 2"]),
        ({"batch": {"responses": 1}}, ["advantage grpo", "batch.responses is 1, give 2 or more, or use reinforce_pp"]),
        ({"batch": {"responses": 1}, "objective": {"advantage": "reinforce_pp_baseline"}}, ["give 2 or more"]),
        ({"objective": {"clip_low": 1.1}}, ["objective.clip_low", "less than or equal to 1"]),
        ({"entropy": {"method": {"kind": "repo_d", "centred": True}}}, ["kind repo", "the paper's REPO-D"]),
        (
            {"entropy": {"method": {"kind": "repo_d"}, "controller": {"kind": "isentropic"}}},
            ["linear in its coefficient: repo, repo_r or bonus"],
        ),
        (
            {"sampling": {"top_p": 0.95}},
            ["sampling.top_p is 0.95", "a part of the vocabulary", "lower sampling.temperature"],
        ),
        ({"sampling": {"max_tokens": 64}}, ["sampling.max_tokens (64)", "generators.max_model_len (64)"]),
        (
            {"objective": {"advantage": "loop", "surrogate": "policy_gradient"}},
            ["use surrogate ppo, or advantage rloo"],
        ),
        (
            {"objective": {"surrogate": "policy_gradient"}, "entropy": {"method": {"kind": "adapo"}}},
            [
                "entropy.method adapo acts on the clip range",
                "surrogate policy_gradient does not have",
                "use surrogate cispo, gspo, ppo",
            ],
        ),
        (
            {"objective": {"surrogate": "policy_gradient"}, "entropy": {"method": {"kind": "clip_higher"}}},
            ["entropy.method clip_higher"],
        ),
        (
            {"learner": {"precision": "bf16"}},
            ["learner.precision is bf16 where precision fp32 means fp32", "precision.allow_mixed=true"],
        ),
        (
            {"generators": {"dtype": "float16"}, "precision": {"mode": "bf16-fp32head"}},
            ["generators.dtype is float16 where precision bf16-fp32head means bfloat16", "leave generators.dtype out"],
        ),
        (
            {"generators": {"kv_cache_dtype": "fp8_e5m2"}},
            ["generators.kv_cache_dtype is fp8_e5m2 where precision is fp32", "take precision bf16"],
        ),
        (
            {"learner": {"zero_stage": 3, "ranks": 2, "timeout_s": 100.0}},
            ["weights.timeout_s is 120 and learner.timeout_s 100", "while rank 0 waits for a generator"],
        ),
        ({"evaluation": {"ks": [1, 64]}}, ["pass@64 needs at least 64 samples and evaluation.samples is 16"]),
        (
            {"entropy": {"method": {"kind": "none"}, "controller": {"kind": "doubling"}}},
            ["entropy.method is none, which has no coefficient to steer"],
        ),
        ({"entropy": {"target": {"nats": 1.0, "fraction": 0.5}}}, ["nats (1) and fraction (0.5) both set the target"]),
        (
            {"entropy": {"method": {"kind": "repo"}, "controller": {"kind": "doubling", "start": 1.0, "high": 0.05}}},
            ["the coefficient starts at 1, outside its bounds [0.0001, 0.05]"],
        ),
        (
            {"entropy": {"method": {"kind": "adapo"}, "controller": {"kind": "isentropic"}}},
            ["isentropic controller needs a method whose effect is linear in its coefficient"],
        ),
        (
            {"entropy": {"method": {"kind": "kl_cov"}}},
            ["kl_cov", "learner.updates x epochs = 1", "take several updates a batch"],
        ),
        (
            {"objective": {"surrogate": "policy_gradient"}, "learner": {"updates": 2, "epochs": 2}},
            ["policy_gradient is on-policy", "updates x epochs = 4"],
        ),
        ({"objective": {"surrogate": "gspo"}}, ["gspo clips a response as a whole", "use aggregation sequence"]),
        ({"objective": {"importance": {"kind": "truncated", "floor": 0.5}}}, ["floor (0.5) belongs to kind masked"]),
        ({"objective": {"importance": {"kind": "masked", "floor": 3.0}}}, ["floor (3) has to be under cap (2)"]),
        (
            {"entropy": {"method": {"kind": "none"}, "environments": {"a": {"nats": 1.0}}}},
            ["method is none", "leave entropy.environments out"],
        ),
        (
            {"entropy": {"method": {"kind": "clip_cov"}, "environments": {"a": {"nats": 1.0}}}},
            ["1 targets of their own", "clip_cov takes its statistics over the whole batch"],
        ),
        (
            {"entropy": {"method": {"kind": "clip_cov", "low": 9.0}}},
            ["clip_cov: low (9) is above high (5): give low <= high"],
        ),
        ({"generators": {"gpus": 2}, "learner": {"gpus": 1}}, ["generators.gpus is 2"]),
        ({"generators": {"gpus": 1}, "learner": {"gpus": 2}}, ["learner.gpus is 2"]),
        ({"generators": {"gpus": 0}, "learner": {"gpus": 1}}, ["generators.gpus is 0", "learner.gpus 1"]),
        (
            {"generators": {"gpus": 0.5}, "learner": {"gpus": 0.5, "ranks": 2}},
            ["learner.gpus is 0.5", "learner.ranks is 2"],
        ),
        (
            {"generators": {"gpus": 0.5, "tensor_parallel": 2}, "learner": {"gpus": 0.5}},
            ["generators.gpus is 0.5", "generators.tensor_parallel is 2"],
        ),
        (
            {"generators": {"gpus": 0.3, "gpu_memory_utilization": 0.4}, "learner": {"gpus": 0.5}},
            ["generators.gpu_memory_utilization is 0.4", "0.3 of its GPU"],
        ),
        (
            {"generators": {"gpus": 0.5, "colocated": True}, "learner": {"gpus": 1}},
            ["generators.colocated is true, generators.gpus 0.5 and learner.gpus 1", "set both to 1"],
        ),
        (
            {"generators": {"gpus": 1, "colocated": True, "tensor_parallel": 2}, "learner": {"gpus": 1, "ranks": 2}},
            ["generators.tensor_parallel 2", "a colocated generator has one GPU"],
        ),
        (
            {"generators": {"gpus": 1, "colocated": True}, "learner": {"gpus": 1, "ranks": 2}},
            ["generators.count 1 and learner.ranks 2", "make the two equal"],
        ),
        (
            {"generators": {"gpus": 1, "colocated": True}, "learner": {"gpus": 1}, "batch": {"staleness": 1}},
            ["batch.staleness 1: generators would have to work while the learner trains"],
        ),
        ({"generators": {"colocated": True}}, ["colocated is true and gpus 0"]),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_numbers(change: dict[str, Any], parts: list[str]) -> None:
    text = message(**change)
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("generators", "learner", "shared"),
    [(0, 0, False), (1, 1, False), (0.5, 0.5, True), (0.5, 1, True), (1, 0.4, True)],
)
def test_a_share_of_a_gpu_is_taken_for_a_neighbour_on_it(generators: float, learner: float, shared: bool) -> None:
    config = validate(config_data(generators={"gpus": generators}, learner={"gpus": learner}))
    assert config.shares_gpus == shared
    if generators == learner == 1:
        config = validate(config_data(generators={"gpus": 1, "colocated": True}, learner={"gpus": 1}))
        assert config.shares_gpus


def test_several_mistakes_are_counted() -> None:
    assert message(learner={"lr": -1.0, "ranks": 0}, batch={"prompts": 0}).endswith("(and 2 more)")


def test_a_missing_section_and_a_missing_key_are_named() -> None:
    data = config_data()
    del data["learner"]["lr"], data["model"]
    with pytest.raises(ConfigError, match=r"model is missing.*\(and 1 more\)"):
        validate(data)
    data["model"] = {"path": "someone/some-model"}
    with pytest.raises(ConfigError, match=r"learner\.lr is missing: give it in the recipe or as learner\.lr=VALUE"):
        validate(data)


# --- exit codes ---------------------------------------------------------------------------------------------------------


def test_errors_carry_their_exit_code_across_processes() -> None:
    import pickle

    errors = [IsentropeError("x"), ConfigError("x"), PlacementError("x"), NumericsError("x"), Stopped(2), Stopped(15)]
    codes = [pickle.loads(pickle.dumps(error)).exit_code for error in errors]
    assert codes == [1, 2, 3, 4, 130, 143]
    assert str(pickle.loads(pickle.dumps(errors[-1]))) == "stopped by signal 15"


def test_settings_are_frozen() -> None:
    config: Any = validate(config_data())
    assert isinstance(config, RunConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.learner.lr = 1.0
