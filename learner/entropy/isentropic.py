"""Moves a coefficient by what the ledger predicts of the batch: the isentropic controller."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from learner.entropy import base, controllers
from learner.types import Observed


class Isentropic(controllers.Base):
    """Cancels the predicted change of entropy, and adds feedback for what the prediction misses.

        coefficient = M(-free) / M(slope) + unit * (gain * max(e - lookahead * d, -REACH) + integral * sum(e within +-REACH)),
        e = (target - H) / target,    d = what the last iteration's steps did to H / target

    The predicted dH of a batch is free + coefficient * slope (learner/ledger/predicted.py), so the first term holds entropy
    where it is, to first order; M is a running mean over iterations. `unit` is the root mean square of the advantages for
    coefficients that are added to advantages, 1 for coefficients that multiply them: the gains need no tuning to the scale of
    rewards. Nor does a range need tuning: the bounds are +-`high`, in the same unit. Nothing winds up on the way to a
    distant target: the sum counts no error as larger than REACH and stops growing while the coefficient is at its bound. A target
    far below the start is let come: policy gradients lower entropy by themselves, and pushing towards it with all force would
    spend the first updates on unlearning. `lookahead` is for how many iterations the steps' present effect is taken to go on, by
    the optimiser's momentum above all: a policy that falls fast is caught above its target. The effect is that on the same
    responses (learner/ledger/step_effect.py), free of the noise between two batches. Nor may the coefficient move by more than
    `max_change`, in the same unit, in one iteration: the first ones follow from a few responses. Needs a method whose effect is
    linear in the coefficient: repo, repo_r, bonus."""

    class Settings(controllers.Limits):
        kind: Literal["isentropic"]
        gain: float = Field(default=3.0, ge=0)
        integral: float = Field(default=0.15, ge=0)
        lookahead: float = Field(default=3.0, ge=0)
        memory: float = Field(default=0.9, ge=0, lt=1)  # of the running means
        high: float = Field(default=5.0, gt=0)
        max_change: float | None = Field(default=0.5, gt=0)

    STATE = ("value", "advantage", "weight", "sum")
    REACH = 0.1

    def __init__(self, settings: Settings, bounds: base.CoefficientRange) -> None:
        if not bounds.linear:
            raise ValueError(
                "the isentropic controller needs a method whose effect is linear in its coefficient: repo, repo_r or bonus"
            )
        super().__init__(bounds.model_copy(update={"start": 0.0, "low": 0.0, "high": settings.high}))
        self.settings = settings
        self.dead_band = settings.dead_band
        self.memory = settings.memory
        self.advantage = self.weight = self.sum = 0.0

    @property
    def lowest(self) -> float:
        return -self.coefficient_range.high

    def _scale(self) -> float:
        """Returns the unit of the coefficient by now; the bounds follow it."""
        unit = 1.0
        if self.coefficient_range.unit == "advantage" and self.weight:
            unit = max(math.sqrt(self.advantage / self.weight), 1e-6)
        self.coefficient_range = self.coefficient_range.model_copy(update={"high": self.settings.high * unit})
        self.max_change = None if self.settings.max_change is None else self.settings.max_change * unit
        return unit

    def load_state_dict(self, state: dict[str, float]) -> None:
        super().load_state_dict(state)
        self._scale()

    def act(self, observed: Observed, target: float) -> None:
        s, error = self.settings, controllers.relative_error(observed.entropy, target)
        for name, value in (("advantage", observed.advantage**2), ("weight", 1.0)):
            setattr(self, name, s.memory * getattr(self, name) + (1 - s.memory) * value)
        unit = self._scale()
        if self.idle(error):
            return
        held = self.needed if self.slope > 0 else 0.0
        step = min(max(error, -self.REACH), self.REACH)
        drift = observed.step / target if math.isfinite(observed.step) else 0.0
        ahead = error - s.lookahead * drift
        wanted = held + unit * (s.gain * max(ahead, -self.REACH) + s.integral * (self.sum + step))
        highest = self.coefficient_range.high
        if self.lowest < wanted < highest or wanted * error < 0:  # not pushed further into its bound
            self.sum += step
        self.move(wanted)
