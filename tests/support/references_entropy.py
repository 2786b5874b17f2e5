"""States the methods of entropy control as their papers do, on plain numbers. They share nothing with the code but the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


# --- REPO ---------------------------------------------------------------------------------------------------------------------


def repo(kind: str, a: float, logp: float, entropy: float, coefficient: float, **form: Any) -> float:
    """arXiv 2603.11682: A' = A - beta L; REPO beta = coefficient, REPO-R beta = coefficient |A| without a change of sign; the
    positive part beta = coefficient max(A, 0)."""
    surprise = logp + entropy if form.get("centred", True) else logp
    if kind == "repo":
        return a - coefficient * surprise
    beta = coefficient * (max(a, 0.0) if form.get("part") == "positive" else abs(a))
    shaped = a - beta * surprise
    return max(shaped, 0.0) if a > 0 else min(shaped, 0.0)


def log_softmax(logits: Array) -> Array:
    """Returns the log-probs of rows of logits. [S, V] -> [S, V]"""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def total_entropy(logits: Array) -> float:
    log_p = log_softmax(logits)
    return float(-(np.exp(log_p) * log_p).sum())


def surrogate(
    logits: Array, at: Array, old: Array, advantages: Array, weight: Array, rule: tuple[str, float, float]
) -> float:
    """Returns the objective that an update climbs, over a table in which every action is a response of one token. [S, V] each

    rule: the surrogate and its clip range. PPO, arXiv 1707.06347, eq. 7, which is GSPO with one token; CISPO, arXiv 2506.13585,
    eq. 4, whose weight is taken at the logits `at`; REINFORCE.
    """
    name, low, high = rule
    log_p = log_softmax(logits)
    if name == "policy_gradient":
        each = advantages * log_p
    elif name == "cispo":
        each = np.clip(np.exp(log_softmax(at) - old), 1 - low, 1 + high) * advantages * log_p
    else:
        ratio = np.exp(log_p - old)
        each = np.minimum(ratio * advantages, np.clip(ratio, 1 - low, 1 + high) * advantages)
    return float((weight * each).sum())


def free_change(logits: Array, old: Array, advantages: Array, weight: Array, rule: tuple[str, float, float]) -> float:
    """Returns the entropy that a step of size 1 along the objective's gradient adds, to first order, by central differences."""
    eps, gradient = 1e-5, np.zeros_like(logits)
    for at in np.ndindex(*logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[at] += sign * eps
            ends.append(surrogate(moved, logits, old, advantages, weight, rule))
        gradient[at] = (ends[0] - ends[1]) / (2 * eps)
    return (total_entropy(logits + eps * gradient) - total_entropy(logits - eps * gradient)) / (2 * eps)


# --- Clip-Cov, KL-Cov: arXiv 2505.22617 -----------------------------------------------------------------------------------------


def covariances(a: Sequence[float], logp: Sequence[float]) -> list[float]:
    """Returns the covariances of eq. 10, over all tokens of the batch."""
    mean_a, mean_x = math.fsum(a) / len(a), math.fsum(logp) / len(logp)
    return [(x - mean_a) * (y - mean_x) for x, y in zip(a, logp, strict=True)]


def clipped_by_ppo(logp: float, old: float, a: float, low: float, high: float) -> bool:
    """Returns whether PPO's minimum takes the clipped term: `clip_by_origin` of the authors' code."""
    ratio = math.exp(logp - old)
    return min(max(ratio, 1 - low), 1 + high) * a < ratio * a


def clip_cov(
    c: Sequence[float], clipped: Sequence[bool], uniform: Sequence[float], share: float, low: float, high: float
) -> set[int]:
    """Eq. 11: share * N tokens, at random, of those with covariance in [low, high], those clipped already aside as in the authors'
    code; here rounded up, and the draw is in the order of the tokens' own numbers."""
    able = sorted((u, i) for i, u in enumerate(uniform) if low <= c[i] <= high and not clipped[i])
    return {i for _, i in able[: math.ceil(share * len(c))]}


def kl_cov(c: Sequence[float], uniform: Sequence[float], share: float) -> set[int]:
    """Selects the share of the tokens with the highest covariance, rounded up; equal ones by their own numbers. Eq. 13."""
    ranked = sorted(range(len(c)), key=lambda i: (-c[i], uniform[i]))
    return set(ranked[: math.ceil(share * len(c))])


def kl_cov_loss(
    logp: Sequence[float], old: Sequence[float], a: Sequence[float], chosen: set[int], beta: float, form: str
) -> float:
    """Returns the loss of eq. 14, a mean over tokens of -r A, and for the chosen ones + beta * D. There is no clip in it.

    D = KL(old || pi), estimated from a sample of old by k3 of Schulman 2020, "Approximating KL divergence": with x = pi / old,
    (x - 1) - log x; or, as in the authors' code, |log pi - log old|.
    """
    total = 0.0
    for i, (new, before, advantage) in enumerate(zip(logp, old, a, strict=True)):
        x = math.exp(new) / math.exp(before)
        total -= x * advantage
        if i in chosen:
            total += beta * (abs(new - before) if form == "abs" else (x - 1) - math.log(x))
    return total / len(logp)


def slopes(value: Any, at: Sequence[float], eps: float = 1e-6) -> list[float]:
    """Returns the gradient of a function of a list of numbers, by central differences."""
    out = []
    for i in range(len(at)):
        ends = [value([*at[:i], at[i] + sign * eps, *at[i + 1 :]]) for sign in (1, -1)]
        out.append((ends[0] - ends[1]) / (2 * eps))
    return out
