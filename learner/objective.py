"""THE loss. One function; everything else that shapes a gradient comes in through its arguments.

Scaling contract: `token_loss` returns sum over the micro-batch of weight_t * loss_t, where the weights sum to 1 over all
micro-batches of all ranks of one update (learner/batching.py sets them, by `aggregation`):

    token      weight = 1 / action tokens of the update           (DAPO, arXiv 2503.14476)
    sequence   weight = 1 / (trajectories * its action tokens)    (GRPO, arXiv 2402.03300)

Nothing here divides. The engine that averages gradients over ranks is handed loss * ranks (learner/deepspeed_engine.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.types import LossTerms, Shaping


@dataclass(frozen=True, slots=True)
class ClipRange:
    """The ratio pi / pi_old is held in [1 - low, 1 + high]."""

    low: float
    high: Tensor | float


def policy_gradient(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: ClipRange) -> Tensor:
    """-A * pi / stop_grad(pi): the gradient of REINFORCE, a loss of -A. On-policy: use it with one update per batch. [N]"""
    return -advantages * (logp - logp.detach()).exp()


def ppo(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: ClipRange) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A), r = pi / pi_old. PPO, arXiv 1707.06347, eq. 7. [N]"""
    ratio = (logp - old_logp).exp()
    high = torch.as_tensor(clip.high, dtype=ratio.dtype, device=ratio.device)
    clipped = torch.minimum(ratio.clamp(min=1.0 - clip.low), 1.0 + high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


Surrogate = Callable[[Tensor, Tensor, Tensor, ClipRange], Tensor]
SURROGATES: dict[str, Surrogate] = {"policy_gradient": policy_gradient, "ppo": ppo}


def token_loss(
    logp: Tensor,
    entropy: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    weight: Tensor,
    shaping: Shaping,
    *,
    surrogate: str,
    clip_low: float,
    clip_high: float,
) -> LossTerms:
    """All tensors float32 [N]; logp and entropy carry gradient, the rest is data."""
    clip = ClipRange(clip_low, clip_high if shaping.clip_high is None else shaping.clip_high)
    shaped = advantages if shaping.advantages is None else shaping.advantages
    per_token = SURROGATES[surrogate](logp, old_logp, shaped, clip)
    if shaping.weight is not None:
        per_token = per_token * shaping.weight
    if shaping.bonus is not None:
        per_token = per_token - shaping.bonus * entropy
    if shaping.kl is not None:
        difference = old_logp - logp
        per_token = per_token + shaping.kl * (difference.exp() - difference - 1.0)  # k3: unbiased, never negative
    with torch.no_grad():
        log_ratio = logp - old_logp
        ratio = log_ratio.exp()
        diagnostics = {
            "ratio": ratio,
            "clipped_high": (ratio > 1.0 + clip.high) & (shaped > 0),
            "clipped_low": (ratio < 1.0 - clip.low) & (shaped < 0),
            "kl": ratio - 1.0 - log_ratio,  # k3 of KL(old || pi), on samples of old
        }
    return LossTerms((weight * per_token).sum(), diagnostics)
