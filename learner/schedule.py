"""Schedules the learning rate: linear warm-up, then constant, linear or cosine to a floor. Pure."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, *, peak: float, shape: Shape, warmup: int, total: int, floor: float) -> float:
    """Returns the rate of a step, counted from 0.

    floor: the fraction of `peak` that linear and cosine end at, after `total` steps.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if shape == "constant":
        return peak
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    fall = done if shape == "linear" else 0.5 * (1 - math.cos(math.pi * done))
    return peak * (1 - (1 - floor) * fall)
