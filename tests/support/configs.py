"""Writes recipes, and returns the sentence that one is refused with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.config.run_config import validate
from orchestration.errors import ConfigError
from support.builders import config_data


def message(**sections: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(config_data(**sections))
    text = str(caught.value)
    assert "\n" not in text
    return text


def written(folder: Path, data: Any) -> str:
    path = folder / "recipe.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), "utf-8", newline="")
    return str(path)
