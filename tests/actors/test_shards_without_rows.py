"""A shard of an embedding that has none of the vocabulary's rows is given nothing by a transfer, and that is no fault."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from actors import vllm_worker


@pytest.mark.parametrize(("rows", "stale"), [(0, set[str]()), (5, {"embed.weight"})])
def test_nothing_is_written_past_a_shard_without_rows(
    monkeypatch: pytest.MonkeyPatch, rows: int, stale: set[str]
) -> None:
    embed: Any = VocabParallelEmbedding.__new__(VocabParallelEmbedding)
    nn.Module.__init__(embed)
    embed.weight = nn.Parameter(torch.zeros(32, 4))
    embed.shard_indices = SimpleNamespace(num_org_elements=rows, num_added_elements=0)
    model = nn.Module()
    model.embed = embed
    nothing = SimpleNamespace(can_load=lambda: True, load_numel=0)
    other = SimpleNamespace(can_load=lambda: False, load_numel=0)
    monkeypatch.setattr(vllm_worker, "get_layerwise_info", lambda layer: nothing if layer is embed else other)
    assert vllm_worker._written_past(model, {"embed.weight"}) == stale
