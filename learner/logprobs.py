"""Computes log-prob, exact entropy and the ledger's statistics at the action tokens from hidden states and head.

For logits z = cap(scale h W^T) / temperature of one position, with p = softmax(z), H = -sum p log p and L = log p + H:

    logp = log p_a            d logp / dz = onehot(a) - p
    H                         d H / dz    = -p * L
    kappa     = sum_b p_b^2 L_b      (no gradient: these two are statistics of the ledger)
    entropy_grad_sq = sum_b p_b^2 L_b^2    = |dH/dz|^2

The [N, V] logits never exist at once, forward or backward: `chunk` rows do, and backward recomputes them.
The product h W^T is taken in the weights' own precision, as the engine does, or in float32 with `fp32_head`, as the engine then
does too; everything after it is float32. Gradients come back in the type of what they are the gradients of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DEFAULT_CHUNK = 1024  # rows of logits alive at once


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None, scale: float
) -> Tensor:
    """[n, D], [V, D] -> float32 [n, V]"""
    z = torch.nn.functional.linear(hidden, weight, bias).float()
    if scale != 1.0:
        z = z * scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return z / temperature


def _head(weight: Tensor, bias: Tensor | None, fp32_head: bool) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the type the product is taken in: cast once for all chunks."""
    if not fp32_head:
        return weight, bias
    return weight.float(), None if bias is None else bias.float()


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        softcap: float | None,
        scale: float,
        chunk: int,
        fp32_head: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        w, b = _head(weight, bias, fp32_head)
        for start in range(0, len(hidden), chunk):
            z = _logits(hidden[start : start + chunk].to(w.dtype), w, b, temperature, softcap, scale)
            log_p = z.log_softmax(-1)
            p = log_p.exp()
            entropy = -(p * log_p).sum(-1)
            pull = p * (log_p + entropy[:, None])  # -dH/dz at temperature 1
            kappa, entropy_grad_sq = (p * pull).sum(-1), (pull * pull).sum(-1)
            logp = log_p.gather(-1, targets[start : start + chunk, None])[:, 0]
            parts.append((logp, entropy, kappa, entropy_grad_sq))
        if parts:
            logp, entropy, kappa, entropy_grad_sq = (torch.cat(x) for x in zip(*parts, strict=True))
        else:  # four tensors: marking two of them below would take the gradient from the others as well
            logp, entropy, kappa, entropy_grad_sq = (hidden.new_zeros(0, dtype=torch.float32) for _ in range(4))
        # The parameters are kept by reference, not through save_for_backward: under ZeRO-3 their storage is released after
        # forward and gathered again, into the same object, before backward.
        ctx.weight, ctx.bias = weight, bias
        ctx.save_for_backward(hidden, targets)
        ctx.temperature, ctx.softcap, ctx.scale = temperature, softcap, scale
        ctx.chunk, ctx.fp32_head = chunk, fp32_head
        ctx.mark_non_differentiable(kappa, entropy_grad_sq)
        return logp, entropy, kappa, entropy_grad_sq

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logp, grad_entropy, *_ = grads
        hidden, targets = ctx.saved_tensors
        weight, bias = ctx.weight, ctx.bias
        w, b = _head(weight, bias, ctx.fp32_head)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, len(hidden), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            h = hidden[rows].to(w.dtype)
            z = _logits(h, w, b, ctx.temperature, ctx.softcap, ctx.scale)
            log_p = z.log_softmax(-1)
            p = log_p.exp()
            entropy = -(p * log_p).sum(-1, keepdim=True)
            dz = -p * (grad_logp[rows, None] + grad_entropy[rows, None] * (log_p + entropy))
            dz.scatter_add_(-1, targets[rows, None], grad_logp[rows, None])
            if ctx.softcap is not None:  # d cap*tanh(x/cap) = 1 - tanh^2
                dz = dz * (1.0 - (z * ctx.temperature / ctx.softcap) ** 2)
            dz = (dz * (ctx.scale / ctx.temperature)).to(w.dtype)
            grad_hidden[rows] = dz @ w
            grad_weight += (dz.T @ h).float()
            if grad_bias is not None:
                grad_bias += dz.float().sum(0)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype),
            None if bias is None or grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 6,
        )


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Takes hidden [N, D], weight [V, D], targets [N] to (logp, entropy, kappa, entropy_grad_sq), each float32 [N], in nats.

    Differentiable in hidden, weight and bias through logp and entropy. N may be 0. scale: what the logits, bias included, are
    multiplied by before the soft cap (learner/families/logit_scale.py). fp32_head: the head's product in float32,
    whatever the types of hidden and weight; it costs a float32 copy of the weight while the chunks run.
    """
    return _TokenLogProbs.apply(  # type: ignore[return-value]
        hidden, weight, bias, targets, temperature, softcap, scale, chunk, fp32_head
    )
