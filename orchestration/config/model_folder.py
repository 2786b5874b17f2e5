"""Checks a local model folder: its config.json, and that its weight files are whole. A Hugging Face id passes.

Neither torch nor transformers is imported and no weight is read, so that what a learner and an engine would report after their
start, each in its own words, is one sentence at once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from envs.quoting import quoted, shortened
from orchestration.config.loader import read_text
from orchestration.errors import ConfigError
from orchestration.text import one_line


def check_model(model: str) -> None:
    """Raises ConfigError for what can only be a folder and has no model in it, or one that cannot be loaded."""
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith((".", "~")) or path.parts[:1] in (("models",), ("runs",))
    local = os.path.exists(path) or looks_local or model.count("/") > 1  # noqa: PTH110 - Path raises for an overlong name
    if not local:
        return
    if not os.path.isfile(path / "config.json"):  # noqa: PTH113
        state = "has no config.json" if os.path.isdir(path) else "does not exist"  # noqa: PTH112
        raise ConfigError(
            f"the model folder {shortened(model)} {state}: give a Hugging Face folder, or make one with `isentrope init-model`"
        )
    read_object(path / "config.json")
    for file in sorted(path.glob("*.safetensors")):
        check_weights(file)
    whole = os.path.isfile(path / "model.safetensors")  # noqa: PTH113 - as above; it is loaded whatever an index says
    for index in () if whole else path.glob("*.safetensors.index.json"):
        files = read_object(index).get("weight_map")
        named = {str(name) for name in files.values()} if isinstance(files, dict) else set[str]()
        if missing := sorted(name for name in named if not os.path.isfile(path / name)):  # noqa: PTH113 - as above
            raise ConfigError(
                f"{index} names {len(named)} files of weights and {len(missing)} are not there, such as {quoted(missing[0])}: "
                "copy the whole folder"
            )


def check_positions(section: str, max_model_len: int, model: str) -> None:
    """Raises ConfigError where a local model has fewer positions than asked for: an engine says so only after its start."""
    file = Path(model) / "config.json"
    data = read_object(file) if os.path.isfile(file) else {}  # noqa: PTH113
    data = data.get("text_config", data)
    if not isinstance(data, dict):
        raise ConfigError(f"{file} cannot be a model's: its text_config is {quoted(data)}, not an object")
    positions = data.get("max_position_embeddings")
    stretched = _stretched(data.get("rope_scaling")) or _stretched(data.get("rope_parameters"))
    if isinstance(positions, int) and max_model_len > positions and not stretched:
        raise ConfigError(
            f"{section}.max_model_len is {max_model_len} and the model {model} has {positions} positions: give {positions} or less"
        )


# Their max_position_embeddings is that of the longer context already.
SCALED_IN_CONFIG = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def _stretched(rope: Any) -> bool:
    """Returns whether an engine scales the model's positions to a longer context; it may be set by kind of layer."""
    if not isinstance(rope, dict):
        return False
    parts = [rope] if isinstance(_kind(rope), str) else [part for part in rope.values() if isinstance(part, dict)]
    kinds = map(_kind, parts)
    return any(isinstance(kind, str) and kind not in SCALED_IN_CONFIG for kind in kinds)


def _kind(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type"))


def read_object(file: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises ConfigError, one sentence with the file."""
    text = read_text(file)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{file} is not JSON ({shortened(reason)}): the model cannot be loaded") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file} cannot be a model's: it holds {quoted(data)}, not an object")
    return data


def check_weights(file: Path) -> None:
    """Raises ConfigError where the header of a safetensors file is broken, or says another size than the file has."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy"):  # reads and checks the header, and maps the rest
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be loaded: {shortened(one_line(error))}; copy the model again") from None
