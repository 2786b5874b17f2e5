"""Composes RunConfig, everything that can be set about a run. Strict, frozen, without torch: a mistake is answered at once.

`load_config(recipe, overrides)` reads a YAML file (or the name of a recipe shipped in recipes/), applies `a.b=c` and
`--a.b c`, and validates. Every mistake becomes one ConfigError: a sentence with the numbers in it. What a section can hold is
declared beside its readers, rules between sections are in checks.py, how YAML is read in loader.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from actors.settings import (
    DTYPE_OF,
    EngineDtype,
)
from envs import catalog
from envs.quoting import shortened
from envs.suggest import nearest
from learner.settings import (
    BODY,
    TrainerPrecision,
)
from orchestration.config.checks import CHECKS
from orchestration.config.composition import RunSections, with_correction, with_diversity
from orchestration.config.loader import parse_overrides, put, read_yaml, sentence
from orchestration.config.sections import (
    EnvironmentSection,
)
from orchestration.errors import ConfigError
from orchestration.plain_yaml import write_yaml

RECIPES = Path(__file__).parents[1] / "recipes"


class RunConfig(RunSections):
    """Holds a run's sections, which fit together."""

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, data: Any) -> Any:
        """Fills in what follows from other keys.

        Responses of older policies are corrected unless the configuration says how, by truncated importance weights with cap 2; a
        configuration that says nothing of control has solution diversity."""
        return with_diversity(with_correction(data))

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        for check in CHECKS:
            check(self)
        for index in range(len(self.stages)):
            self.at_stage(index)
        return self

    @property
    def shares_gpus(self) -> bool:
        """Returns whether actors of the run may share a GPU: NCCL refuses them then, and weights travel over gloo."""
        return self.generators.colocated or any(0 < gpus < 1 for gpus in (self.generators.gpus, self.learner.gpus))

    def at_stage(self, index: int) -> RunConfig:
        """Returns the run as it is in one stage: its environments and overrides, and no stages. Without stages, the run itself.

        Raises ValueError, one sentence, where the stage's overrides cannot be.
        """
        if not self.stages:
            return self
        stage, data = self.stages[index], self.model_dump(exclude={"stages"})
        data["environments"], data["stages"] = [e.model_dump() for e in stage.environments], []
        data["run"]["iterations"] = self.iterations
        try:
            for key, value in stage.overrides.items():
                put(data, key, value)
            return RunConfig.model_validate(data)
        except ConfigError as error:
            raise ValueError(f"stages.{index} ({stage.name}): {error}") from None
        except ValidationError as error:
            raise ValueError(f"stages.{index} ({stage.name}): {sentence(error, data, RunConfig)}") from None

    @property
    def iterations(self) -> int:
        """Returns the most iterations the run takes; advance rules may end its stages earlier."""
        return self.run.iterations or sum(stage.iterations for stage in self.stages)

    @property
    def all_environments(self) -> list[EnvironmentSection]:
        """Returns every environment of the run once: an environment's index counts in this list. Of stages, in order of first
        mention; the same name with other params or train_prompts is another environment. Weights are the stages' own matter."""
        distinct = list(self.environments)
        for environment in (e for stage in self.stages for e in stage.environments):
            if not any(e.key == environment.key for e in distinct):
                distinct.append(environment)
        return distinct

    @property
    def trainer_precision(self) -> TrainerPrecision:
        """Returns that of the trainer's weights and arithmetic; its optimiser always has float32 masters."""
        return self.learner.precision or BODY[self.precision.mode]

    @property
    def engine_dtype(self) -> EngineDtype:
        """Returns the type of the generators' weights and arithmetic."""
        return self.generators.dtype or DTYPE_OF[BODY[self.precision.mode]]

    @property
    def fp32_head(self) -> bool:
        """Returns whether trainer and engine take the product of hidden state and LM head in float32."""
        return self.precision.mode == "bf16-fp32head"

    @property
    def exact(self) -> bool:
        """Returns whether trainer and engine both compute in float32: their log-probs may differ by rounding alone."""
        return (self.trainer_precision, self.engine_dtype) == ("fp32", "float32")

    @property
    def folder(self) -> Path:
        """Returns the run's own folder."""
        return Path(self.run.dir) / self.run.name

    @property
    def total_steps(self) -> int:
        """Returns the optimiser steps of the whole run."""
        return self.iterations * self.learner.updates * self.learner.epochs

    def to_yaml(self) -> str:
        """Writes what load_config reads back as an equal config. Beside a clip range that was left out stands the one in use."""
        text, objective = write_yaml(self.model_dump(mode="json")), self.objective
        for key, value in zip(("clip_low", "clip_high"), objective.clip, strict=True):
            text = text.replace(f"\n  {key}: null\n", f"\n  {key}: null  # {value:g}, as of {objective.surrogate}\n")
        return text


def recipe_names() -> list[str]:
    """Lists the recipes that are shipped."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def find_recipe(recipe: str) -> Path:
    """Finds a YAML file by its path, or a shipped recipe by its name. Raises ConfigError naming the nearest."""
    for path in (Path(recipe), RECIPES / f"{recipe}.yaml"):
        if os.path.isfile(path):  # noqa: PTH113 - Path raises for an overlong name
            return path
    near = nearest(recipe, recipe_names())
    hint = f"did you mean '{near}'? " if near else ""
    raise ConfigError(
        f"no recipe file '{shortened(recipe)}' and no shipped recipe of that name: {hint}shipped: {', '.join(recipe_names())}"
    )


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a recipe with overrides as they stand on a command line. Raises ConfigError, one sentence."""
    return configure(recipe, parse_overrides(overrides))


def configure(recipe: str, pairs: Sequence[tuple[str, Any]]) -> RunConfig:
    """Reads a recipe with values at dotted keys. Raises ConfigError, one sentence."""
    file = find_recipe(recipe)
    if file.parent != RECIPES:
        catalog.look_in(file.parent)  # for environments of the user's own
    data = read_yaml(file)
    for key, value in pairs:
        put(data, key, value)
    return validate(data)


def validate(data: Mapping[str, Any]) -> RunConfig:
    """Builds a configuration from data. Raises ConfigError, one sentence."""
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(sentence(error, data, RunConfig)) from None
