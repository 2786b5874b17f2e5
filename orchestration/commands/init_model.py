"""Implements `isentrope init-model`: from the command line to a warm-started model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestration.config.loader import parse_overrides
from orchestration.config.run_config import load_config
from orchestration.errors import ConfigError
from orchestration.run.warm_start import make_model


def run(recipe: str | None, names: Sequence[str], overrides: Sequence[str], out: Path | None, cache: Path) -> Path:
    """Returns the model's folder. Raises ConfigError for settings that cannot work, before anything is written."""
    environments: list[dict[str, Any]] = [{"name": name} for name in names]
    if recipe is not None:
        config = load_config(recipe)
        environments += [{"name": e.name, "params": e.params} for e in config.all_environments]
        out = out or Path(config.model.path)
    if not environments or out is None:
        raise ConfigError(
            "init-model needs --recipe, or --env and --out: what the model learns from and where it is written"
        )
    return make_model({**dict(parse_overrides(overrides)), "environments": environments}, out, cache)
