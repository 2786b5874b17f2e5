"""Estimates what evaluations and reports are made of: pass@k, means, spreads, a fitted line. Standard library only, no state.

| name                | estimates                                                                    |
|---------------------|------------------------------------------------------------------------------|
| `pass_at_k`         | chance that at least one of k responses to a prompt is correct, without bias |
| `mean_pass_at_k`    | its mean over prompts                                                        |
| `distinct_correct`  | number of different correct solutions among the responses to one prompt      |
| `finite`            | the finite values, which the others below take                               |
| `last_third`        | the last third of a sequence                                                 |
| `longest`           | the longest stretch of 1 in a row                                            |
| `mean`, `rms`       | mean and root mean square                                                    |
| `std`               | sample standard deviation                                                    |
| `fit_line`          | slope, intercept and correlation of y on x                                   |

Means are `statistics.fmean` of the finite values. `std` and `fit_line` are written out: `statistics.stdev`,
`linear_regression` and `correlation` round other steps, so that recorded metrics would change in their last digits; they
raise where the answer here is NaN, and the correlation underflows for the small changes of entropy of a converged run.
numpy would take longer to import than the commands that need no more than a mean take to answer.
"""

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimates pass@k without bias from `n` responses of which `c` are correct: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, section 2.1. The quotient
    of binomials is the product of (1 - c / i) over i = n-k+1 .. n, or, equally, of (1 - k / i) over i = n-c+1 .. n.
    The shorter of the two is taken: no large integer appears and nothing overflows.

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n: with fewer responses than k no unbiased estimate exists.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= responses, got {c} correct of {n} responses.")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} responses: k must lie in 1..{n}.")
    if n - c < k:
        return 1.0
    few, many = sorted((c, k))
    return 1.0 - math.prod(1.0 - many / i for i in range(n - few + 1, n + 1))


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """Averages `pass_at_k` over prompts, each given as (responses, correct); NaN without prompts."""
    return mean(pass_at_k(n, c, k) for n, c in counts)


def one_spaced(response: str) -> str:
    """Returns the response with every run of white space made one blank: layout does not make a new solution."""
    return " ".join(response.split())


def distinct_correct(
    responses: Iterable[str], correct: Iterable[bool], key: Callable[[str], Hashable] = one_spaced
) -> int:
    """Counts the different correct solutions among the responses to ONE prompt.

    `key` says when two responses are the same solution. Raises ValueError when `responses` and `correct` differ in length.
    """
    return len({key(response) for response, right in zip(responses, correct, strict=True) if right})


def finite(values: Iterable[float]) -> list[float]:
    """Returns the values that are neither NaN nor infinite."""
    return [value for value in values if math.isfinite(value)]


def last_third(values: Sequence[float]) -> Sequence[float]:
    """Returns the last third of the values, one more than a third where they cannot be divided evenly."""
    return values[len(values) * 2 // 3 :]


def longest(flags: Sequence[float]) -> tuple[int, int]:
    """Returns (first, last) index of the longest stretch of 1 in a row; (0, -1) without any. NaN ends a stretch.

    >>> longest([0.0, 1.0, 1.0, 0.0, 1.0])
    (1, 2)
    """
    best, begin = (0, -1), 0
    for i, flag in enumerate(flags):
        if flag != 1.0:
            begin = i + 1
        elif i - begin > best[1] - best[0]:
            best = (begin, i)
    return best


def mean(values: Iterable[float]) -> float:
    """Computes the arithmetic mean of the finite values; NaN when there is none."""
    kept = finite(values)
    return statistics.fmean(kept) if kept else math.nan


def rms(values: Iterable[float]) -> float:
    """Computes the root mean square of the finite values; NaN when there is none."""
    kept = finite(values)
    return math.sqrt(statistics.fmean(value * value for value in kept)) if kept else math.nan


def std(values: Iterable[float]) -> float:
    """Computes the sample standard deviation (divisor n - 1) of the finite values; NaN with fewer than two."""
    kept = finite(values)
    if len(kept) < 2:
        return math.nan
    centre = mean(kept)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in kept) / (len(kept) - 1))


class Line(NamedTuple):
    """Holds y = intercept + slope * x, and Pearson's r; NaN where undefined."""

    slope: float
    intercept: float
    correlation: float


def fit_line(x: Iterable[float], y: Iterable[float]) -> Line:
    """Fits y on x by least squares over the pairs whose members are both finite.

    The slope needs two pairs of different x, the correlation also of different y.

        >>> line = fit_line([0.0, 1.0, 2.0], [1.0, 4.0, 7.0])
        >>> round(line.slope, 6), round(line.intercept, 6), round(line.correlation, 6)
        (3.0, 1.0, 1.0)
    """
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len({a for a, _ in pairs}) < 2:
        return Line(math.nan, math.nan, math.nan)
    centre_x, centre_y = mean(a for a, _ in pairs), mean(b for _, b in pairs)
    steps = [(a - centre_x, b - centre_y) for a, b in pairs]
    xx, xy, yy = sum(a * a for a, _ in steps), sum(a * b for a, b in steps), sum(b * b for _, b in steps)
    slope = xy / xx if xx > 0.0 else math.nan
    # Two roots, not the root of the product: squares of small entropy changes would underflow.
    scale = math.sqrt(xx) * math.sqrt(yy)
    varied = len({b for _, b in pairs}) > 1 and scale > 0.0
    return Line(slope, centre_y - slope * centre_x, max(-1.0, min(1.0, xy / scale)) if varied else math.nan)
