"""Checks what a reader would copy: recipes validate, the programs load and play. tests/integration trains the environment."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.builders import config_data
from support.readme import (
    OWN_ENVIRONMENT,
    OWN_REWARD,
    ROOT,
    block,
    write_own_data,
    write_own_environment,
    write_own_reward,
)

from envs import catalog
from envs.base import demonstrate, play
from envs.types import Verdict
from orchestration.cluster import placement
from orchestration.config.loader import read_yaml
from orchestration.config.preflight import run_preflight
from orchestration.config.run_config import load_config, validate
from orchestration.lab.grid import Grid, cells

DOCS = ROOT / "docs"
REWARDS = DOCS / "rewards.md"


@pytest.fixture(autouse=True)
def _module_search_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the module search path, so that no test finds the modules of another."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(catalog, "_folders", [])
    yield
    for name in ("swaps", "brief"):
        sys.modules.pop(name, None)


def test_own_data_is_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_own_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = load_config(str(recipe), [])
    run_preflight(config)
    environment = catalog.load(config.environments[0].name, config.environments[0].params)
    prompt = environment.prompt("train", 0)
    assert prompt.messages[0].content.endswith(r"? Put the answer in \boxed{}.")
    assert play(environment.open(prompt), lambda _: r"It is \boxed{15}.").verdict == Verdict(
        1.0, True, "15", detail="exact"
    )


def test_the_own_environment_plays(tmp_path: Path) -> None:
    assert len(block("python", OWN_ENVIRONMENT).splitlines()) <= 40
    config = load_config(str(write_own_environment(tmp_path / "mine")), [])
    environment = catalog.load(config.environments[0].name, config.environments[0].params)
    catalog.try_out(config.environments[0].name, environment)
    prompt = environment.prompt("eval", 3)
    played = demonstrate(environment, prompt, random.Random(0))
    assert played.verdict is not None and played.verdict.correct
    assert play(environment.open(prompt), lambda _: "zz").verdict == Verdict(0.0, detail="not two of the letters")


def test_the_own_reward_function_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(block("python", OWN_REWARD).splitlines()) <= 12
    recipe = write_own_reward(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = load_config(str(recipe), [])
    run_preflight(config)
    environment = catalog.load(config.environments[0].name, config.environments[0].params)
    prompt = environment.prompt("train", 0)
    short = play(environment.open(prompt), lambda _: "15").verdict
    long = play(environment.open(prompt), lambda _: "The answer is 15.").verdict
    wrong = play(environment.open(prompt), lambda _: "115").verdict
    assert short is not None and long is not None and wrong is not None
    assert short.reward == pytest.approx(1 - 0.002) and short.correct
    assert long.reward == pytest.approx(1 - 0.017) and long.correct
    assert wrong.reward == pytest.approx(-0.003) and not wrong.correct


def test_the_reward_terms_are_valid() -> None:
    data = config_data(sampling={"max_tokens": 1024}, generators={"max_model_len": 2048})
    config = validate(data | yaml.safe_load(block("yaml", "Rewards", 0, REWARDS)))
    assert list(config.rewards.terms) == ["length", "format", "overlong", "model", "judge"]


def test_the_judge_on_generators_is_valid() -> None:
    data = config_data(generators={"gpus": 1}, learner={"gpus": 1})
    config = validate(data | yaml.safe_load("rewards:\n" + block("yaml", "Rewards", 1, REWARDS)))
    assert config.judge_generator is not None and config.judge_generator.count == 2
    assert placement.totals(placement.plan(config))["GPU"] == 4


@pytest.mark.parametrize("document", [ROOT / "README.md", DOCS / "entropy.md"], ids=lambda path: path.name)
def test_the_default_of_entropy_control_is_as_documented(document: Path) -> None:
    text = block("yaml", "Entropy control", 0, document)
    assert validate(config_data() | yaml.safe_load(text)).entropy == validate(config_data(entropy={})).entropy
    uncontrolled = validate(without("entropy"))
    assert (uncontrolled.entropy.kind, uncontrolled.diversity is None) == ("none", False)


def test_the_stages_are_valid(tmp_path: Path) -> None:
    stages = tmp_path / "stages.yaml"
    stages.write_text(block("yaml", "Stages", 0, DOCS / "stages-and-sampling.md"), "utf-8")
    data = without("environments") | {"run": {"name": "stages"}} | read_yaml(stages)
    assert [stage.name for stage in validate(data).stages] == ["countdown", "sums"]


@pytest.mark.parametrize("heading", ["Environments", "questions"])
def test_the_environments_are_valid(heading: str) -> None:
    data = config_data() | yaml.safe_load(block("yaml", heading, 0, DOCS / "environments.md"))
    for environment in validate(data).environments:
        assert environment.name in catalog.BUILTIN


def test_the_grid_is_valid(tmp_path: Path) -> None:
    data = yaml.safe_load(block("yaml", "The laboratory", 0, DOCS / "laboratory.md"))
    runs = cells(Grid.model_validate(data), tmp_path, None)
    assert len(runs) == 2 * (3 + 5)
    assert not [cell.problem for cell in runs if cell.problem]


def without(section: str) -> dict[str, object]:
    return {key: value for key, value in config_data().items() if key != section}
