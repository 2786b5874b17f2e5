"""Measures what a run with stages kept of each environment, from the rows of its metrics. Pure.

`matrix` is R: R[s][e] is the evaluation of environment e right after stage s, and b[e] the one before training. In the papers
every task is one stage and one environment; here a stage may train several and an environment may come back, so that "its own
stage" is the last one that trained it for backward transfer and forgetting, and the first one for forward transfer.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orchestration.stats import finite, mean
from orchestration.telemetry.sinks.base import Row
from orchestration.telemetry.typed_keys import EnvKey, EvalKey
from orchestration.thresholds import END_ROWS, START_ROWS


@dataclass(frozen=True, slots=True)
class MatrixKey:
    """Names a cell of the matrix among a run's flat metrics; `stage` is None before training.

    >>> MatrixKey.parse("matrix/pass@16/start/gym/gcd")
    MatrixKey(k=16, stage=None, env='gym/gcd')
    """

    k: int
    stage: int | None
    env: str

    @classmethod
    def parse(cls, key: str) -> "MatrixKey | None":
        match = re.fullmatch(r"matrix/pass@(\d+)/(start|\d+)/(.+)", key)
        if match is None:
            return None
        return cls(int(match[1]), None if match[2] == "start" else int(match[2]), match[3])

    def __str__(self) -> str:
        return f"matrix/pass@{self.k}/{'start' if self.stage is None else self.stage}/{self.env}"


@dataclass(frozen=True, slots=True)
class StageKey:
    """Names a metric of one stage among a run's flat metrics, such as `StageKey("area/reward", 0)`."""

    metric: str  # "area/reward", "area/eval" or "entropy_change"
    stage: int

    @classmethod
    def parse(cls, key: str) -> "StageKey | None":
        match = re.fullmatch(r"(area/reward|area/eval|entropy_change)/(\d+)", key)
        return cls(match[1], int(match[2])) if match else None

    def __str__(self) -> str:
        return f"{self.metric}/{self.stage}"


@dataclass(frozen=True, slots=True)
class Retention:
    """Holds scores of one kind, such as pass@1. Retention(("add", "gcd"), {"add": 0.1, "gcd": 0.0}, ({"add": 0.9, "gcd": 0.1},
    {"add": 0.6, "gcd": 0.8}), (("add",), ("gcd",))): two stages over two environments."""

    environments: tuple[str, ...]  # in the order in which stages trained them; those never trained come last
    before: Mapping[str, float]  # b: before training; without that evaluation, empty
    after: tuple[Mapping[str, float], ...]  # R: after each stage, by environment; empty where a stage was not evaluated
    trained: tuple[tuple[str, ...], ...]  # the environments each stage trained

    def first(self, env: str) -> int | None:
        """Returns the first stage that trained an environment."""
        return next((s for s, envs in enumerate(self.trained) if env in envs), None)

    def last(self, env: str) -> int | None:
        """Returns the last stage that trained an environment."""
        return next((s for s in reversed(range(len(self.trained))) if env in self.trained[s]), None)

    def at(self, stage: int, env: str) -> float:
        """Returns R[stage][env], and b[env] for stage -1; NaN where it was not evaluated."""
        return (self.before if stage < 0 else self.after[stage]).get(env, math.nan)

    @property
    def average(self) -> float:
        """Averages over all that was trained after the last stage: ACC of Lopez-Paz & Ranzato (2017), arXiv 1706.08840, eq. 2."""
        return mean(self.at(len(self.after) - 1, e) for e in self.environments if self.last(e) is not None)

    def backward(self, env: str) -> float:
        """Computes R[last stage][e] - R[e's own stage][e]: what training on others did to e after it was learned; negative
        when it was lost. NaN for what the last stage trained."""
        own, end = self.last(env), len(self.after) - 1
        return math.nan if own is None or own == end else self.at(end, env) - self.at(own, env)

    def forward(self, env: str) -> float:
        """Computes R[the stage before e's own][e] - b[e]: what training on others gave e before it was trained. NaN for what
        the first stage trained."""
        own = self.first(env)
        return math.nan if not own else self.at(own - 1, env) - self.at(-1, env)

    def forgotten(self, env: str) -> float:
        """Computes the maximum over the stages before the last of R[s][e], minus R[last stage][e]. NaN for what the last stage
        trained."""
        own, end = self.last(env), len(self.after) - 1
        if own is None or own == end:
            return math.nan
        best = [v for s in range(end) if math.isfinite(v := self.at(s, env))]
        return max(best, default=math.nan) - self.at(end, env)

    @property
    def backward_transfer(self) -> float:
        """Averages `backward` over the environments that have it: BWT of Lopez-Paz & Ranzato (2017), arXiv 1706.08840, eq. 3."""
        return mean(map(self.backward, self.environments))

    @property
    def forward_transfer(self) -> float:
        """Averages `forward`: FWT of Lopez-Paz & Ranzato (2017), eq. 4, with the policy before training as the baseline b."""
        return mean(map(self.forward, self.environments))

    @property
    def forgetting(self) -> float:
        """Averages `forgotten` over the environments that have it: F of Chaudhry et al. (2018), arXiv 1801.10112, eq. 3. Unlike
        backward transfer it counts from the best there was, so that it is seldom negative."""
        return mean(map(self.forgotten, self.environments))


