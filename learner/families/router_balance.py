"""Keeps the experts of a mixture in use: the load-balancing loss of their routers.

    L = E sum_e f_e P_e        Switch Transformer, Fedus et al. 2021 (arXiv 2101.03961), eqs. 4-6

E experts; f_e is the share of (token, layer) pairs that choose e among their top k, P_e the mean probability that the routers give
e. f has no gradient. It is transformers' own function, and the tokens are those positions that predict a sampled token: padding,
prompts and packing do not matter. A micro-batch's loss counts with the sum of its tokens' loss weights, which are 1 over all
micro-batches of all ranks of an update. f is a micro-batch's own: with one micro-batch it is the loss of the update, with several
it is somewhat stricter, since each has to be balanced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func


def has_routers(model: Any) -> bool:
    """Returns whether a transformers model can be asked for the logits of its routers."""
    return {"output_router_logits", "num_experts_per_tok"} <= model.config.to_dict().keys()


def balance_loss(logits: Sequence[Tensor], rows: Tensor, top_k: int) -> Tensor:
    """Returns the loss, a float32 scalar. logits: of each layer's router, [B * T, E] or [B, T, E]; rows [N]: which tokens count."""
    chosen = tuple(layer.reshape(-1, layer.shape[-1])[rows] for layer in logits)
    loss = cast(Any, load_balancing_loss_func)  # annotated for one layer
    return cast(Tensor, loss(chosen, chosen[0].shape[-1], top_k))
