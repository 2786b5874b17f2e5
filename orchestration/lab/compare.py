"""Decides which differences between the arms of a lab their seeds support, and which arms are on the Pareto front.

A higher metric is better.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestration.lab.results import ArmResult
from orchestration.stats import mean, std

# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom; the last one serves for more.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)  # fmt: skip


class Difference(NamedTuple):
    """Holds the mean of a minus the mean of b, its standard error, and the number of seed pairs (0: not paired).

    `clear` says that it is larger than the seeds' noise explains: outside the 95 % interval of Student's t.
    """

    mean: float
    error: float
    pairs: int
    clear: bool
    half_interval: float = math.nan  # half of the 95 % interval of the mean


def difference(a: ArmResult, b: ArmResult, metric: str) -> Difference:
    """Compares two arms in a metric, paired by seed where they share at least two.

    A seed fixes the tasks and the start of both arms, so that the differences within it are free of its own effect.
    Otherwise the standard error is sqrt(s_a^2 / n_a + s_b^2 / n_b) with min(n_a, n_b) - 1 degrees of freedom, on the
    safe side. With a single seed an error is unknown, and a difference is never clear. One comparison in twenty of
    arms that do not differ comes out clear.
    """
    of_a, of_b = a.finished, b.finished
    both = [seed for seed in of_a if metric in of_a[seed] and metric in of_b.get(seed, {})]
    if len(both) > 1:
        steps = [of_a[seed][metric] - of_b[seed][metric] for seed in both]
        return _difference(mean(steps), std(steps) / math.sqrt(len(both)), len(both), len(both) - 1)
    left, right = a.spread(metric), b.spread(metric)
    if min(left.n, right.n) < 2:
        return Difference(left.mean - right.mean, math.nan, 0, False)
    error = math.sqrt(left.std**2 / left.n + right.std**2 / right.n)
    return _difference(left.mean - right.mean, error, 0, min(left.n, right.n) - 1)


def _difference(gap: float, error: float, pairs: int, freedom: int) -> Difference:
    # Equal metrics differ by rounding alone, and rounding has a standard error too.
    width = T95[min(freedom, len(T95)) - 1] * error
    return Difference(gap, error, pairs, abs(gap) > 1e-9 and abs(gap) > width, width)


def pareto(arms: Sequence[ArmResult], x: str, y: str) -> list[str]:
    """Returns the names of the arms that no other arm dominates in the means of two metrics.

    An arm dominates another that it equals or exceeds in both and exceeds in one. Arms without both metrics are left out.
    """
    return [arm.name for arm in arms if _complete(arm, x, y) and not dominators(arms, arm, x, y)]


def dominators(arms: Sequence[ArmResult], arm: ArmResult, x: str, y: str) -> list[ArmResult]:
    """Returns the arms that dominate this one in the means."""
    here = [arm.spread(metric).mean for metric in (x, y)]
    above = []
    for other in arms:
        there = [other.spread(metric).mean for metric in (x, y)]
        gaps = [b - a for a, b in zip(here, there, strict=True)]
        if all(gap >= 0.0 for gap in gaps) and any(gap > 0.0 for gap in gaps):  # false where one is NaN
            above.append(other)
    return above


def within_noise(arms: Sequence[ArmResult], arm: ArmResult, x: str, y: str) -> bool:
    """Returns whether the arm is off the front, but no arm that dominates it is clearly better in either metric."""
    above = dominators(arms, arm, x, y)
    return bool(above) and not any(difference(other, arm, metric).clear for other in above for metric in (x, y))


def _complete(arm: ArmResult, *metrics: str) -> bool:
    return all(math.isfinite(arm.spread(metric).mean) for metric in metrics)
