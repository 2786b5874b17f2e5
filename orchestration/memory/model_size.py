"""Reads the size of a local model from its folder: the headers of its weight files and its config.json. Imports no torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.config.model_folder import read_object

LONGEST_HEADER = 100 * 2**20  # bytes, as safetensors itself allows


# A matrix of a linear layer: its full name or the last part of it, rows, columns, and how many there are alike.
Matrix = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Holds the numbers that memory follows from.

    parameters   elements of all tensors of the weight files; a tied head is there once
    hidden       width of the residual stream; 0, as the others, where config.json does not say
    inner        width of an MLP
    key_width    elements of a token's keys in one layer: key heads x their width
    query_width  the same of its queries
    head_width   of one head
    tied         whether the head is the embedding
    head_norms   whether queries and keys are normed, head by head
    matrices     of all linear layers but the head
    """

    parameters: int
    layers: int
    hidden: int
    inner: int
    key_width: int
    vocabulary: int
    query_width: int = 0
    head_width: int = 0
    tied: bool = False
    head_norms: bool = False
    matrices: tuple[Matrix, ...] = ()

    def adapter(self, rank: int, dora: bool = False, targets: Collection[str] | None = None) -> int:
        """Returns how many elements an adapter has. targets: full names, or last parts of them; None: all but the head."""
        return sum(
            count * (rank * (rows + columns) + (rows if dora else 0))
            for name, rows, columns, count in self.matrices
            if targets is None or any(name == t or name.endswith(f".{t}") for t in targets)
        )


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
    names = {name for name, _ in shapes}
    return ModelSize(
        parameters=sum(math.prod(shape) for _, shape in shapes),
        layers=_first(config, "num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        inner=_first(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        key_width=(_first(config, "num_key_value_heads") or heads) * width,
        vocabulary=_first(config, "vocab_size"),
        query_width=heads * width,
        head_width=width,
        tied=not any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in names),
        head_norms=any(name.endswith("q_norm.weight") for name in names),
        matrices=tuple(_matrices(shapes)),
    )


def _matrices(shapes: Iterable[tuple[str, list[int]]]) -> Iterator[Matrix]:
    """Yields the linear layers, W [out, in]: matrices among the weights, but for embeddings and the head."""
    for name, shape in shapes:
        module = name.removesuffix(".weight")
        own = module.rpartition(".")[2]
        if len(shape) == 2 and module != name and "embed" not in own and own not in ("wte", "wpe", "lm_head"):
            yield module, shape[0], shape[1], 1


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
