"""Adds an entropy bonus, loss_t - coefficient * H_t, with the exact, differentiable entropy of the full distribution.

To first order it adds coefficient * sum_b pi_b^2 L_b^2 to dH, on average what REPO adds with the same coefficient, without
its sampling noise and without the ratio and the clip of the surrogate. Sources: the classic regulariser (A3C, arXiv
1602.01783); with controller `additive` and `gated: true` it is Skywork-OR1's adaptive bonus (arXiv 2505.22312). Use it as the
baseline that has to be tuned before another method is said to beat it: 0.1 held its own at 0.1M parameters, 0.001-0.02 is usual
for large models."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from learner.entropy import base
from learner.settings import KindSettings
from learner.types import Shaping, TokenStats

if TYPE_CHECKING:
    from torch import Tensor


class Bonus:
    class Settings(KindSettings):
        kind: Literal["bonus"]

    coefficient_range = base.CoefficientRange(
        start=0.01, low=1e-4, high=1.0, signed=True, linear=True, unit="advantage"
    )
    scope: ClassVar[Literal["token", "batch"]] = "token"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None: ...

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        return Shaping(bonus=coefficient)
