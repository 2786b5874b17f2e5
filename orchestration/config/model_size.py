"""Reads the size of a local model from its folder: the headers of its weight files and its config.json. Imports no torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection
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
    shapes = _shapes(folder)
    if not shapes:
        return None
    data = read_object(folder / "config.json")
    text = data.get("text_config")
    config: dict[str, Any] = text if isinstance(text, dict) else data
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    heads = _first(config, "num_attention_heads", "n_head", "num_heads")
    width = _first(config, "head_dim") or (hidden // heads if heads else 0)
    return ModelSize(
        parameters=sum(math.prod(shape) for _, shape in shapes),
        layers=_first(config, "num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        inner=_first(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        key_width=(_first(config, "num_key_value_heads") or heads) * width,
        vocabulary=_first(config, "vocab_size"),
    )


def adapter_size(model: str, rank: int, dora: bool, targets: Collection[str] | None) -> int:
    """Returns how many elements an adapter of a local model has. targets: last parts of layers' names; None: all but the head.

    A layer is a matrix among the weights, W [out, in], but for embeddings and the head.
    """
    elements = 0
    for name, shape in _shapes(Path(model)):
        module = name.removesuffix(".weight")
        own = module.rpartition(".")[2]
        outside = "embed" in own or own in ("wte", "wpe", "lm_head") or len(shape) != 2 or module == name
        named = targets is None or any(module == t or module.endswith(f".{t}") for t in targets)
        if named and not outside:
            elements += rank * sum(shape) + (shape[0] if dora else 0)
    return elements


def _first(config: dict[str, Any], *names: str) -> int:
    """Returns the first of these keys that has a number: families name them in several ways."""
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)


def _shapes(folder: Path) -> list[tuple[str, list[int]]]:
    """Returns name and shape of every tensor in a folder's safetensors files. Preflight has checked that they are whole."""
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    return [(name, tensor["shape"]) for file in files for name, tensor in _header(file) if name != "__metadata__"]


def _header(file: Path) -> list[tuple[str, Any]]:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        return list(json.loads(opened.read(min(length, LONGEST_HEADER))).items())
