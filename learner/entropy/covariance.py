"""Controls entropy through the few tokens that carry most of its loss: those whose advantage goes with their log-prob.

    c_i = (A_i - mean A) * (log pi_i - mean log pi),  means over the GLOBAL batch of the update

    clip_cov   a share `coefficient` of the tokens, drawn at random among those with low <= c <= high that the surrogate's clip has
               not taken away already, drop out of the loss
    kl_cov     the share `share` of the tokens with the largest c get a penalty towards the policy at the start of the iteration,
               with coefficient `coefficient`

Source: "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", arXiv 2505.22617, eqs. 10-14, and its
authors' code, github.com/PRIME-RL/Entropy-Mechanism-of-RL, verl/trainer/ppo/core_algos.py (`compute_policy_loss_clip_cov`,
`compute_policy_loss_kl_cov`). There coefficient = 2e-4, low = 1, high = 5, and for KL-Cov share = 2e-3 (the code's k is in percent:
0.2), coefficient 1. Two things in which the paper's KL-Cov is easily got wrong:

    form      the paper states KL(old || pi); the code, which its results are from, adds coefficient * |log pi - log old|. `abs` is
              the latter and the default, with the published coefficient; `kl` estimates the former, whose pull is the ratio - 1: at
              a ratio of 1.02 a fiftieth of the other's, so that it takes a larger coefficient
    clipped   the objective is r A without PPO's clip, on all tokens. `true` keeps the surrogate's clip, which is ours

Ours as well: a small batch has few tokens, so the count is rounded up, where the code takes at least one and rounds down. The draw
is the token's own (`TokenStats.uniform`): ranks, packing and micro-batches do not change it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from learner.entropy import base
from learner.settings import KindSettings
from learner.types import Shaping, TokenStats

if TYPE_CHECKING:
    from torch import Tensor


def covariance(tokens: TokenStats) -> Tensor:
    """Returns c of every token; their mean is Cov(A, log pi). [N]"""
    a, x = tokens.advantages, tokens.logp
    return (a - a.mean()) * (x - x.mean()) if len(a) else a


def _first(order: Tensor, count: int) -> Tensor:
    """True for the first `count` of `order`. [N]"""
    chosen = order.new_zeros(order.shape).bool()
    chosen[order[:count]] = True
    return chosen


class ClipCov:
    class Settings(KindSettings):
        kind: Literal["clip_cov"]
        low: float = 1.0
        high: float = Field(default=5.0, gt=0)

    coefficient_range = base.CoefficientRange(start=2e-4, low=1e-5, high=0.2, signed=False)
    scope: ClassVar[Literal["token", "batch"]] = "batch"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None:
        if settings.low > settings.high:
            raise ValueError(f"clip_cov: low ({settings.low:g}) is above high ({settings.high:g}): give low <= high")
        self.low, self.high = settings.low, settings.high

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        c = covariance(tokens)
        eligible = (c >= self.low) & (c <= self.high) & (tokens.gradient_weight != 0)
        count = min(math.ceil(float(coefficient) * len(c)), int(eligible.sum()))
        # Those that may not be drawn come last.
        dropped = _first((tokens.uniform + (~eligible).to(tokens.uniform.dtype)).argsort(), count)
        return Shaping(weight=(~dropped).to(tokens.advantages.dtype), touched=dropped)


class KLCov:
    class Settings(KindSettings):
        kind: Literal["kl_cov"]
        share: float = Field(default=2e-3, gt=0, le=1)
        form: Literal["abs", "kl"] = "abs"
        clipped: bool = False

    coefficient_range = base.CoefficientRange(start=1.0, low=0.01, high=100.0, signed=False)
    scope: ClassVar[Literal["token", "batch"]] = "batch"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None:
        self.share = settings.share
        self.form: Literal["abs", "kl"] = settings.form
        self.clip = None if settings.clipped else math.inf  # None: the surrogate's own

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        c = covariance(tokens)
        # Equal covariances are common at the top, where log pi is 0: the tokens' own draws tell them apart, not their order.
        drawn = tokens.uniform.argsort()
        order = drawn[c[drawn].argsort(descending=True, stable=True)]
        top = _first(order, math.ceil(self.share * len(c)))
        penalty = float(coefficient) * top.to(tokens.advantages.dtype)
        return Shaping(clip_low=self.clip, clip_high=self.clip, kl=penalty, kl_form=self.form, touched=top)
