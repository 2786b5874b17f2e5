"""Measures phantom clipping: what a clipped surrogate would cut although the policy has not moved. Pure numpy.

Two computations of the same policy on the same tokens (engine and trainer, or two ways of the trainer) give log-probs whose
difference is rounding. With ratio = exp(logp - reference), which should be 1,

    sigma      standard deviation of log ratio
    outside    share of tokens with a ratio outside [0.9, 1.1]
    clipped    share of tokens with a ratio outside [1 - clip_low, 1 + clip_high]

A PPO surrogate cuts the gradient of a token above the upper bound when its advantage is positive and below the lower bound when
it is negative, so `clipped` bounds from above what is lost to precision alone. Rare tokens (reference below RARE nats) are those
that exploration consists of, and rounding hits them hardest: a logit far from the largest has the same absolute error and a
much smaller probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q0.1": 0.001, "q1": 0.01, "q50": 0.5, "q99": 0.99, "q99.9": 0.999}  # in percent in the name
RARE = -2.0  # nats: probability below 0.135
NEAR = (0.9, 1.1)


@dataclass(frozen=True, slots=True)
class Shares:
    """Holds shares of some of the tokens; those of none are nan. Example: Shares(2000, 0.01, 0.002)"""

    tokens: int
    outside: float
    clipped: float


@dataclass(frozen=True, slots=True)
class Phantom:
    """Holds what two computations of the same log-probs differ by."""

    sigma: float  # nats
    quantiles: Mapping[str, float]  # of log ratio, nats; keys of QUANTILES
    all: Shares
    rare: Shares


def phantom_clipping(
    logp: NDArray[np.floating],
    reference: NDArray[np.floating],
    *,
    clip_low: float,
    clip_high: float,
    rare: float = RARE,
) -> Phantom:
    """Compares two log-probs of the same N tokens: logp, reference [N], nats.

    Raises ValueError for no tokens, for unequal lengths and for nan or inf.
    """
    logp, reference = np.asarray(logp, np.float64), np.asarray(reference, np.float64)
    if logp.shape != reference.shape or logp.ndim != 1:
        raise ValueError(f"log-probs of shape {logp.shape} cannot be compared with those of shape {reference.shape}")
    if not len(logp):
        raise ValueError("no tokens were given: log-probs cannot be compared")
    if wrong := int((~np.isfinite(logp) | ~np.isfinite(reference)).sum()):
        raise ValueError(f"{wrong} of {len(logp)} tokens have a log-prob that is not finite")
    gap = logp - reference
    ratio = np.exp(gap)
    outside = (ratio < NEAR[0]) | (ratio > NEAR[1])
    clipped = (ratio < 1.0 - clip_low) | (ratio > 1.0 + clip_high)
    unlikely = reference < rare
    return Phantom(
        sigma=float(gap.std()),
        quantiles={name: float(np.quantile(gap, q)) for name, q in QUANTILES.items()},
        all=_shares(outside, clipped),
        rare=_shares(outside[unlikely], clipped[unlikely]),
    )


def _shares(outside: NDArray[np.bool_], clipped: NDArray[np.bool_]) -> Shares:
    if not len(outside):
        return Shares(0, float("nan"), float("nan"))
    return Shares(len(outside), float(outside.mean()), float(clipped.mean()))
