"""Computes log-prob, exact entropy and the ledger's statistics at the action tokens from hidden states and head.

For logits z = cap(scale h W^T) / temperature of one position, with p = softmax(z), H = -sum p log p and L = log p + H:

    logp = log p_a            d logp / dz = onehot(a) - p
    H                         d H / dz    = -p * L
    kappa     = sum_b p_b^2 L_b      (no gradient: these two are statistics of the ledger)
    entropy_grad_sq = sum_b p_b^2 L_b^2    = |dH/dz|^2

The [N, V] logits never exist at once, forward or backward: a block of rows x vocabulary does, and backward makes it anew
(learner/head/), on CUDA in Triton's kernels, elsewhere in a form for the processor's cache. The product h W^T is rounded to the
weights' own precision, as the engine does, or not, with `fp32_head`, as the engine then does too; everything else is float32.
Gradients come back in the type of what they are the gradients of.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from learner.head import blocks, fused
from learner.head.blocks import LogitGradient
from learner.head.logits import Head

DEFAULT_CHUNK = 1024  # rows of logits alive at once


@cache
def has_kernels(device: torch.device) -> bool:
    """Returns whether the head runs in Triton's kernels: on CUDA from Ampere on, whose tensor cores Triton uses."""
    return (
        device.type == "cuda" and find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    )


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        statistics: bool,
        keep: bool,
        settings: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.settings, ctx.chunk = settings, chunk
        # The parameters are kept by reference, not through save_for_backward: under ZeRO-3 their storage is released after
        # forward and gathered again, into the same object, before backward.
        ctx.weight, ctx.bias = weight, bias
        ctx.set_materialize_grads(False)
        if not len(hidden):  # four tensors: marking two of them below would take the gradient from the others as well
            ctx.save_for_backward(hidden, targets)
            empty = tuple(hidden.new_zeros(0, dtype=torch.float32) for _ in range(4))
            ctx.mark_non_differentiable(*empty[2:])
            return empty  # type: ignore[return-value]
        head = Head(weight, bias, **settings)
        if has_kernels(hidden.device):
            rows, kept = fused.forward(hidden, head, targets, statistics), None
        else:
            rows, kept = blocks.forward(hidden, head, targets, chunk, statistics, keep)
        ctx.save_for_backward(hidden, targets, kept, rows.reference, rows.total, rows.mean)
        ctx.mark_non_differentiable(rows.kappa, rows.entropy_grad_sq)
        return rows.logp, rows.entropy, rows.kappa, rows.entropy_grad_sq

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_logp, grad_entropy, *_ = grads
        hidden, targets, *saved = ctx.saved_tensors  # and kept, reference, total, mean where there are rows
        head, wanted = Head(ctx.weight, ctx.bias, **ctx.settings), ctx.needs_input_grad[:3]
        if not saved or (grad_logp is None and grad_entropy is None):
            leaves = (hidden, ctx.weight, ctx.bias)
            return *(torch.zeros_like(x) if w else None for x, w in zip(leaves, wanted, strict=True)), *(None,) * 5
        gradient = _logit_gradient(head, grad_logp, grad_entropy, *saved[1:])
        if saved[0] is None:
            return *fused.backward(hidden, head, targets, gradient, wanted), *(None,) * 5
        return *blocks.backward(hidden, head, targets, gradient, saved[0], ctx.chunk, wanted), *(None,) * 5


def _logit_gradient(
    head: Head, grad_logp: Tensor | None, grad_entropy: Tensor | None, reference: Tensor, total: Tensor, mean: Tensor
) -> LogitGradient:
    """Makes grad_logp (onehot - p) - grad_entropy p (log p + H) of p = e^q / total and log p + H = q - mean."""
    at_target = torch.zeros_like(total) if grad_logp is None else grad_logp * head.slope
    constant, linear = -at_target / total, None
    if grad_entropy is not None:
        linear = -grad_entropy * head.slope / total
        constant = constant - linear * mean
    return LogitGradient(reference, at_target, constant, linear)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int = DEFAULT_CHUNK,
    fp32_head: bool = False,
    statistics: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Takes hidden [N, D], weight [V, D], targets [N] to (logp, entropy, kappa, entropy_grad_sq), each float32 [N], in nats.

    Differentiable in hidden, weight and bias through logp and entropy. N may be 0. scale: what the logits, bias included, are
    multiplied by before the soft cap (learner/families/logit_scale.py). fp32_head: the head's product in float32,
    whatever the types of hidden and weight. statistics: False leaves kappa and entropy_grad_sq out, which then are [0]: empty
    rather than a number that could be taken for one.
    """
    settings = {"temperature": temperature, "softcap": softcap, "scale": scale, "fp32": fp32_head}
    keep = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)  # inside it is never enabled
    return _TokenLogProbs.apply(hidden, weight, bias, targets, chunk, statistics, keep, settings)  # type: ignore[return-value]
