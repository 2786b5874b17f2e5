"""Defines the interface of entropy control.

A method says what its coefficient does to the loss; a controller moves the coefficient; a target says where entropy should be.
A target with its controller is a `ControlLoop`; a run has one, or one more for every environment that was given a target of its
own. Every coefficient is oriented the same way: turning it up is meant to raise entropy. To add a method, write one file with a
class that satisfies `Method` and name it in build.METHODS."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from learner.settings import KindSettings
from learner.types import Shaping, TokenStats

if TYPE_CHECKING:
    from torch import Tensor


class CoefficientRange(BaseModel):
    """Tells a controller where the coefficient starts, how far it may go, and whether a negative value means anything."""

    model_config = ConfigDict(frozen=True)
    start: float
    low: float  # smallest magnitude a controller moves to
    high: float  # largest magnitude
    signed: bool  # a negative coefficient pushes entropy down
    # The predicted change of entropy is linear in the coefficient, and a coefficient of 0 does nothing.
    linear: bool = False
    # What one unit of the coefficient is comparable with: an advantage of 1, or a factor of 1.
    unit: Literal["advantage", "factor"] = "factor"


class Method(Protocol):
    """Acts on entropy in one way. Pure: `shape` depends on its arguments alone."""

    Settings: ClassVar[type[KindSettings]]
    coefficient_range: ClassVar[CoefficientRange]
    # "token": `shape` treats every token by itself, may be called on any part of a batch, and takes a coefficient a token.
    # "batch": `shape` takes statistics over tokens and is called once per update, on the whole global batch.
    scope: ClassVar[Literal["token", "batch"]]
    # Surrogates under which the method acts at all; None: all. A combination that does nothing is refused.
    surrogates: ClassVar[frozenset[str] | None]

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        """Returns what the coefficient changes in the loss of these tokens."""
        ...


# What a controller does where a run goes over to other environments: "keep" goes on as it is; "reset" starts coefficient,
# integral and anchor anew; "reanchor" keeps coefficient and integral and measures the target's start again.
AtBoundary = Literal["keep", "reset", "reanchor"]


def untouched(tokens: TokenStats) -> Shaping:
    """Returns the shaping of no control: the objective as it is, and no token touched."""
    return Shaping(touched=tokens.advantages.new_zeros(tokens.advantages.shape).bool())
