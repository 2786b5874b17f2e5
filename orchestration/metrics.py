"""The names of everything the loop reports, and how several values of one name become one.

`KEYS` is the single table: a key that is not in it does not reach a sink. Names in braces stand for a family:
`reward/{env}` covers `reward/countdown`. A row is a flat `dict[str, float]`, one an iteration:

    {"iteration": 12.0, "reward/mean": 0.41, "entropy/exact": 0.83, "eval/countdown/pass@16/T=0.3": 0.94}
"""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache


class Reduction(StrEnum):
    """How several values of one key (ranks, micro-batches, workers) become one."""

    MEAN = "mean"  # sum of values / number of values
    WEIGHTED = "weighted"  # sum of weight * value / sum of weights: the weight is a count, of tokens or of replies
    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a key means, in which unit, and how it is reduced."""

    help: str
    unit: str
    reduction: Reduction


MEAN, WEIGHTED, SUM, MAX, MIN = Reduction

KEYS: dict[str, MetricSpec] = {
    # where the run stands
    "iteration": MetricSpec("Iteration just finished; 0 is the policy before training", "", MAX),
    "policy_version": MetricSpec("Version of the weights the generators hold at the end of the iteration", "", MAX),
    "epoch": MetricSpec("Passes over the prompts so far", "", MAX),
    "time/unix": MetricSpec("Wall clock at the end of the iteration, since 1970", "s", MAX),
    # what was earned
    "reward/mean": MetricSpec("Mean reward of the replies", "", WEIGHTED),
    "reward/std": MetricSpec("Standard deviation of the reward over the whole batch", "", MEAN),
    "reward/{env}": MetricSpec("Mean reward in one environment", "", WEIGHTED),
    "correct/mean": MetricSpec("Share of replies judged correct", "share", WEIGHTED),
    "correct/{env}": MetricSpec("Share of replies judged correct in one environment", "share", WEIGHTED),
    "groups/no_signal": MetricSpec("Groups whose rewards are all equal: they carry no gradient", "groups", SUM),
    # the entropy ledger
    "entropy/exact": MetricSpec("Entropy of the policy from the full distribution", "nats/token", WEIGHTED),
    "entropy/sampled": MetricSpec("Entropy estimated from the sampled tokens alone", "nats/token", WEIGHTED),
    "entropy/target": MetricSpec("Entropy the controller aims at", "nats/token", MEAN),
    "entropy/error": MetricSpec("(target - exact) / target", "relative", MEAN),
    "entropy/knob": MetricSpec("Coefficient the controller moves", "", MEAN),
    "entropy/knob_low": MetricSpec("Lower bound of the knob", "", MEAN),
    "entropy/knob_high": MetricSpec("Upper bound of the knob", "", MEAN),
    "entropy/authority": MetricSpec("Share of tokens the knob touches", "share", WEIGHTED),
    "entropy/saturated": MetricSpec("1 when the knob is at its bound and entropy is still off target", "0/1", MAX),
    "entropy/predicted_dh": MetricSpec("Change of entropy predicted to first order", "nats/token", MEAN),
    "entropy/realised_dh": MetricSpec("Change of entropy measured on fresh replies", "nats/token", MEAN),
    "entropy/predicted_dh_positive": MetricSpec("Predicted change due to positive advantages", "nats/token", MEAN),
    "entropy/predicted_dh_negative": MetricSpec("Predicted change due to negative advantages", "nats/token", MEAN),
    "entropy/regression_slope": MetricSpec("Slope of realised on predicted change, running", "", MEAN),
    "entropy/regression_r": MetricSpec("Correlation of realised and predicted change, running", "", MEAN),
    "entropy/{env}": MetricSpec("Exact entropy in one environment", "nats/token", WEIGHTED),
    "entropy/cumulative": MetricSpec("Exact entropy minus the entropy at the start", "nats/token", MEAN),
    # the update
    "clip/high": MetricSpec("Share of tokens clipped from above", "share", WEIGHTED),
    "clip/low": MetricSpec("Share of tokens clipped from below", "share", WEIGHTED),
    "ratio/mean": MetricSpec("Mean ratio of new to old probability", "", WEIGHTED),
    "ratio/max": MetricSpec("Largest ratio of new to old probability", "", MAX),
    "loss": MetricSpec("Objective that was minimised", "", MEAN),
    "steps/skipped": MetricSpec("Optimiser steps skipped because an fp16 gradient overflowed", "steps", SUM),
    "grad_norm": MetricSpec("Norm of the gradient before clipping", "", MEAN),
    "lr": MetricSpec("Learning rate", "", MEAN),
    "kl/old": MetricSpec("KL from the policy that wrote the replies", "nats/token", WEIGHTED),
    "advantage/std": MetricSpec("Standard deviation of the advantages over the whole batch", "", MEAN),
    # trainer against engine
    "sync/logprob_gap_max": MetricSpec("Largest log-prob difference right after a weight sync", "nats", MAX),
    "sync/logprob_gap_mean": MetricSpec("Mean absolute such difference", "nats", WEIGHTED),
    "sync/bytes": MetricSpec("Bytes of weights sent to the generators", "B", SUM),
    "gap/engine_mean": MetricSpec("Mean absolute log-prob difference, trainer against engine", "nats", WEIGHTED),
    "gap/engine_max": MetricSpec("Largest such difference", "nats", MAX),
    "gap/outside": MetricSpec("Share of tokens whose trainer/engine ratio leaves [0.9, 1.1]", "share", WEIGHTED),
    # where the time went
    "time/iteration": MetricSpec("Whole iteration", "s", MAX),
    "time/generate": MetricSpec("Writing replies", "s", MAX),
    "time/verify": MetricSpec("Judging replies", "s", MAX),
    "time/train": MetricSpec("Gradient steps", "s", MAX),
    "time/sync": MetricSpec("Sending weights to the generators", "s", MAX),
    "time/eval": MetricSpec("Evaluation", "s", MAX),
    "time/checkpoint": MetricSpec("Writing checkpoints", "s", MAX),
    "tokens/generated": MetricSpec("Tokens written by the policy", "tokens", SUM),
    "tokens/trained": MetricSpec("Tokens that entered the loss", "tokens", SUM),
    "tokens/per_second": MetricSpec("Generated tokens over the time of the iteration", "tokens/s", SUM),
    # the replies
    "reply/length_mean": MetricSpec("Mean length of a reply", "tokens", WEIGHTED),
    "reply/length_max": MetricSpec("Longest reply", "tokens", MAX),
    "status/ok": MetricSpec("Share of replies that ended by themselves and were judged", "share", WEIGHTED),
    "status/truncated": MetricSpec("Share of replies cut at the length limit", "share", WEIGHTED),
    "status/timeout": MetricSpec("Share of replies whose judging ran out of time", "share", WEIGHTED),
    "status/error": MetricSpec("Share of replies whose judging failed", "share", WEIGHTED),
    # evaluation
    "eval/{env}/pass@{k}": MetricSpec("Unbiased pass@k at the first temperature", "share", WEIGHTED),
    "eval/{env}/pass@{k}/T={temperature}": MetricSpec("Unbiased pass@k at one temperature", "share", WEIGHTED),
    "eval/{env}/distinct_correct": MetricSpec("Different correct solutions per prompt", "solutions", WEIGHTED),
    "eval/{env}/entropy": MetricSpec("Entropy on the evaluation prompts", "nats/token", WEIGHTED),
}

_FIELDS = {"env": r"[^/\s]+", "k": r"[1-9]\d*", "temperature": r"\d+(?:\.\d+)?(?:e-?\d+)?"}


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)  # text, field, text, field, ..., text
    return re.compile("".join(f"(?P<{p}>{_FIELDS[p]})" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


_FAMILIES = {pattern: _compile(pattern) for pattern in KEYS if "{" in pattern}


class UnknownMetricError(ValueError):
    """A key that `KEYS` does not list."""


@lru_cache(maxsize=4096)
def lookup(key: str) -> tuple[str, dict[str, str]] | None:
    """The entry of `KEYS` a key belongs to and what its braces stand for; None if there is none.

    A literal entry wins over a family, so `reward/mean` is never an environment named "mean".

        >>> lookup("eval/countdown/pass@16/T=0.3")
        ('eval/{env}/pass@{k}/T={temperature}', {'env': 'countdown', 'k': '16', 'temperature': '0.3'})
    """
    if key in KEYS:
        # A family's own name is a pattern, not a key: nobody reports "reward/{env}".
        return None if "{" in key else (key, {})
    for pattern, regex in _FAMILIES.items():
        if found := regex.fullmatch(key):
            return pattern, found.groupdict()
    return None


def spec_of(key: str, envs: Collection[str] | None = None) -> MetricSpec:
    """The entry of `KEYS` for a key. With `envs`, `{env}` stands only for one of them, which also catches a misspelt
    `reward/meen`. Raises UnknownMetricError naming the nearest key."""
    found = lookup(key)
    if found is not None and (envs is None or found[1].get("env", key) in {*envs, key}):
        return KEYS[found[0]]
    names = [name.replace("{env}", env) for name in KEYS for env in (envs if envs and "{env}" in name else ["{env}"])]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UnknownMetricError(f"Unknown metric '{key}'.{hint} Every key is listed in KEYS in orchestration/metrics.py.")


def validate_row(row: Mapping[str, float], envs: Collection[str] | None = None) -> list[str]:
    """Check every key of a row; return the keys whose value is not finite, in the order of the row.

    A non-finite value is returned rather than raised: whether a run stops for it is the loop's decision.
    Raises UnknownMetricError for a key that is not in `KEYS`, and ValueError for a row without an iteration.
    """
    for key in row:
        spec_of(key, envs)
    if "iteration" not in row:
        raise ValueError(f"A row of metrics needs an 'iteration'; this one has {', '.join(sorted(row)) or 'no keys'}.")
    return [key for key, value in row.items() if not math.isfinite(value)]


@dataclass(frozen=True, slots=True)
class Metric:
    """One value on its way to a row. `weight` is a count, used by the weighted mean only.

    Metric(0.83, weight=4096, reduction=Reduction.WEIGHTED)  # mean entropy over 4,096 tokens of one rank
    """

    value: float
    weight: float = 1.0
    reduction: Reduction = Reduction.MEAN

    def __post_init__(self) -> None:
        # `not >=` instead of `<`: a NaN weight must not pass.
        if not self.weight >= 0.0:
            raise ValueError(f"A metric's weight is a count and cannot be {self.weight}.")


def reduce(metrics: Iterable[Metric]) -> float:
    """One value from several of the same key; NaN where there is nothing to divide by.

    A NaN among the values makes the result NaN, for max and min too: Python's own max would hide it or not depending
    on its position. A value of weight 0 is left out of the weighted mean, whatever it is: an empty rank has no mean.
    Raises ValueError when the metrics carry different reductions or there is none.
    """
    items = list(metrics)
    kinds = {item.reduction for item in items}
    if len(kinds) != 1:
        raise ValueError(f"Metrics of one key need one reduction, got {', '.join(sorted(kinds)) or 'no metric'}.")
    kind = kinds.pop()
    if kind is Reduction.WEIGHTED:
        items = [item for item in items if item.weight > 0.0]
    values = [item.value for item in items]
    if not values or any(math.isnan(value) for value in values):
        return math.nan
    match kind:
        case Reduction.MAX:
            return max(values)
        case Reduction.MIN:
            return min(values)
        case Reduction.SUM:
            return sum(values)
        case Reduction.MEAN:
            return sum(values) / len(values)
        case Reduction.WEIGHTED:
            return sum(item.value * item.weight for item in items) / sum(item.weight for item in items)


@dataclass(slots=True)
class Reducer:
    """Collects the values of one iteration, key by key, each with the reduction `KEYS` gives it.

    >>> reducer = Reducer()
    >>> reducer.add("entropy/exact", 1.0, weight=300)
    >>> reducer.add("entropy/exact", 2.0, weight=100)
    >>> reducer.row()
    {'entropy/exact': 1.25}
    """

    metrics: dict[str, list[Metric]] = field(default_factory=dict)

    def add(self, key: str, value: float, weight: float = 1.0) -> None:
        """Take one value in. Raises UnknownMetricError for a key that is not in `KEYS`."""
        self.metrics.setdefault(key, []).append(Metric(float(value), weight, spec_of(key).reduction))

    def update(self, row: Mapping[str, float], weight: float = 1.0) -> None:
        """Take every key of a row in, with one weight."""
        for key, value in row.items():
            self.add(key, value, weight)

    def merge(self, other: "Reducer") -> None:
        """Take in what another collector (another rank) holds."""
        for key, metrics in other.metrics.items():
            self.metrics.setdefault(key, []).extend(metrics)

    def row(self) -> dict[str, float]:
        """The reduced row, keys in the order they first came; the collector stays as it is."""
        return {key: reduce(metrics) for key, metrics in self.metrics.items()}
