"""Stages in the configuration: what a stage sets, and a sentence for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.builders import config_data, stages_data

from orchestration.config.preflight import run_preflight
from orchestration.config.run_config import configure, load_config, validate
from orchestration.errors import ConfigError
from orchestration.lab.grid import cells, load_grid
from orchestration.plain_yaml import write_yaml


def message(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(data)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_stage_is_the_run_with_its_environments_and_overrides() -> None:
    overrides = {
        "learner.lr": 1e-4, "objective.clip_high": 0.3, "entropy.target": {"nats": 0.5}, "sampling.temperature": 0.9,
    }  # fmt: skip
    config = validate(stages_data(overrides=overrides) | {"objective": {"clip_low": 0.1}})
    first, second = config.at_stage(0), config.at_stage(1)
    assert (first.learner.lr, first.objective.clip, first.entropy.target.nats) == (0.001, (0.1, 0.2), None)
    assert (second.learner.lr, second.objective.clip_high, second.objective.clip_low) == (1e-4, 0.3, 0.1)
    assert (second.entropy.target.nats, second.sampling.temperature, second.sampling.max_tokens) == (0.5, 0.9, 16)
    assert [e.name for e in first.environments] == ["countdown"]
    assert (config.iterations, config.total_steps) == (8, 8)
    assert first.total_steps == second.total_steps == 8, "a schedule goes over the whole run"
    plain = validate(config_data())
    assert plain.at_stage(0) is plain


def test_stages_survive_the_disk(tmp_path: Path) -> None:
    config = validate(
        stages_data(overrides={"learner.lr": 1e-5}, advance={"plateau": 0.01, "window": 2}, controller="reanchor")
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(config.to_yaml(), "utf-8")
    assert configure(str(path), []) == config
    assert configure(str(path), [("stages.1.iterations", 9), ("run.iterations", 4)]).iterations == 4


def test_the_environments_of_a_run_are_counted_once() -> None:
    data = stages_data()
    data["stages"].append({"name": "three", "environments": [{"name": "arithmetic", "weight": 9}], "iterations": 1})
    again = {"name": "arithmetic", "params": {"digits": 2, "name": "long"}}
    data["stages"].append({"name": "four", "environments": [again], "iterations": 1})
    environments = validate(data).all_environments
    assert [(e.name, e.params.get("name")) for e in environments] == [
        ("countdown", None),
        ("arithmetic", None),
        ("arithmetic", "long"),
    ]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"overrides": {"lerner.lr": 1}}, "stages.1.overrides: a stage cannot change lerner.lr: did you mean 'learner.lr'?"),
        ({"overrides": {"batch.prompts": 1}}, "cannot change batch.prompts: what it can is objective, learner.lr,"),
        ({"overrides": {"objective.clip_hig": 1}}, "stages.1 (two): unknown key objective.clip_hig: did you mean 'clip_high'?"),
        ({"overrides": {"entropy.target.fracton": 1}}, "unknown key entropy.target.fracton: did you mean 'fraction'?"),
        ({"overrides": {"learner.lr": -1}}, "stages.1 (two): learner.lr is -1: input should be greater than 0"),
        ({"overrides": {"learner.lr.x": 1}}, "stages.1 (two): override learner.lr.x: learner.lr is a value, not a section"),
        ({"overrides": {"sampling.max_tokens": 64}}, "stages.1 (two): sampling.max_tokens (64) leaves no room"),
        ({"overrides": {"objective.surrogate": "gspo"}}, "stages.1 (two): objective.surrogate gspo clips a response as a whole"),
        ({"advance": {"windw": 1, "reward": 1.0}}, "unknown key stages.1.advance.windw: did you mean 'window'?"),
        ({"advance": {"window": 2}}, "stages.1.advance: a stage advances by reward or by plateau: give one of the two"),
        ({"advance": {"reward": 0.5, "plateau": 0.1}}, "stages.1.advance: a stage advances by reward or by plateau"),
        ({"advance": {"reward": 0.5, "window": 6}}, "looks at 6 iterations and the stage has 5 at most"),
        ({"advance": {"plateau": 0.1, "window": 3}}, "looks at 6 iterations and the stage has 5 at most"),
        ({"name": "one"}, "stages one, one: 'one' is there twice"),
        ({"name": "a b"}, "stages.1.name is 'a b'"),
        ({"controler": "keep"}, "unknown key stages.1.controler: did you mean 'controller'?"),
        ({"controller": "reste"}, "stages.1.controller is 'reste': input should be 'keep', 'reset' or 'reanchor'"),
        ({"optimiser": "reanchor"}, "stages.1.optimiser is 'reanchor': input should be 'keep' or 'reset'"),
        ({"environments": [{"name": "x", "wieght": 1}]}, "unknown key stages.1.environments.0.wieght: did you mean 'weight'?"),
        ({"environments": []}, "stages.1.environments"),
        ({"iterations": 0}, "stages.1.iterations is 0"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_stage_is_one_sentence(second: dict[str, Any], expected: str) -> None:
    assert expected in message(stages_data(**second))


def test_what_does_not_fit_the_stages_is_one_sentence() -> None:
    both = stages_data() | {"environments": [{"name": "countdown"}]}
    assert "each of the 2 stages names its own environments" in message(both)
    nothing = config_data()
    nothing["environments"] = []
    assert message(nothing) == "environments is missing: give what the run trains on, or stages of it"
    endless = config_data()
    del endless["run"]["iterations"]
    assert message(endless).startswith("run.iterations is missing: give it in the recipe")
    capped = stages_data()
    capped["run"]["iterations"] = 9
    assert "caps the run at 9 and its stages have 8 iterations at most" in message(capped)
    for key, value in (("controller", "reset"), ("optimiser", "reset")):
        early = stages_data()
        early["stages"][0][key] = value
        assert f"stages.0.{key} is reset, and nothing comes before the first stage" in message(early)


def test_two_environments_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    model = {"model": {"path": str(tmp_path)}}
    run_preflight(validate(stages_data() | model))
    longer = [{"name": "countdown", "params": {"numbers": 3}}]
    expected = r"stages\.1\.environments\.0 \(countdown\) and stages\.0\.environments\.0 \(countdown\) both report as 'countdown'"
    with pytest.raises(ConfigError, match=expected):
        run_preflight(validate(stages_data(environments=longer) | model))
    longer[0]["params"]["name"] = "longer"  # type: ignore[index]
    run_preflight(validate(stages_data(environments=longer) | model))
    with pytest.raises(ConfigError, match=r"stages\.1\.environments\.0 \(countdwn\): .*did you mean 'countdown'"):
        run_preflight(validate(stages_data(environments=[{"name": "countdwn"}]) | model))


def test_yaml_is_written_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(write_yaml(stages_data(overrides={"learner.lr": 1e-7})), "utf-8")
    assert configure(str(path), []).at_stage(1).learner.lr == 1e-7


def test_the_shipped_sequence_and_its_grid() -> None:
    config = load_config("sequential-cpu")
    assert [s.name for s in config.stages] == ["words", "toolbox", "countdown"]
    assert len(config.all_environments) == len(config.stages) == 3
    assert config.iterations == 200
    grid = load_grid("sequential")
    assert list(grid.arms) == ["rloo", "grpo", "repo-r", "isentropic"]
    cells_of_grid = cells(grid, Path("runs"), None)
    assert [c.problem for c in cells_of_grid] == [""] * 12
    assert {c.seed for c in cells_of_grid} == {0, 1, 2}
    deep = cells(load_grid("sequential-deep"), Path("runs"), None)
    assert [c.problem for c in deep] == [""] * 9
    assert {tuple(s.name for s in c.config.stages) for c in deep if c.config} == {("words", "countdown")}
