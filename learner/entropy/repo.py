"""Changes the advantage so that it no longer correlates with the log-probability (REPO).

    A' = A - beta * L,    L = log pi(a|s) + H(s), detached, of the current policy

With c the coefficient:

    REPO-D   beta = c                   adds +c * sum pi^2 L^2 >= 0 to dH: for c > 0 always towards more entropy
    REPO-R   beta = c * |A|             A' = A (1 - c L) for A > 0, A (1 + c L) for A < 0; the factor is clamped at 0 so
                                        that no advantage changes sign. Raises entropy in most cases, not all: not when all
                                        advantage is on a token a little likelier than average (0 < pi L < kappa)
    part: positive   beta = c * max(A, 0): only what worked is kept diverse (REPO-R's form for A > 0; A < 0 stays as it is)

`centred: false` uses log pi in place of L, the form of public implementations; log pi < 0, so every A > 0 grows and every
A < 0 shrinks, a hidden change of step size (`advantage/scale_*` shows it); REPO-R then lowers entropy where only the likeliest
token carries a positive advantage. Source: "Entropy-Preserving Reinforcement Learning", arXiv 2603.11682.
Published range of the coefficient for large models: 1e-4 to 0.05, start 1e-3; a model of 0.1M parameters needs about 0.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from learner.entropy import base
from learner.settings import KindSettings
from learner.types import Shaping, TokenStats

if TYPE_CHECKING:
    from torch import Tensor


def surprise(tokens: TokenStats, centred: bool) -> Tensor:
    """Returns L, or log pi when not centred. [N]"""
    return tokens.centred if centred else tokens.logp


class RepoD:
    class Settings(KindSettings):
        kind: Literal["repo_d"]
        centred: bool = True

    coefficient_range = base.CoefficientRange(
        start=1e-3, low=1e-4, high=0.05, signed=True, linear=True, unit="advantage"
    )
    scope: ClassVar[Literal["token", "batch"]] = "token"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None:
        self.centred = settings.centred

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        return Shaping(advantages=tokens.advantages - coefficient * surprise(tokens, self.centred))


class RepoR:
    class Settings(KindSettings):
        kind: Literal["repo_r"]
        centred: bool = True
        part: Literal["both", "positive"] = "both"

    # Linear until the clamp takes hold.
    coefficient_range = base.CoefficientRange(start=1e-3, low=1e-4, high=0.05, signed=True, linear=True, unit="factor")
    scope: ClassVar[Literal["token", "batch"]] = "token"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None:
        self.centred, self.part = settings.centred, settings.part

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        a = tokens.advantages
        sign = a.sign().clamp(min=0.0) if self.part == "positive" else a.sign()
        factor = 1.0 - coefficient * sign * surprise(tokens, self.centred)
        return Shaping(advantages=a * factor.clamp(min=0.0), touched=sign != 0)
