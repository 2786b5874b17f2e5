"""Builds controllers, and the observations they are shown."""

from __future__ import annotations

import math
from typing import Any

from learner.entropy import base, build
from learner.ledger.history import LedgerRow, Part
from learner.types import Observed

RANGE = base.CoefficientRange(start=0.01, low=0.001, high=0.1, signed=True, linear=True)
UNSIGNED = RANGE.model_copy(update={"signed": False})
SETTINGS: dict[str, dict[str, Any]] = {
    "fixed": {"kind": "fixed"},
    "doubling": {"kind": "doubling"},
    "proportional": {"kind": "proportional", "gain": 0.2},
    "additive": {"kind": "additive", "step": 0.004},
    "band": {"kind": "band"},
    "pi": {"kind": "pi"},
    "isentropic": {"kind": "isentropic", "high": 0.1},
}
LOW, HIGH = 0.5, 1.5  # entropies around a target of 1


def make(kind: str, coefficient: base.CoefficientRange = RANGE, **settings: Any) -> Any:
    return build.CONTROLLERS[kind](
        build.parse(build.CONTROLLERS, {**SETTINGS[kind], **settings}, "controller"), coefficient
    )


def observed(entropy: float) -> Observed:
    """Returns an observation in which the coefficient has no predicted effect, so that bounds stay where they were set."""
    return Observed(entropy, free=-0.02 * entropy, slope=0.0, advantage=0.9)


def row(entropy: float, correct: float = math.nan) -> LedgerRow:
    """Returns a row of one environment with 10 tokens, with the entropy of the correct half if any is correct."""
    ok = 0.0 if math.isnan(correct) else 5.0
    part = Part(10.0, 10 * entropy, ok, ok * correct if ok else 0.0, -0.02, 0.5, 1.0, 0.8)
    return LedgerRow({"toy": part}, 1, {})


def walk(controller: Any, entropies: list[float], target: float = 1.0) -> list[float]:
    return walk_on(controller, [observed(entropy) for entropy in entropies], target)


def walk_on(controller: Any, seen: list[Observed], target: float = 1.0) -> list[float]:
    """Shows the controller one observation after the other. Returns the coefficients it takes."""
    values = []
    for one in seen:
        controller.update(one, target)
        values.append(controller.value)
    return values
