"""Measures one finished run of a lab, under flat names, so that all metrics are averaged over seeds alike.

| name                                              | what                                                           |
|---------------------------------------------------|----------------------------------------------------------------|
| `entropy_start`, `entropy_end`, `entropy_change`  | nats per token; the change is relative                         |
| `target`                                          | nats per token, the last one                                   |
| `rms_last_third`, `rms_last_two_thirds`           | root mean square of (H - target) / target over that part       |
| `max_last_two_thirds`                             | largest \\|H - target\\| / target there                          |
| `saturated`, `affected`                           | share of iterations; mean share of tokens the coefficient touches |
| `reward_start`, `reward_end`                      | means of the first 3 and the last 5 iterations                 |
| `distinct_start`, `distinct_end`                  | correct solutions a prompt, first and last evaluation          |
| `pass@K/start`, `pass@K/end`                      | at the first temperature, first and last evaluation            |
| `pass@K/T=X/start`, `pass@K/T=X/end`              | at temperature X                                               |
| `retained/pass@K`, `backward/pass@K`, ...         | of a run with stages, see `retention.stage_metrics`            |
| `seconds`, `tokens`, `iterations`                 | what it took                                                   |

A metric that the run lacks is left out.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from orchestration.analysis.control import steered, target_errors
from orchestration.analysis.retention import stage_metrics
from orchestration.analysis.run_data import EvalPoint, RunData, pass_curve
from orchestration.analysis.run_summary import summary_of
from orchestration.stats import finite, last_third, mean, rms

When = Literal["start", "end", "best"]  # first evaluation, last evaluation, the last one at the best temperature


@dataclass(frozen=True, slots=True)
class PassKey:
    """Names a pass@k among the flat metrics of a run; `temperature` is None for the first one.

    >>> PassKey.parse("pass@16/T=0.3/end")
    PassKey(k=16, when='end', temperature=0.3)
    """

    k: int
    when: When
    temperature: float | None = None

    @classmethod
    def parse(cls, key: str) -> "PassKey | None":
        match = re.fullmatch(r"pass@(\d+)(?:/T=([^/]+))?/(start|end|best)", key)
        if match is None:
            return None
        return cls(int(match[1]), cast(When, match[3]), None if match[2] is None else float(match[2]))

    def __str__(self) -> str:
        heat = "" if self.temperature is None else f"/T={self.temperature:g}"
        return f"pass@{self.k}{heat}/{self.when}"


def pass_counts(metrics: Iterable[str]) -> set[int]:
    """Returns the k of every pass@k after training at the first temperature among these names."""
    keys = map(PassKey.parse, metrics)
    return {key.k for key in keys if key is not None and (key.when, key.temperature) == ("end", None)}


def name_after_training(metric: str) -> str | None:
    """Returns the name that a value from before training has after it: "reward_start" -> "reward_end"; None for all others."""
    key = PassKey.parse(metric)
    if key is not None:
        return str(replace(key, when="end")) if key.when == "start" else None
    return {"entropy_start": "entropy_end", "reward_start": "reward_end", "distinct_start": "distinct_end"}.get(metric)


def run_metrics(run: RunData) -> dict[str, float]:
    """Returns every metric of the table above that the run has."""
    s, errors = summary_of(run), finite(target_errors(run))
    two_thirds = errors[len(errors) // 3 :]
    metrics = {
        "entropy_start": s.entropy_start,
        "entropy_end": s.entropy_end,
        "entropy_change": s.entropy_change,
        "target": s.target if steered(run) else math.nan,
        "rms_last_third": rms(last_third(errors)),
        "rms_last_two_thirds": rms(two_thirds),
        "max_last_two_thirds": max(map(abs, two_thirds), default=math.nan),
        "saturated": s.saturated,
        "affected": mean(run.column("entropy/affected")),
        "reward_start": s.reward_start,
        "reward_end": s.reward_end,
        "distinct_start": s.distinct_start,
        "distinct_end": s.distinct,
        "seconds": s.seconds,
        "tokens": s.tokens,
        "iterations": float(s.iterations),
    }
    evals = run.evals()
    for heat in temperatures(run):
        metrics |= _passes([p for p in evals if p.temperature == heat], heat)
    metrics |= {str(PassKey(k, "start")): value for k, value in s.pass_at_start.items()}
    metrics |= {str(PassKey(k, "end")): value for k, value in s.pass_at.items()}
    if len({p.iteration for p in evals}) < 2:  # one evaluation says where the run ended, not where it began
        metrics = {key: value for key, value in metrics.items() if not _is_first_evaluation(key)}
    metrics |= stage_metrics(run.rows, max(s.pass_at, default=1))
    return {key: value for key, value in metrics.items() if math.isfinite(value)}


def temperatures(run: RunData) -> list[float]:
    """Returns the temperatures of the run's evaluations in their order: the first is the one without a suffix."""
    return list(dict.fromkeys(p.temperature for p in run.evals() if p.temperature is not None))


def _passes(points: Sequence[EvalPoint], temperature: float) -> dict[str, float]:
    out: dict[str, float] = {}
    ends: tuple[tuple[When, float], ...] = (
        ("start", min(p.iteration for p in points)),
        ("end", max(p.iteration for p in points)),
    )
    for when, iteration in ends:
        curve = pass_curve(points, iteration)
        out |= {str(PassKey(k, when, temperature)): value for k, value in curve.items()}
    return out


def _is_first_evaluation(key: str) -> bool:
    parsed = PassKey.parse(key)
    return parsed.when == "start" if parsed is not None else key == "distinct_start"
