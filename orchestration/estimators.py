"""Pure estimators for evaluation and for the ledger: standard library only, no state except where a class says so.

| name                | estimates                                                                   |
|---------------------|-----------------------------------------------------------------------------|
| `pass_at_k`         | chance that at least one of k replies to a prompt is correct, without bias  |
| `mean_pass_at_k`    | its mean over prompts                                                       |
| `distinct_correct`  | number of different correct solutions among the replies to one prompt       |
| `mean`, `spread`    | mean and sample standard deviation of the finite values                     |
| `rms`               | root mean square of the finite values                                       |
| `RunningRegression` | slope and correlation of y on x, one pair at a time, optionally forgetting  |
"""

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k from `n` replies of which `c` are correct: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, section 2.1. The quotient
    of binomials is the product of (1 - c / i) over i = n-k+1 .. n, or, equally, of (1 - k / i) over i = n-c+1 .. n.
    The shorter of the two is taken: no large integer appears and nothing overflows.

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n: with fewer replies than k no unbiased estimate exists.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= replies, got {c} correct of {n} replies.")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} replies: k must lie in 1..{n}.")
    if n - c < k:
        return 1.0
    few, many = sorted((c, k))
    return 1.0 - math.prod(1.0 - many / i for i in range(n - few + 1, n + 1))


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """Mean of `pass_at_k` over prompts, each given as (replies, correct); NaN without prompts."""
    return mean(pass_at_k(n, c, k) for n, c in counts)


def one_spaced(reply: str) -> str:
    """The reply with every run of white space made one blank: layout does not make a new solution."""
    return " ".join(reply.split())


def distinct_correct(
    replies: Iterable[str], correct: Iterable[bool], key: Callable[[str], Hashable] = one_spaced
) -> int:
    """Number of different correct solutions among the replies to ONE prompt.

    `key` says when two replies are the same solution. Raises ValueError when `replies` and `correct` differ in length.
    """
    return len({key(reply) for reply, right in zip(replies, correct, strict=True) if right})


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean of the finite values; NaN when there is none."""
    kept = _finite(values)
    return math.fsum(kept) / len(kept) if kept else math.nan


def spread(values: Iterable[float]) -> float:
    """Sample standard deviation (divided by n - 1) of the finite values; NaN with fewer than two of them."""
    kept = _finite(values)
    if len(kept) < 2:
        return math.nan
    centre = math.fsum(kept) / len(kept)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in kept) / (len(kept) - 1))


def rms(values: Iterable[float]) -> float:
    """Root mean square of the finite values; NaN when there is none."""
    kept = _finite(values)
    return math.sqrt(math.fsum(value * value for value in kept) / len(kept)) if kept else math.nan


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


@dataclass(slots=True)
class RunningRegression:
    """Least squares of y on x over a stream of pairs, in constant memory.

    Welford's update of means and centred second moments, with weights that fade by `decay` a pair (1.0 forgets nothing;
    0.95 looks back about 20 pairs). A pair with a non-finite member is skipped. `slope`, `intercept` and `correlation`
    are NaN until they are defined: two pairs whose x (for the correlation also y) differ.

        >>> line = RunningRegression()
        >>> for x in (0.0, 1.0, 2.0): line.add(x, 3.0 * x + 1.0)
        >>> round(line.slope, 6), round(line.correlation, 6)
        (3.0, 1.0)
    """

    decay: float = 1.0
    weight: float = 0.0
    mean_x: float = 0.0
    mean_y: float = 0.0
    moment_xx: float = 0.0
    moment_xy: float = 0.0
    moment_yy: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"A running regression needs a decay in (0, 1], got {self.decay}.")

    def add(self, x: float, y: float) -> None:
        """Take one pair in."""
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        before = self.decay * self.weight
        self.weight = before + 1.0
        step_x, step_y = x - self.mean_x, y - self.mean_y
        share = before / self.weight
        self.moment_xx = self.decay * self.moment_xx + share * step_x * step_x
        self.moment_xy = self.decay * self.moment_xy + share * step_x * step_y
        self.moment_yy = self.decay * self.moment_yy + share * step_y * step_y
        self.mean_x += step_x / self.weight
        self.mean_y += step_y / self.weight

    @property
    def slope(self) -> float:
        """Change of y for one unit of x."""
        return self.moment_xy / self.moment_xx if self.moment_xx > 0.0 else math.nan

    @property
    def intercept(self) -> float:
        """Value of the fitted line at x = 0."""
        return self.mean_y - self.slope * self.mean_x

    @property
    def correlation(self) -> float:
        """Pearson's r, in [-1, 1]."""
        # Two roots, not the root of the product: squares of small entropy changes would underflow.
        scale = math.sqrt(self.moment_xx) * math.sqrt(self.moment_yy)
        return max(-1.0, min(1.0, self.moment_xy / scale)) if scale > 0.0 else math.nan

    def state_dict(self) -> dict[str, float]:
        """Everything `load_state_dict` needs to go on exactly where this one stands."""
        return {name: getattr(self, name) for name in self.__slots__}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore `state_dict`. Raises ValueError naming the fields that are missing or unknown."""
        wrong = set(self.__slots__) ^ set(state)
        if wrong:
            raise ValueError(f"The state of a running regression does not fit: check {', '.join(sorted(wrong))}.")
        for name in self.__slots__:
            setattr(self, name, float(state[name]))
