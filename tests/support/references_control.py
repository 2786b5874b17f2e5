"""States controllers and schedules as their sources do, on plain numbers, and the tokens' random numbers in integers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Observation = tuple[float, float, float, float]  # entropy, free, slope, advantage (learner.types.Observed)


def doubling(
    history: Sequence[Observation], target: float, start: float, low: float, high: float, negative: bool
) -> list[float]:
    """arXiv 2603.11682: entropy below its target doubles the coefficient, above halves it, within [low, high]; halved below `low`
    it turns negative, where the same rule drives it down.

    Written on a ladder: the logarithm of the magnitude is the height over `low`, on either side of the flip.
    """
    value, out = start, []
    for entropy, *_ in history:
        wants_more = entropy < target
        if value > 0:
            moved = value * 2 if wants_more else value / 2
            value = min(moved, high) if moved >= low else (-low if negative else low)
        else:
            moved = value / 2 if wants_more else value * 2
            value = max(moved, -high) if moved <= -low else low
        out.append(value)
    return out


def proportional(history: Sequence[Observation], target: float, gain: float, lowest: float, high: float) -> list[float]:
    """Returns REPO's proportional form: zeta * (target - H), relative to the target."""
    return [float(np.clip(gain * (target - h) / target, lowest, high)) for h, *_ in history]


def additive(
    history: Sequence[Observation], target: float, start: float, step: float, high: float, gated: bool
) -> list[tuple[float, float]]:
    """(coefficient, what acts). Skywork-OR1, arXiv 2505.22312, section 4: c + delta while H < target, else c - delta, in
    [0, high]; what acts is c * [H <= target]."""
    c, out = start, []
    for entropy, *_ in history:
        c = min(c + step, high) if entropy < target else max(c - step, 0.0)
        out.append((c, c if entropy <= target or not gated else 0.0))
    return out


def pi(history: Sequence[Observation], target: float, start: float, gain: float, integral: float) -> list[float]:
    """Returns the closed form without bounds.

    log(coefficient / start) = gain * e + integral * sum(e), e = (target - H) / target.
    """
    errors = [(target - h) / target for h, *_ in history]
    return [start * math.exp(gain * e + integral * math.fsum(errors[: i + 1])) for i, e in enumerate(errors)]


def isentropic(
    history: Sequence[tuple[float, float, float, float, float]],
    target: float,
    *,
    gain: float,
    integral: float,
    lookahead: float,
    memory: float,
    high: float,
    max_change: float | None,
    added: bool,
) -> list[float]:
    """coefficient = EMA(-free) / EMA(slope) + unit * (kp * e + ki * sum(e)), within unit * high, at most unit * max_change from
    the one before. The proportional part takes the error that is left when the effect of the last steps, the fifth number, has
    gone on for `lookahead` iterations, and at most a tenth of it downwards. The sum takes an error of at most a tenth either way,
    and holds still where it would push the coefficient further into its bound. added: a coefficient that is added to
    advantages, whose unit is their root mean square. The running means are weighted sums over all that was seen."""
    total, before, out = 0.0, 0.0, []
    for i, (entropy, *_, effect) in enumerate(history):
        e = (target - entropy) / target
        later = (target - entropy - lookahead * (0.0 if math.isnan(effect) else effect)) / target
        weights = [memory ** (i - j) for j in range(i + 1)]
        columns = (
            [x[1] for x in history[: i + 1]],
            [x[2] for x in history[: i + 1]],
            [x[3] ** 2 for x in history[: i + 1]],
        )
        mean = [math.fsum(w * x for w, x in zip(weights, c, strict=True)) / math.fsum(weights) for c in columns]
        unit = max(math.sqrt(mean[2]), 1e-6) if added else 1.0
        held = -mean[0] / mean[1] if mean[1] > 0 else 0.0
        within = min(max(e, -0.1), 0.1)
        wanted = held + unit * (gain * max(later, -0.1) + integral * (total + within))
        if not ((wanted >= unit * high and e >= 0) or (wanted <= -unit * high and e <= 0)):
            total += within
        if max_change is not None:
            wanted = before + min(max(wanted - before, -unit * max_change), unit * max_change)
        before = min(max(wanted, -unit * high), unit * high)
        out.append(before)
    return out


def schedule(points: Sequence[tuple[int, float]], iteration: int) -> float:
    """Interpolates linearly between the points, and is constant outside them."""
    return float(np.interp(iteration, [x for x, _ in points], [y for _, y in points])) if points else 1.0


def targets(
    entropies: Sequence[float], fraction: float, before: float, points: Sequence[tuple[int, float]]
) -> list[float]:
    """Returns a fraction of the start times the schedule, iterations from 1. The start is `before`, or what is measured first."""
    out = []
    for i in range(len(entropies)):
        start = next((h for h in (before, *entropies[: i + 1]) if math.isfinite(h)), 0.0)
        out.append(max(schedule(points, i + 1) * fraction * start, 1e-9))
    return out


def splitmix64(state: int) -> int:
    """Returns the next output after a state. Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def uniform(seed: int, step: int, trajectory: int, position: int) -> float:
    """Returns the upper 24 bits of a chain of splitmix64 over the four numbers, as a float in [0, 1)."""
    x = splitmix64(seed) ^ step
    for number in (trajectory, position):
        x = splitmix64(x) ^ number
    return (splitmix64(x) >> 40) / 2**24
