"""Reads a run folder (config.yaml, metrics.jsonl, samples.jsonl) into memory; a file that is missing is left out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from orchestration.stats import mean
from orchestration.telemetry.sinks.base import Row, Sample
from orchestration.telemetry.sinks.jsonl import read_rows, read_samples
from orchestration.telemetry.typed_keys import DISTINCT, EnvKey, EvalKey, environment_of


class EvalPoint(NamedTuple):
    """Holds one pass@k of a run; `temperature` is None for the alias at the first temperature."""

    iteration: float
    env: str
    k: int
    temperature: float | None
    value: float


@dataclass(frozen=True, slots=True)
class RunData:
    """Holds a run folder in memory."""

    name: str
    rows: list[Row]
    samples: list[Sample]
    config: Mapping[str, Any]
    config_text: str

    def column(self, key: str) -> list[float]:
        """Returns the values of a key, one a row, with NaN where a row has none."""
        return [row.get(key, math.nan) for row in self.rows]

    def has(self, *keys: str) -> bool:
        """Tells whether any row has a finite value of any of these keys."""
        return any(math.isfinite(row.get(key, math.nan)) for row in self.rows for key in keys)

    def setting(self, path: str) -> Any:
        """Returns a value of the run's configuration by its dotted path; None where there is none."""
        here: Any = self.config
        for part in path.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        return here

    def metric_keys(self) -> list[str]:
        """Returns every key that any row has, in the order of first mention."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def envs(self) -> list[str]:
        """Returns every environment that a key of any row names, in the order of first mention."""
        return list(dict.fromkeys(env for env in map(environment_of, self.metric_keys()) if env is not None))

    def evals(self) -> list[EvalPoint]:
        """Returns every finite pass@k of the run."""
        points = []
        for row in self.rows:
            for key, value in row.items():
                at = EvalKey.parse(key) if math.isfinite(value) else None
                if at is not None:
                    points.append(EvalPoint(row.get("iteration", 0.0), at.env, at.k, at.temperature, value))
        return points

    def only(self, env: str) -> "RunData":
        """Returns the run as if it had one environment: its reward and entropy under the plain names, and its evaluations."""
        names = {"iteration": "iteration"}  # of this run -> of the run that is returned
        names |= {str(EnvKey("reward/{env}", env)): "reward/mean", str(EnvKey("entropy/{env}", env)): "entropy/exact"}
        names |= {key: key for key in self.metric_keys() if _is_eval_of(key, env)}
        rows = [{names[key]: value for key, value in row.items() if key in names} for row in self.rows]
        return replace(self, rows=rows)


def _is_eval_of(key: str, env: str) -> bool:
    parsed = EvalKey.parse(key)
    return parsed.env == env if parsed is not None else EnvKey.parse(key) == EnvKey(DISTINCT, env)


def load_run(run: Path) -> RunData:
    """Reads a run folder. Raises ValueError in a sentence when it has no iteration or a broken file."""
    rows = read_rows(run)
    if not rows:
        what = "holds no finished iteration" if run.is_dir() else "is not a folder"
        raise ValueError(f"There is nothing to report: the run '{run}' {what} (metrics.jsonl is missing or empty).")
    path = run / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return RunData(run.resolve().name, rows, read_samples(run), _parse_config(text, path), text)


def _parse_config(text: str, path: Path) -> Mapping[str, Any]:
    from orchestration.plain_yaml import (
        parse,  # here: only reports read YAML, and the module is imported by every command
    )

    try:
        config = parse(text)
    except ValueError as error:
        raise ValueError(f"{path} is not YAML ({error}).") from error
    return config if isinstance(config, dict) else {}


def over_envs(row: Row, family: str) -> float:
    """Averages a family of metrics, such as `keys.DISTINCT`, over the environments of a row."""
    parsed = [(EnvKey.parse(key), value) for key, value in row.items()]
    return mean(value for key, value in parsed if key is not None and key.family == family)


def pass_curve(points: Sequence[EvalPoint], iteration: float) -> dict[int, float]:
    """Returns k -> pass@k at one iteration, averaged over the environments among the points."""
    here = [p for p in points if p.iteration == iteration]
    return {k: mean(p.value for p in here if p.k == k) for k in sorted({p.k for p in here})}
