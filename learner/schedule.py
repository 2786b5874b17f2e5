"""Schedules the learning rate: linear warm-up, then constant, linear or cosine to a floor. Pure."""

from __future__ import annotations

import math

from learner.settings import ScheduleSettings


def learning_rate(step: int, settings: ScheduleSettings, total_steps: int) -> float:
    """Returns the rate of optimiser step `step`, counted from 0; linear and cosine end at their floor after `total_steps`."""
    warmup, peak = settings.warmup_steps, settings.lr
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    fall = done if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * done))
    return peak * (1 - (1 - settings.lr_floor) * fall)
