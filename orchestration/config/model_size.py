"""Reads the size of a local model from its folder: the headers of its weight files and its config.json. Imports no torch."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.config.model_folder import read_object

LONGEST_HEADER = 100 * 2**20  # bytes, as safetensors itself allows


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Holds the numbers that memory follows from.

    parameters  elements of all tensors of the weight files; a tied head is there once
    hidden      width of the residual stream; 0, as the others, where config.json does not say
    inner       width of an MLP
    key_width   elements of a token's keys in one layer: key heads x their width
    """

    parameters: int
    layers: int
    hidden: int
    inner: int
    key_width: int
    vocabulary: int


def model_size(model: str) -> ModelSize | None:
    """Returns the size of a local folder; None for a hub name, or a folder without safetensors."""
    folder = Path(model)
    if not (folder / "config.json").is_file():
        return None
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    data = read_object(folder / "config.json")
    text = data.get("text_config")
    config: dict[str, Any] = text if isinstance(text, dict) else data
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    heads = _first(config, "num_attention_heads", "n_head", "num_heads")
    width = _first(config, "head_dim") or (hidden // heads if heads else 0)
    return ModelSize(
        parameters=sum(map(_elements, files)),
        layers=_first(config, "num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        inner=_first(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        key_width=(_first(config, "num_key_value_heads") or heads) * width,
        vocabulary=_first(config, "vocab_size"),
    )


def _first(config: dict[str, Any], *names: str) -> int:
    """Returns the first of these keys that has a number: families name them in several ways."""
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)


def _elements(file: Path) -> int:
    """Counts the elements of all tensors that a safetensors file has. Preflight has checked that it is whole."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(min(length, LONGEST_HEADER)))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
