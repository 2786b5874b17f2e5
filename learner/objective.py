"""Computes the loss in one function; everything else that shapes a gradient comes in through its arguments.

Scaling contract: `token_loss` returns sum over the micro-batch of weight_t * loss_t, with the weights set once for all
micro-batches of all ranks of one update (learner/batching.py, by `aggregation`):

    token      weight = 1 / action tokens of the update             sums to 1                            (DAPO, arXiv 2503.14476)
    sequence   weight = 1 / (trajectories * its action tokens)      sums to 1                            (GRPO, arXiv 2402.03300)
    constant   weight = 1 / (trajectories * sampling.max_tokens)    sums to mean length / max_tokens (Dr. GRPO, arXiv 2503.20783)

Nothing here divides. The engine that averages gradients over ranks is given loss * ranks (learner/deepspeed_engine.py).

    loss_t = importance_t * shaping.weight_t * surrogate_t - bonus_t * H_t + kl_t * D_t(old) + coefficient * KL_t(reference)

The correction for engine log-probs multiplies the surrogate alone: it is the surrogate whose samples came from the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from learner.settings import Estimator, ImportanceSettings, ObjectiveSettings
from learner.types import LossData, LossTerms, Shaping


@dataclass(frozen=True, slots=True)
class ClipRange:
    """Holds the ratio pi / pi_old in [1 - low, 1 + high]; a low of 1 or inf and a high of inf bound nothing."""

    low: Tensor | float
    high: Tensor | float

    def apply(self, ratio: Tensor) -> Tensor:
        low, high = (torch.as_tensor(x, dtype=ratio.dtype, device=ratio.device) for x in (self.low, self.high))
        return torch.minimum(torch.maximum(ratio, 1.0 - low), 1.0 + high)


def _consecutive(trajectory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (values, index into them [N], counts) of runs of equal values; torch leaves the types open."""
    return cast(Any, trajectory).unique_consecutive(return_inverse=True, return_counts=True)


def per_trajectory(values: Tensor, trajectory: Tensor, *, mean: bool) -> Tensor:
    """Gives each token the sum or mean of its trajectory's values. [N], [N] -> [N]"""
    _, index, count = _consecutive(trajectory)
    sums = values.new_zeros(len(count)).index_add(0, index, values)
    return (sums / count if mean else sums)[index]


def weigh(importance: ImportanceSettings, log_ratio: Tensor, trajectory: Tensor) -> tuple[Tensor, Tensor]:
    """Corrects for the engine's log-probs: log(trainer / engine) [N] -> (weight [N], which tokens were limited, bool [N])."""
    if importance.kind == "none":
        return torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool)
    total = per_trajectory(log_ratio, trajectory, mean=False) if importance.level == "sequence" else log_ratio
    w = total.exp()
    if importance.kind == "truncated":
        return w.clamp(max=importance.cap), w > importance.cap
    out = (w > importance.cap) | (w < importance.floor)
    return torch.where(out, torch.zeros_like(w), w), out


# --- surrogates: (log ratio with gradient, advantages, clip) -> loss [N] --------------------------------------------------


def policy_gradient(logp: Tensor, log_ratio: Tensor, advantages: Tensor, clip: ClipRange) -> Tensor:
    """Returns -A * pi / stop_grad(pi): the gradient of REINFORCE, a loss of -A. On-policy: use it with one update per batch. [N]"""
    return -advantages * (logp - logp.detach()).exp()


def ppo(logp: Tensor, log_ratio: Tensor, advantages: Tensor, clip: ClipRange) -> Tensor:
    """Returns -min(r A, clip(r, 1 - low, 1 + high) A), r = pi / pi_old. PPO, arXiv 1707.06347, eq. 7. [N]"""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, clip.apply(ratio) * advantages)


def cispo(logp: Tensor, log_ratio: Tensor, advantages: Tensor, clip: ClipRange) -> Tensor:
    """Returns -stop_grad(clip(r)) A log pi: a clipped token keeps its gradient, with a limited weight. [N]

    MiniMax-M1, arXiv 2506.13585, eqs. 4-5; its authors set no lower bound (learner/settings.py:OWN_CLIP).
    """
    return -clip.apply(log_ratio.exp()).detach() * advantages * logp


