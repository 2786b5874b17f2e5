"""Declares the section `diversity`: what moves the coefficient, towards how many solutions. Without torch."""

from __future__ import annotations

from typing import Any, Self, cast

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from learner.entropy.base import CoefficientRange
from learner.entropy.build import CONTROLLERS, parse
from learner.entropy.controllers import Controller
from learner.entropy.target import TargetSettings
from learner.settings import KindSettings, Settings

# 0.8 is what was tried, as a fixed coefficient.
RANGE = CoefficientRange(start=0.8, low=0.05, high=0.95, signed=False)
# Not isentropic, which cancels a predicted change: the number of solutions is not predicted. Nor band, which is off within its band
# where a coefficient starts at 0, as this one does not.
STEERING = {kind: CONTROLLERS[kind] for kind in ("fixed", "doubling", "proportional", "additive", "pi")}
# Goes through the whole range in 48 iterations: the number of solutions in one batch is noisy.
FEWEST = 3  # responses a prompt: of fewer none is more common than another
HELD: dict[str, Any] = {"kind": "additive", "step": 0.02}


class DiversityTarget(Settings):
    """Sets at most one of `solutions` and `fraction`; the default is the run's own start."""

    solutions: float | None = Field(default=None, ge=1)  # effective number
    fraction: float | None = Field(default=None, gt=0)
    # Responses that a fraction's start is measured on, before the first update: only pairs of correct ones count.
    start_responses: int = Field(default=1024, ge=1)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.solutions is not None and self.fraction is not None:
            raise ValueError(
                f"solutions ({self.solutions:g}) and fraction ({self.fraction:g}) both set the target: give one"
            )
        return self

    def followed(self) -> TargetSettings:
        """Returns the target as `learner.entropy.target.Target` follows it, solutions in place of nats."""
        return TargetSettings(nats=self.solutions, fraction=self.fraction)


class DiversitySettings(Settings):
    """Rewards a correct response less, the more of its group's correct ones have its solution. `diversity: {}` turns it on, with
    a fixed coefficient of 0.8.

    A correct response's reward is 1 - coefficient * share, with the share of the group's other correct responses that have the
    same `Verdict.solution`, times a number that leaves the sum over the group as it was. Where a task has one solution nothing
    changes, and correct responses stay worth more than others. `target` without `controller` is held by
    `{kind: additive, step: 0.02}`: turning the coefficient up is meant to raise the number of solutions.
    """

    controller: SerializeAsAny[KindSettings]
    target: DiversityTarget = DiversityTarget()
    compare_texts: bool = False

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        parts = cast("dict[str, object]", data)
        return {"controller": HELD if "target" in parts else {"kind": "fixed"}, **parts}

    @field_validator("controller", mode="before")
    @classmethod
    def _controller(cls, value: Any) -> Any:
        return parse(STEERING, value, "controller", "diversity")

    @model_validator(mode="after")
    def _below_one(self) -> Self:
        made = build_controller(self.controller)
        low, high = made.lowest, made.coefficient_range.high
        if not 0 <= low <= high < 1:
            raise ValueError(
                f"the controller can move the coefficient to {low if low < 0 else high:g}: keep it from 0 to under 1, so "
                "that a correct response stays worth more than one that is not"
            )
        return self

    @property
    def start_responses(self) -> int:
        """Returns how many responses the target's start is measured on; 0 where nothing is steered by it."""
        steered = self.controller.kind != "fixed" and self.target.solutions is None
        return self.target.start_responses if steered else 0


def build_controller(settings: KindSettings) -> Controller:
    """Builds the controller of a coefficient. Raises ValueError where its bounds do not fit."""
    return STEERING[settings.kind](settings, RANGE)
