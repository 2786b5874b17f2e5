"""Controls entropy by the clip range. The upper one bounds how far a good token's probability rises, the lower one how far a bad
one's falls.

    clip_higher  a wider upper range, fixed: pi / pi_old may rise to 1 + coefficient (DAPO, arXiv 2503.14476: 0.28 above, 0.2 below)
    adapo        the upper range adapts: raised while entropy is below its target, lowered while above
                 (arXiv 2603.11682; the exact update rule was not at hand: the doubling controller moves it)
    lower_clip   the lower range is PPO's 0.2 divided by the coefficient: a tighter one keeps alternatives alive that were wrong
                 this time, and raises entropy (arXiv 2509.26114)

A clip acts only on tokens that reach it. With few updates per batch that is 0.1 % of them, and the coefficient hardly acts: watch
`entropy/affected`, the share of tokens affected. All need a surrogate that clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from learner.entropy import base
from learner.settings import KindSettings
from learner.types import Shaping, TokenStats

if TYPE_CHECKING:
    from torch import Tensor

PPO_LOW = 0.2  # the lower clip range of PPO, arXiv 1707.06347


class _UpperClip:
    coefficient_range = base.CoefficientRange(start=0.28, low=0.02, high=10.0, signed=False)
    scope: ClassVar[Literal["token", "batch"]] = "token"
    surrogates: ClassVar[frozenset[str] | None] = frozenset({"ppo", "gspo", "cispo"})

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        ratio = (tokens.logp - tokens.old_logp).exp()
        return Shaping(clip_high=coefficient, touched=(tokens.advantages > 0) & (ratio > 1.0 + coefficient))


class LowerClip:
    class Settings(KindSettings):
        kind: Literal["lower_clip"]

    # From no bound at all, a range of 1, to one of a hundredth.
    coefficient_range = base.CoefficientRange(start=1.0, low=PPO_LOW, high=100 * PPO_LOW, signed=False)
    scope: ClassVar[Literal["token", "batch"]] = "token"
    surrogates: ClassVar[frozenset[str] | None] = frozenset({"ppo", "gspo", "cispo"})

    def __init__(self, settings: Settings) -> None: ...

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        low = PPO_LOW / coefficient
        ratio = (tokens.logp - tokens.old_logp).exp()
        return Shaping(clip_low=low, touched=(tokens.advantages < 0) & (ratio < 1.0 - low))


class ClipHigher(_UpperClip):
    class Settings(KindSettings):
        kind: Literal["clip_higher"]

    def __init__(self, settings: Settings) -> None: ...


class Adapo(_UpperClip):
    class Settings(KindSettings):
        kind: Literal["adapo"]

    def __init__(self, settings: Settings) -> None: ...
