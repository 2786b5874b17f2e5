"""Entropy bonus: loss_t - knob * H_t, with the exact, differentiable entropy of the full distribution.

Source: the classic regulariser (A3C, arXiv 1602.01783). Use it as the baseline that has to be tuned before another method is
said to beat it: 0.1 held its own at 0.1M parameters, 0.001-0.02 is usual for large models.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from learner.entropy import base
from learner.types import Shaping, TokenStats


class Bonus:
    class Settings(base.Settings):
        kind: Literal["bonus"]

    knob = base.Knob(start=0.01, low=1e-4, high=1.0, signed=True)
    scope: ClassVar[Literal["token", "batch"]] = "token"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None: ...

    def shape(self, tokens: TokenStats, knob: float) -> Shaping:
        return Shaping(bonus=knob)
