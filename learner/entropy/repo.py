"""Changes the advantage so that it no longer correlates with the log-probability: the family REPO.

    A' = A - beta * L,    L = log pi(a|s) + H(s), detached, of the current policy

With c the coefficient (the paper's zeta):

    REPO     beta = c                   the base form; adds +c * sum pi^2 L^2 >= 0 to dH: for c > 0 always towards more entropy
    REPO-R   beta = c * |A|             A' = A (1 - c L) for A > 0, A (1 + c L) for A < 0; the factor is clamped at 0 so
                                        that no advantage changes sign. Raises entropy in most cases, not all: not when all
                                        advantage is on a token a little likelier than average (0 < pi L < kappa)
             part: positive             beta = c * max(A, 0): only what worked is kept diverse (A < 0 stays as it is)
    REPO-D   beta = c * max(0, -dH)     dH the change of entropy that the update would make without control: the more an update
                                        is about to lose, the more is put against it, and nothing where it would gain

`centred: false` uses log pi in place of L, the form of public implementations; log pi < 0, so every A > 0 grows and every
A < 0 shrinks, a hidden change of step size (`advantage/scale_*` shows it); REPO-R then lowers entropy where only the likeliest
token carries a positive advantage.

Source: "Entropy-Preserving Reinforcement Learning", arXiv 2603.11682, whose authors published no code. The text itself was not at
hand; from reviews and notes on it, second-hand: REPO-R with |A| is the form on arXiv and the positive part the one that was
submitted before, and REPO-D multiplies zeta by the computed change of entropy of the step. Taken from there too: zeta starts at
1e-3 and is held in [1e-4, 0.05] for large models (0.1M parameters need about 0.5). Ours: the clamp of REPO-R, the max with 0 in
REPO-D, and the estimate of dH there (`free_dh`), in whose unit zeta has bounds of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import model_validator

from learner.entropy import base
from learner.settings import KindSettings
from learner.types import Shaping, TokenStats

if TYPE_CHECKING:
    from torch import Tensor


def surprise(tokens: TokenStats, centred: bool) -> Tensor:
    """Returns L, or log pi when not centred. [N]"""
    return tokens.centred if centred else tokens.logp


def free_dh(tokens: TokenStats) -> Tensor:
    """Returns the change of entropy, in nats, of a step of size 1 on the logits along the uncontrolled surrogate. Scalar.

        dH = -sum over tokens of g * A * (pi L - kappa),    g = TokenStats.gradient_weight

    To first order, and without bias from samples (learner/ledger/predicted.py); g has the loss weights, the ratio and the clip in
    it, so that later updates of a batch are counted as they are taken. The gradient of a k2 or k3 KL to a reference is not in it.
    """
    return -(tokens.gradient_weight * tokens.advantages * (tokens.logp.exp() * tokens.centred - tokens.kappa)).sum()


class Repo:
    class Settings(KindSettings):
        kind: Literal["repo"]
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


class RepoD:
    """Works against the loss of entropy in proportion to it. dH is over the global batch of the update.

    To first order the controlled update changes entropy by dH + c * max(0, -dH) * slope, with slope = sum g L (pi L - kappa)
    at g without advantages: a c of 1 / slope holds entropy where it is. The isentropic controller on REPO sets its coefficient to
    -dH / slope, plus feedback: it is REPO-D with that c, without the max, so that it acts against a gain of entropy too. It is
    therefore refused here, as a second one on top: where dH >= 0 no value of c does anything, and the slope it divides by is 0.
    """

    class Settings(KindSettings):
        kind: Literal["repo_d"]

        @model_validator(mode="before")
        @classmethod
        def _not_the_former_one(cls, data: Any) -> object:
            if isinstance(data, dict) and "centred" in cast("dict[str, object]", data):
                raise ValueError(
                    "repo_d has no key centred: A' = A - coefficient * L, which was called repo_d before, is kind repo, and "
                    "repo_d is now the paper's REPO-D"
                )
            return cast("object", data)

    # In units of 1 / nats: 1 / slope is about 5 to 25 where H is 0.3 to 1 nat.
    coefficient_range = base.CoefficientRange(start=1.0, low=0.1, high=100.0, signed=True)
    scope: ClassVar[Literal["token", "batch"]] = "batch"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None: ...

    def shape(self, tokens: TokenStats, coefficient: float | Tensor) -> Shaping:
        lost = (-free_dh(tokens)).clamp(min=0.0)
        return Shaping(advantages=tokens.advantages - coefficient * lost * tokens.centred)
