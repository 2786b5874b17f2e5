"""Keeps the experts of a mixture in use: the load-balancing loss of their routers.

    L = E sum_e f_e P_e        Switch Transformer, Fedus et al. 2021 (arXiv 2101.03961), eqs. 4-6

E experts; f_e is the share of (token, layer) pairs that choose e among their top k, P_e the mean probability that the routers
give e; they sum to k and to 1. f has no gradient, so given f the loss is a sum over tokens, each with its weight in the loss. f is
counted over the fresh batch of all ranks, in the pass that measures it: ranks and micro-batches cannot matter. Only positions that
predict a sampled token count: padding, prompts and packing do not matter either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def has_routers(model: Any) -> bool:
    """Returns whether a transformers model can be asked for the logits of its routers."""
    return {"output_router_logits", "num_experts_per_tok"} <= model.config.to_dict().keys()


def _probabilities(logits: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Returns what the routers give every expert, [layers, N, E]. logits: of each layer, [B * T, E] or [B, T, E]; rows [N]"""
    return torch.stack([layer.reshape(-1, layer.shape[-1])[rows] for layer in logits]).float().softmax(-1)


def expert_counts(logits: Sequence[Tensor], rows: Tensor, top_k: int) -> Tensor:
    """Counts how often each expert is among the top k of a (token, layer) pair, and in the last place the pairs. float64 [E + 1]"""
    p = _probabilities(logits, rows)
    chosen = torch.zeros_like(p).scatter_(-1, p.topk(top_k).indices, 1.0).sum((0, 1), dtype=torch.float64)
    return torch.cat([chosen, chosen.new_tensor([p.shape[0] * p.shape[1]])])


def balance_losses(logits: Sequence[Tensor], rows: Tensor, share: Tensor) -> Tensor:
    """Returns E sum_e f_e p_e of each position, p the mean of its layers' routers. share [E]: f. float32 [N]"""
    return len(share) * (_probabilities(logits, rows).mean(0) @ share.float())
