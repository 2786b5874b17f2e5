"""Checks the bytes that autograd keeps, tensor by tensor, against what is planned for a layer and a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from learner.policy import Policy
from learner.settings import LoraSettings
from orchestration.memory.activations import heap_gaps, inputs_on_host, layer_bytes, pass_bytes
from orchestration.memory.model_size import ModelSize

ROWS, LENGTH, RANK = 4, 64, 8
TOKENS = ROWS * LENGTH
WIDE: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2,
                        "vocab_size": 128, "max_position_embeddings": 512, "head_dim": 16}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
SIZE = ModelSize(0, 1, 96, 256, 32, 128, query_width=96, head_width=16, matrices=(("any", 8, 8, 7),))


def size_of(family: str) -> ModelSize:
    return replace(SIZE, head_norms=family == "qwen3")


def kept(family: str, dtype: torch.dtype, adapted: bool, layers: int, recompute: bool = False) -> int:
    """Returns the bytes that a packed forward pass keeps for backward, weights and buffers left out."""
    torch.manual_seed(0)
    config = CONFIGS[family](**WIDE, num_hidden_layers=layers)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            module.training = module.training or getattr(module, "gradient_checkpointing", False)
    policy = Policy(model).cast(dtype)
    if adapted:
        policy.adapt(LoraSettings(rank=RANK), "base", 0)
    own = {t.untyped_storage().data_ptr() for t in (*policy.parameters(), *policy.buffers())}
    found: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # so that no address is used twice
        return tensor

    tokens = torch.randint(0, 100, (1, TOKENS))
    positions = torch.arange(LENGTH).repeat(ROWS)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        alive.append(policy(tokens, positions, torch.arange(200), torch.randint(0, 100, (200,)), 1.0)[0])
    return sum(found.values())


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_layer_keeps_what_is_planned_to_the_byte(family: str, dtype: torch.dtype, adapted: bool) -> None:
    a_layer = kept(family, dtype, adapted, 3) - kept(family, dtype, adapted, 2)
    planned = layer_bytes(size_of(family), dtype.itemsize, RANK if adapted else None)
    if family == "qwen3":
        planned += 4 * (6 + 2)  # the norms' own scales, one a head: too few to plan for
    assert a_layer == TOKENS * planned


def test_inputs_that_are_kept_on_the_host_are_page_locked_in_powers_of_two() -> None:
    deep = replace(SIZE, layers=10)
    inputs = TOKENS * SIZE.hidden * 2
    assert pass_bytes(deep, 2, TOKENS, None, True) - pass_bytes(deep, 2, TOKENS, None, True, True) == 8 * inputs
    assert pass_bytes(SIZE, 2, TOKENS, None, True, True) == pass_bytes(SIZE, 2, TOKENS, None, True), "of a single layer"
    assert inputs_on_host(deep, 2, TOKENS) == 10 * 2**16 > 10 * inputs == 10 * 49_152
    assert inputs_on_host(replace(deep, hidden=128), 2, TOKENS) == 10 * 2**16, "no more than a power of two needs"


def test_with_checkpoints_a_layer_keeps_its_input() -> None:
    a_layer = kept("llama", torch.float32, False, 3, True) - kept("llama", torch.float32, False, 2, True)
    assert a_layer == TOKENS * SIZE.hidden * 4
    deep = replace(SIZE, layers=10)
    saved = pass_bytes(deep, 4, TOKENS, None, False) - pass_bytes(deep, 4, TOKENS, None, True)
    assert saved == TOKENS * (9 * layer_bytes(deep, 4, None) - 10 * SIZE.hidden * 4)


def test_gaps_in_the_heap_are_two_outputs_of_every_adapted_matrix() -> None:
    assert heap_gaps(replace(SIZE, layers=2), 4, 100, False) == 2 * 100 * 4 * 7 * 8
    assert heap_gaps(replace(SIZE, layers=2), 4, 100, True) == 100 * 4 * 7 * 8
