"""Publishes a run's metrics as gauges of Ray, whose agent on every node serves them to Prometheus.

`entropy/exact` is `ray_isentrope_entropy_exact{run="countdown"}`, and `reward/{env}` is `ray_isentrope_reward_by_env{run, env}`:
the parts of a family's name in braces are labels. Ray puts `ray_` in front of every name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from orchestration.telemetry.keys import KEYS, lookup
from orchestration.telemetry.sinks.base import Row, RunInfo, Sample

RAY_PREFIX = "ray_"
PREFIX = "isentrope_"
RUN = "run"  # the label that every gauge has
NOT_SHOWN = ("time/unix",)  # Prometheus has a time of its own


class Gauge(Protocol):
    """Holds the last value for each set of labels, as `ray.util.metrics.Gauge` does."""

    def set(self, value: float, tags: dict[str, str]) -> Any: ...


def gauge_name(pattern: str) -> str:
    """Returns the name under which an entry of `KEYS` is published, without the prefix that Ray adds.

    >>> gauge_name("eval/{env}/pass@{k}")
    'isentrope_eval_pass_by_env_k'
    """
    fields = re.findall(r"\{(\w+)\}", pattern)
    words = re.findall(r"[a-zA-Z0-9]+", re.sub(r"\{\w+\}", " ", pattern))
    return PREFIX + "_".join([*words, *(["by", *fields] if fields else [])]).lower()


def published() -> dict[str, str]:
    """Returns every name that Prometheus can have from a run, with Ray's prefix -> the entry of `KEYS`."""
    return {RAY_PREFIX + gauge_name(pattern): pattern for pattern in KEYS if pattern not in NOT_SHOWN}


class PrometheusSink:
    """Sets a gauge for every metric of a row. Only where a cluster is joined: a run's own has no agent that serves them."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._run = ""

    def start(self, run: RunInfo) -> None:
        self._run = run.name

    def progress(self, phase: str, done: float, total: float) -> None:
        pass

    def iteration(self, row: Row) -> None:
        for key, value in row.items():
            found = lookup(key)
            if found is None or found[0] in NOT_SHOWN or not math.isfinite(value):
                continue
            pattern, fields = found
            self._gauge(pattern, fields).set(float(value), {RUN: self._run, **fields})

    def sample(self, rows: Sequence[Sample]) -> None:
        pass

    def event(self, text: str) -> None:
        pass

    def close(self, status: str) -> None:
        pass

    def _gauge(self, pattern: str, fields: Mapping[str, str]) -> Gauge:
        if pattern not in self._gauges:
            self._gauges[pattern] = make_gauge(gauge_name(pattern), KEYS[pattern], (RUN, *fields))
        return self._gauges[pattern]


def make_gauge(name: str, meaning: tuple[str, str], labels: tuple[str, ...]) -> Gauge:
    """Makes a gauge of Ray's."""
    from ray.util import metrics

    text, unit = meaning
    return metrics.Gauge(name, description=f"{text} ({unit})" if unit else text, tag_keys=labels)