@dataclass(frozen=True, slots=True)
class Area:
    """Holds the areas under one stage's curves, over its length (their mean height, by trapezoids), and what entropy did."""

    reward: float  # mean training reward over the stage's iterations
    entropy_change: float  # of the exact entropy, from the stage's first 3 iterations to its last 5, relative
    evaluation: float  # the stage's environments' mean pass@1, from the evaluation before the stage to the one after it


def matrix(rows: Sequence[Row], k: int) -> Retention | None:
    """Builds the matrix of pass@k after each stage that the rows show; None for a run without stages."""
    count = 1 + max((int(row["stage/index"]) for row in rows if "stage/index" in row), default=-1)
    if not count:
        return None
    after: list[dict[str, float]] = [{} for _ in range(count)]
    before: dict[str, float] = {}
    trained: list[dict[str, None]] = [{} for _ in range(count)]
    for row in rows:
        scores = passes(row, k)
        if not row.get("iteration"):
            before = scores or before
        elif "stage/index" in row:
            at = int(row["stage/index"])
            after[at] = scores or after[at]  # the last evaluation of a stage is the one at its boundary
            trained[at] |= dict.fromkeys(trained_in(row))
    order = dict.fromkeys(env for envs in trained for env in envs)
    order |= dict.fromkeys(env for scores in (before, *after) for env in scores)
    return Retention(tuple(order), before, tuple(after), tuple(map(tuple, trained)))


def passes(row: Row, k: int) -> dict[str, float]:
    """Returns environment -> pass@k at the first temperature."""
    parsed = [(EvalKey.parse(key), value) for key, value in row.items() if math.isfinite(value)]
    return {key.env: value for key, value in parsed if key is not None and (key.k, key.temperature) == (k, None)}


def trained_in(row: Row) -> list[str]:
    """Returns the environments that gave prompts to an iteration."""
    return [key.env for key in map(EnvKey.parse, row) if key is not None and key.family == "reward/{env}"]


def boundaries(rows: Sequence[Row]) -> list[float]:
    """Returns the iterations after which a new stage begins."""
    at = [(row["iteration"], row["stage/index"]) for row in rows if "stage/index" in row]
    return [x for (x, stage), (_, after) in pairwise(at) if after > stage]


def areas(rows: Sequence[Row]) -> list[Area]:
    """Computes the areas of every stage; NaN where a curve has no point."""
    retention = matrix(rows, 1)
    if retention is None:
        return []
    out, edge = [], 0.0  # the iteration before the stage
    for stage, envs in enumerate(retention.trained):
        of_stage = [row for row in rows if row.get("stage/index") == stage and row["iteration"] > 0]
        rewards = [(row["iteration"], row.get("reward/mean", math.nan)) for row in of_stage]
        scores = [
            (row["iteration"], mean(v for e, v in passes(row, 1).items() if e in envs))
            for row in rows
            if edge <= row["iteration"] <= (of_stage[-1]["iteration"] if of_stage else edge)
        ]
        entropy = finite(row.get("entropy/exact", math.nan) for row in of_stage)
        start = mean(entropy[:START_ROWS])
        change = mean(entropy[-END_ROWS:]) / start - 1 if start > 0.0 else math.nan
        out.append(Area(height(rewards), change, height(scores)))
        edge = of_stage[-1]["iteration"] if of_stage else edge
    return out


def height(points: Iterable[tuple[float, float]]) -> float:
    """Computes the area under the finite points (x, y) by trapezoids, over their length in x; of a single point its height."""
    kept = [(x, y) for x, y in points if math.isfinite(y)]
    if len(kept) < 2:
        return kept[0][1] if kept else math.nan
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(kept))
    return area / (kept[-1][0] - kept[0][0])


def stage_metrics(rows: Sequence[Row], k: int) -> dict[str, float]:
    """Returns the metrics of a run with stages under flat names, for pass@1 and pass@k: `retained/pass@1`, `backward/pass@1`,
    `forward/pass@1`, `forgetting/pass@1`, `area/reward/0`, `area/eval/0`, `entropy_change/0`, ... and the matrix itself:
    `matrix/pass@1/0/add` is R[0][add], `matrix/pass@1/start/add` is b[add]. NaN where one does not exist."""
    out: dict[str, float] = {}
    for at in dict.fromkeys((1, k)):
        retention = matrix(rows, at)
        if retention is None:
            return {}
        out |= {
            f"retained/pass@{at}": retention.average,
            f"backward/pass@{at}": retention.backward_transfer,
            f"forward/pass@{at}": retention.forward_transfer,
            f"forgetting/pass@{at}": retention.forgetting,
        }
        for stage in range(-1, len(retention.after)):
            after = None if stage < 0 else stage
            out |= {str(MatrixKey(at, after, env)): retention.at(stage, env) for env in retention.environments}
    for stage, area in enumerate(areas(rows)):
        values = {"area/reward": area.reward, "area/eval": area.evaluation, "entropy_change": area.entropy_change}
        out |= {str(StageKey(metric, stage)): value for metric, value in values.items()}
    return out
