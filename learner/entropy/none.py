"""Leaves entropy uncontrolled: the objective as it is. Entropy is measured and reported all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from learner.entropy import base
from learner.settings import KindSettings
from learner.types import Shaping, TokenStats

if TYPE_CHECKING:
    from torch import Tensor


class NoControl:
    class Settings(KindSettings):
        kind: Literal["none"] = "none"

    coefficient_range = base.CoefficientRange(start=0.0, low=0.0, high=0.0, signed=False)
    scope: ClassVar[Literal["token", "batch"]] = "token"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None: ...

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        return base.untouched(tokens)
