"""Controls entropy by which advantages are trained on: above a band only the positive ones, below it only the negative ones.

Reinforcing what was sampled sharpens a policy, pushing it away from what was sampled spreads it. Entrocraft (arXiv 2604.26326)
switches between the two at the edges of a band around the target, and leaves the objective as it is inside; what is known of it
is second-hand. The switch is the controller `band`, whose `dead_band` is half of the band's width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from learner.entropy import base
from learner.settings import KindSettings
from learner.types import Shaping, TokenStats

if TYPE_CHECKING:
    from torch import Tensor


class Entrocraft:
    """Weakens one sign of the advantages: coefficient 1 leaves no positive one, -1 no negative one, 0 changes nothing."""

    class Settings(KindSettings):
        kind: Literal["entrocraft"]

    coefficient_range = base.CoefficientRange(start=0.0, low=0.0, high=1.0, signed=True)
    scope: ClassVar[Literal["token", "batch"]] = "token"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None: ...

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        a = tokens.advantages
        factor = (1.0 - a.sign() * coefficient).clamp(0.0, 1.0)
        return Shaping(advantages=a * factor, touched=(factor < 1.0) & (a != 0))
