"""Which differences between the arms of a lab their seeds support, and which arms are on the Pareto front.

Everything reads the results that `lab_results.collect` gives; a figure is named as there, and higher is better.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestration.stats import mean, std

# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom; the last one serves for more.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)  # fmt: skip


class Stat(NamedTuple):
    """Mean and sample standard deviation over n seeds; NaN where there are too few of them."""

    mean: float
    std: float
    n: int


def stat(arm: Mapping[str, Any], key: str) -> Stat:
    """A figure of an arm; NaN and 0 seeds where it has none."""
    found = arm["figures"].get(key, {"mean": None, "std": None, "n": 0})
    middle, around = (math.nan if found[name] is None else found[name] for name in ("mean", "std"))
    return Stat(middle, around, found["n"])


class Difference(NamedTuple):
    """Mean of a minus mean of b, its standard error, the number of seed pairs behind it (0: not paired).

    `clear` says that it is larger than the seeds' noise explains: outside the 95 % interval of Student's t.
    """

    mean: float
    error: float
    pairs: int
    clear: bool


def difference(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> Difference:
    """How two arms differ in a figure, paired by seed where they share at least two.

    A seed fixes the tasks and the start of both arms, so that the differences within it are free of what it brings.
    Otherwise the standard error is sqrt(s_a^2 / n_a + s_b^2 / n_b) with min(n_a, n_b) - 1 degrees of freedom, on the
    safe side. With a single seed there is no error to compare with, and nothing is clear. One comparison in twenty of
    arms that do not differ comes out clear.
    """
    both = [seed for seed in a["seeds"] if key in a["seeds"][seed] and key in b["seeds"].get(seed, {})]
    if len(both) > 1:
        steps = [a["seeds"][seed][key] - b["seeds"][seed][key] for seed in both]
        return _judged(mean(steps), std(steps) / math.sqrt(len(both)), len(both), len(both) - 1)
    left, right = stat(a, key), stat(b, key)
    if min(left.n, right.n) < 2:
        return Difference(left.mean - right.mean, math.nan, 0, False)
    error = math.sqrt(left.std**2 / left.n + right.std**2 / right.n)
    return _judged(left.mean - right.mean, error, 0, min(left.n, right.n) - 1)


def _judged(gap: float, error: float, pairs: int, freedom: int) -> Difference:
    # Equal figures differ by rounding alone, and rounding has a standard error too.
    return Difference(gap, error, pairs, abs(gap) > 1e-9 and abs(gap) > T95[min(freedom, len(T95)) - 1] * error)


def pareto(results: Mapping[str, Any], x: str, y: str) -> list[str]:
    """Names of the arms that no other arm dominates in the means of two figures, both better when higher.

    An arm dominates another that it equals or exceeds in both and exceeds in one. Arms without both figures are out.
    """
    return [arm["name"] for arm in results["arms"] if _complete(arm, x, y) and not dominators(results, arm, x, y)]


def dominators(results: Mapping[str, Any], arm: Mapping[str, Any], x: str, y: str) -> list[Mapping[str, Any]]:
    """The arms that dominate this one in the means."""
    here = [stat(arm, key).mean for key in (x, y)]
    found = []
    for other in results["arms"]:
        there = [stat(other, key).mean for key in (x, y)]
        gaps = [b - a for a, b in zip(here, there, strict=True)]
        if all(gap >= 0.0 for gap in gaps) and any(gap > 0.0 for gap in gaps):  # false where one is NaN
            found.append(other)
    return found


def within_noise(results: Mapping[str, Any], arm: Mapping[str, Any], x: str, y: str) -> bool:
    """The arm is off the front, but no arm that dominates it is clearly better in either figure."""
    above = dominators(results, arm, x, y)
    return bool(above) and not any(difference(other, arm, key).clear for other in above for key in (x, y))


def _complete(arm: Mapping[str, Any], *keys: str) -> bool:
    return all(math.isfinite(stat(arm, key).mean) for key in keys)
