"""Every metric has a name for Prometheus of its own, and a row sets gauges with the right labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.builders import config_data

from orchestration.config.preflight import run_preflight
from orchestration.config.run_config import load_config, validate
from orchestration.errors import ConfigError
from orchestration.telemetry.keys import KEYS
from orchestration.telemetry.sinks import prometheus
from orchestration.telemetry.sinks.base import RunInfo
from orchestration.telemetry.sinks.prometheus import NOT_SHOWN, PrometheusSink, gauge_name, published


def test_names_are_prometheus_and_no_two_metrics_share_one() -> None:
    names = published()
    assert set(names.values()) == set(KEYS) - set(NOT_SHOWN)  # a shared name would have lost one of them
    assert all(re.fullmatch(r"ray_isentrope_[a-z0-9_]+", name) for name in names)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("entropy/exact", "isentrope_entropy_exact"),
        ("reward/{env}", "isentrope_reward_by_env"),
        ("eval/{env}/pass@{k}/T={temperature}", "isentrope_eval_pass_t_by_env_k_temperature"),
        ("ratio/q{percent}", "isentrope_ratio_q_by_percent"),
    ],
)
def test_the_name_of_a_metric(pattern: str, name: str) -> None:
    assert pattern in KEYS and gauge_name(pattern) == name


def test_a_row_sets_a_gauge_for_every_finite_value(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, tuple[str, ...]] = {}
    values: dict[tuple[str, str], float] = {}

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(made[self.name])
            values[self.name, str(sorted(tags.items()))] = value

    def make(name: str, meaning: tuple[str, str], labels: tuple[str, ...]) -> Any:
        assert name not in made, "a gauge is made once"
        made[name] = labels
        return Recorder(name)

    monkeypatch.setattr(prometheus, "make_gauge", make)
    sink = PrometheusSink()
    sink.start(RunInfo("one", Path("runs/one"), 2))
    for reward in (0.25, 0.5):
        sink.iteration(
            {"reward/mean": reward, "reward/countdown": 0.1, "reward/gym/gcd": 0.2, "entropy/error": float("nan"),
             "time/unix": 1.0, "not/ours": 1.0}
        )  # fmt: skip
    assert values == {
        ("isentrope_reward_mean", "[('run', 'one')]"): 0.5,
        ("isentrope_reward_by_env", "[('env', 'countdown'), ('run', 'one')]"): 0.1,
        ("isentrope_reward_by_env", "[('env', 'gym/gcd'), ('run', 'one')]"): 0.2,
    }


def test_a_cluster_of_the_runs_own_serves_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    data = config_data(run={"name": "one", "iterations": 1, "sinks": ["jsonl", "prometheus"]}, model={"path": "a/b"})
    with pytest.raises(ConfigError, match=r"run\.sinks has prometheus.*isentrope submit"):
        run_preflight(validate(data))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    run_preflight(validate(data))
    assert "prometheus" in load_config("smoke", ["run.sinks=[prometheus]"]).run.sinks
