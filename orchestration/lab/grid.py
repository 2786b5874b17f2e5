"""Reads a lab's grid, methods x settings x seeds as YAML, and makes the configuration of every run. Imports no torch.

    name: entropy
    recipe: lab-countdown            # what every arm starts from
    seeds: [0, 1, 2]
    workers: 2                       # runs side by side, each on actors of its own
    warm_start: {steps: 1000}        # of the recipe's model, made once; left out: model.path as the recipe has it
    overrides: {run.iterations: 64}  # of the recipe, for every arm
    settings:                        # optional: every arm is run under each of them
      short: {}
      long: {run.iterations: 900}
    arms:
      grpo: {note: "nothing holds entropy"}
      repo-r: {seeds: [0, 1, 2, 3, 4], entropy.method: {kind: repo_r}, entropy.target.fraction: 0.7}

An arm is a mapping of overrides, beside `note` and `seeds`. Every (arm, setting, seed) becomes one run, in arms/NAME-sSEED.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import AliasChoices, Field, ValidationError, model_validator

from learner.settings import Settings
from orchestration.config.loader import read_yaml, sentence
from orchestration.config.run_config import RunConfig, configure
from orchestration.errors import ConfigError

GRIDS = Path(__file__).parents[1] / "grids"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
ARM_KEYS = ("note", "seeds")  # of an arm, beside its overrides


class Grid(Settings):
    """Holds a grid file. `lanes` is the earlier name of `workers`."""

    name: str = Field(min_length=1, pattern=NAME)
    recipe: str
    seeds: list[int] = Field(default=[0], min_length=1)
    workers: int = Field(default=1, ge=1, validation_alias=AliasChoices("workers", "lanes"))
    warm_start: dict[str, Any] | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = Field(default_factory=lambda: {"": {}}, min_length=1)
    arms: dict[str, dict[str, Any] | None] = Field(min_length=1)

    @model_validator(mode="after")
    def _seeds(self) -> Grid:
        for arm, values in self.arms.items():
            seeds = (values or {}).get("seeds", self.seeds)
            if not isinstance(seeds, list) or not all(isinstance(s, int) and s >= 0 for s in seeds) or not seeds:
                raise ValueError(f"arms.{arm}.seeds is {seeds!r}: give a list of whole numbers from 0")
            if len(set(seeds)) != len(seeds):
                raise ValueError(f"arms.{arm}.seeds {seeds} has a seed twice")
        return self


@dataclass(frozen=True, slots=True)
class Cell:
    """Holds one run of the grid: its configuration or, where it cannot run, the problem."""

    arm: str  # with its setting: "repo-r", "repo-r.long"
    seed: int
    config: RunConfig | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"


def load_grid(path: str) -> Grid:
    """Loads a YAML file, or a shipped grid by name. Raises ConfigError, one sentence."""
    file = next((p for p in (Path(path), GRIDS / f"{path}.yaml") if p.is_file()), None)
    if file is None:
        names = sorted(p.stem for p in GRIDS.glob("*.yaml"))
        near = difflib.get_close_matches(path, names, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"no grid file '{path}' and no shipped grid of that name: {hint}shipped: {', '.join(names)}")
    data = read_yaml(file)
    try:
        return Grid.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{file}: {sentence(error, data, Grid)}") from None


def notes(grid: Grid) -> dict[str, str]:
    """Returns the note of every arm, by its name with the setting."""
    return {
        arm_name(a, s): str((values or {}).get("note", "")) for a, values in grid.arms.items() for s in grid.settings
    }


def arm_name(arm: str, setting: str) -> str:
    return f"{arm}.{setting}" if setting else arm


def cells(grid: Grid, runs: Path, model: str | None) -> list[Cell]:
    """Builds every run of the grid, seed by seed, so that a grid cut short has all arms under few seeds rather than few arms.

    `model` is the warm-started one, or None for the recipe's.
    """
    by_seed: dict[int, list[Cell]] = {}
    for arm, values in grid.arms.items():
        chosen = dict(values or {})
        for setting, more in grid.settings.items():
            for seed in chosen.get("seeds", grid.seeds):
                overrides = {k: v for k, v in chosen.items() if k not in ARM_KEYS}
                name = arm_name(arm, setting)
                by_seed.setdefault(seed, []).append(_cell(grid, name, seed, {**more, **overrides}, runs, model))
    return [cell for seed in sorted(by_seed) for cell in by_seed[seed]]


def warm_start(settings: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Completes a grid's `warm_start`: the demonstrations are of the run's environments, unless it names others."""
    environments = [{"name": e.name, "params": e.params} for e in config.all_environments]
    return {"environments": environments, **settings}


def _cell(grid: Grid, arm: str, seed: int, overrides: Mapping[str, Any], runs: Path, model: str | None) -> Cell:
    own = {"run.name": f"{arm}-s{seed}", "run.dir": str(runs), "run.seed": seed, "run.sinks": ["jsonl"]}
    if model is not None:
        own["model.path"] = model
    try:
        config = configure(grid.recipe, [*grid.overrides.items(), *overrides.items(), *own.items()])
    except ConfigError as error:
        return Cell(arm, seed, problem=str(error))
    return Cell(arm, seed, config)


def to_yaml(grid: Grid) -> str:
    return yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False)