def gspo(logp: Tensor, log_ratio: Tensor, advantages: Tensor, clip: ClipRange) -> Tensor:
    """Returns PPO's loss of the sequence ratio s = exp(mean over the response of log r), the same for all its tokens.

    Its gradient is spread over them. GSPO-token, arXiv 2507.18071, eq. 13: with aggregation "sequence" and one advantage a
    response it is GSPO, eq. 5. `token_loss` gives it log s. [N]"""
    return ppo(logp, log_ratio, advantages, clip)


Surrogate = Callable[[Tensor, Tensor, Tensor, ClipRange], Tensor]
SURROGATES: dict[str, Surrogate] = {"policy_gradient": policy_gradient, "ppo": ppo, "cispo": cispo, "gspo": gspo}
SEQUENCE_RATIO = frozenset({"gspo"})  # surrogates whose ratio is the trajectory's
CLIPPED = frozenset({"ppo", "gspo", "cispo"})  # surrogates that look at the clip range at all


def sequence_log_ratio(logp: Tensor, old_logp: Tensor, trajectory: Tensor) -> Tensor:
    """Returns log s of GSPO: the value of every token is the trajectory's mean log ratio, its gradient is that of its own logp. [N]

    Averaged over the tokens of a trajectory (aggregation "sequence") the gradients are that of the mean.
    """
    return per_trajectory((logp - old_logp).detach(), trajectory, mean=True) + (logp - logp.detach())


# --- KL to the reference policy ---------------------------------------------------------------------------------------------


def reference_penalty(logp: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """Returns the differentiable part of the KL(pi || reference) penalty, on samples of pi. [N]

        k1  log pi - log ref          zero gradient on average as a loss, so it is NOT one: it goes into the advantage
        k2  (log pi - log ref)^2 / 2  its gradient is that of the KL, without bias
        k3  x - 1 - log x, x = ref / pi: never negative, unbiased in value (GRPO, arXiv 2402.03300, eq. 4)

    Estimators: "Approximating KL divergence", Schulman 2020; what their gradients are: arXiv 2506.09477.
    """
    difference = reference - logp
    if estimator == "k1":
        return torch.zeros_like(logp)
    if estimator == "k2":
        return 0.5 * difference**2
    return k3(difference)


def reference_pull(logp: Tensor, reference: Tensor | None, objective: ObjectiveSettings) -> Tensor | None:
    """Minus the penalty's slope in log pi, coefficient included: the advantage that would move a token as the penalty does. With
    k2 kl * log(ref / pi), with k3 kl * (ref / pi - 1). None where nothing pulls, or where k1 has it in the advantage. [N]"""
    if reference is None or objective.kl.coefficient == 0.0 or objective.kl.estimator == "k1":
        return None
    apart = reference - logp
    return objective.kl.coefficient * (apart if objective.kl.estimator == "k2" else torch.expm1(apart))


def k3(difference: Tensor) -> Tensor:
    """Returns exp(d) - 1 - d for d = log(other / pi): never negative. [N]"""
    return difference.exp() - difference - 1.0


def old_policy_penalty(log_ratio: Tensor, form: Literal["kl", "abs"]) -> Tensor:
    """Returns the penalty towards the policy that sampled, log_ratio = log pi - log pi_old with gradient. [N]

        kl   k3(log_ratio) = r - 1 - log r: on samples of old its mean is KL(old || pi), and so is the mean of its gradient r - 1
        abs  |log r|: gradient 1 above and -1 below, however far; no estimate of a KL, and not smooth where nothing has moved

    KL-Cov's paper states the first (arXiv 2505.22617, eqs. 13-14), its authors' code trains with the second
    (learner/entropy/covariance.py). The same estimator with `other` and `pi` exchanged, k3(-log_ratio), is that of samples of pi.
    """
    return log_ratio.abs() if form == "abs" else k3(log_ratio)


def with_reference(
    advantages: Tensor, old_logp: Tensor, reference: Tensor | None, objective: ObjectiveSettings
) -> Tensor:
    """Returns A - kl * (log pi_old - log ref) with estimator k1: the penalty as a reward of every token; else A. [N]"""
    if reference is None or objective.kl.estimator != "k1" or objective.kl.coefficient == 0.0:
        return advantages
    return advantages - objective.kl.coefficient * (old_logp - reference)


# --- clipping -------------------------------------------------------------------------------------------------------------


def clip_range(objective: ObjectiveSettings, shaping: Shaping) -> ClipRange:
    """Returns the objective's clip range with what an entropy method puts in its place."""
    low, high = objective.clip
    return ClipRange(
        low if shaping.clip_low is None else shaping.clip_low, high if shaping.clip_high is None else shaping.clip_high
    )


def surrogate_log_ratio(logp: Tensor, old_logp: Tensor, trajectory: Tensor, objective: ObjectiveSettings) -> Tensor:
    """Returns the log ratio that the surrogate is a function of: a token's own, or its trajectory's. [N]"""
    if objective.surrogate in SEQUENCE_RATIO:
        return sequence_log_ratio(logp, old_logp, trajectory)
    return logp - old_logp


def clipping(
    ratio: Tensor, advantages: Tensor, clip: ClipRange, objective: ObjectiveSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (clipped from above [N] bool, from below [N] bool, what is left of the ratio as a factor of the gradient [N]).

    CISPO limits a token's weight whatever the sign of its advantage. PPO's minimum takes the clip on one side only, and leaves
    nothing. A policy gradient does not look at the range, and its gradient is that of a ratio of 1 (`gradient_weight`).
    """
    any_sign = torch.full_like(advantages, objective.surrogate == "cispo", dtype=torch.bool)
    clips = objective.surrogate in CLIPPED
    high = (ratio > 1.0 + clip.high) & ((advantages > 0) | any_sign) & clips
    low = (ratio < 1.0 - clip.low) & ((advantages < 0) | any_sign) & clips
    bound = torch.where(any_sign, clip.apply(ratio), torch.zeros_like(ratio))
    return high, low, torch.where(high | low, bound, ratio)


def gradient_weight(logp: Tensor, data: LossData, importance: Tensor | None, objective: ObjectiveSettings) -> Tensor:
    """Returns g with d(loss of the surrogate) / d(log pi) = -g * A, before any shaping. [N], detached

    g = loss weight * correction for engine log-probs * what clipping leaves of the ratio. importance: None for 1.
    """
    ratio = surrogate_log_ratio(logp, data.old_logp, data.trajectory, objective).detach().exp()
    *_, kept = clipping(ratio, data.advantages, clip_range(objective, Shaping()), objective)
    kept = kept if objective.surrogate in CLIPPED else torch.ones_like(kept)
    return data.weight * kept if importance is None else data.weight * importance * kept


# --- the loss ---------------------------------------------------------------------------------------------------------------


def token_loss(
    logp: Tensor, entropy: Tensor, data: LossData, shaping: Shaping, objective: ObjectiveSettings
) -> LossTerms:
    """Computes the loss of a micro-batch and its diagnostics. logp and entropy float32 [N], with gradient.

    `shaping.advantages`, if given, replaces data.advantages altogether.
    """
    clip = clip_range(objective, shaping)
    shaped = data.advantages if shaping.advantages is None else shaping.advantages
    log_ratio = surrogate_log_ratio(logp, data.old_logp, data.trajectory, objective)
    per_token = SURROGATES[objective.surrogate](logp, log_ratio, shaped, clip)
    if data.engine_logp is None:
        importance, limited = torch.ones_like(data.old_logp), torch.zeros_like(data.old_logp, dtype=torch.bool)
    else:
        importance, limited = weigh(objective.importance, data.old_logp - data.engine_logp, data.trajectory)
    if objective.importance.kind != "none":
        per_token = per_token * importance
    if shaping.weight is not None:
        per_token = per_token * shaping.weight
    if shaping.bonus is not None:
        per_token = per_token - shaping.bonus * entropy
    if shaping.kl is not None:
        per_token = per_token + shaping.kl * old_policy_penalty(logp - data.old_logp, shaping.kl_form)
    if objective.kl.coefficient and data.reference_logp is not None:
        penalty = reference_penalty(logp, data.reference_logp, objective.kl.estimator)
        per_token = per_token + objective.kl.coefficient * penalty
    with torch.no_grad():
        ratio = log_ratio.exp()
        high, low, kept = clipping(ratio, shaped, clip, objective)
        diagnostics = {
            "ratio": ratio,
            "clipped_high": high,
            "clipped_low": low,
            # A token's gradient is that of importance * ratio * A * log pi; this much of its factor the clip took away.
            "withheld": torch.where(high | low, importance * (ratio - kept), torch.zeros_like(ratio)),
            "kl": k3(log_ratio),  # of KL(old || pi), on samples of old
            "importance": importance,
            "limited": limited,
        }
    return LossTerms((data.weight * per_token).sum(), diagnostics)
