"""Steered, off target and saturated have one meaning: a run's summary, its findings and a lab's metrics agree on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.builders import run_folder

from orchestration.analysis.control import (
    is_saturated,
    is_without_effect,
    late_error,
    saturated_share,
    steered,
    target_errors,
)
from orchestration.analysis.diagnosis import diagnose
from orchestration.analysis.run_data import RunData, load_run
from orchestration.analysis.run_summary import summary_of
from orchestration.lab.run_metrics import run_metrics
from orchestration.telemetry.alarms import Alarms
from orchestration.thresholds import PATIENCE

DOUBLING = {"entropy": {"method": {"kind": "repo_r"}, "controller": {"kind": "doubling"}}}
FIXED = {"entropy": {"method": {"kind": "repo_r"}, "controller": {"kind": "fixed"}}}
NONE = {"entropy": {"method": {"kind": "none"}, "controller": {"kind": "doubling"}}}
OPEN = {"entropy/target": 1.0, "entropy/coefficient_low": 0.0, "entropy/coefficient_high": 1.0}
SHUT = OPEN | {"entropy/coefficient_low": 1.0}


def made(config: dict[str, Any], *rows: dict[str, float], every: dict[str, float] | None = None) -> RunData:
    return RunData("run", [{"iteration": float(i)} | (every or {}) | row for i, row in enumerate(rows)], [], config, "")


def test_an_iteration_without_the_entropy_under_control_is_not_counted(tmp_path: Path) -> None:
    """No response was correct in every third iteration, and the controller observes the correct ones."""

    def more(i: int) -> dict[str, float]:
        return {"entropy/controlled": math.nan if i % 3 == 0 else 1.0, "entropy/coefficient": 0.1}

    run = load_run(run_folder(tmp_path / "run", n=60, end=0.5, target=1.0, more=more))
    assert summary_of(run).target_rms_last_third == 0.0
    assert run_metrics(run)["rms_last_third"] == 0.0
    assert late_error(run) == (0.0, 0.0)
    assert "off_target" not in {finding.topic for finding in diagnose(run)}


def test_a_run_that_never_measured_what_it_controls_has_no_error() -> None:
    run = made(DOUBLING, *[{"entropy/controlled": math.nan, "entropy/exact": 0.5}] * 9, every=OPEN)
    assert all(map(math.isnan, target_errors(run)))
    assert math.isnan(summary_of(run).target_rms_last_third)
    assert "rms_last_third" not in run_metrics(run)


def test_a_run_that_does_not_report_what_it_controls_controls_all_responses() -> None:
    run = made(DOUBLING, *[{"entropy/exact": 0.5}] * 9, every=OPEN)
    assert target_errors(run) == [-0.5] * 9
    assert run_metrics(run)["rms_last_third"] == summary_of(run).target_rms_last_third == 0.5


@pytest.mark.parametrize(
    ("config", "every", "expected"),
    [
        (DOUBLING, OPEN, True),
        (DOUBLING, SHUT, False),  # the controller has nowhere to go
        (FIXED, OPEN, False),
        (NONE, OPEN, False),
        (DOUBLING, {"entropy/target": 1.0}, True),  # the bounds are not known: the configuration decides
        ({}, {"entropy/target": 1.0}, False),
        ({}, OPEN, True),
        (DOUBLING, {}, False),
    ],
)
def test_report_and_lab_agree_on_what_is_steered(
    config: dict[str, Any], every: dict[str, float], expected: bool
) -> None:
    run = made(config, *[{"entropy/exact": 0.5, "entropy/saturated": 1.0}] * 9, every=every)
    assert steered(run) is expected
    course = next(finding for finding in diagnose(run) if finding.topic == "course")
    assert ("No controller" not in course.text) is expected
    metrics = run_metrics(run)
    assert {key in metrics for key in ("target", "saturated", "rms_last_third")} == {expected}
    assert math.isfinite(summary_of(run).target_rms_last_third) is expected
    assert math.isfinite(saturated_share(run)) is expected


def alarmed(run: RunData) -> set[str]:
    """Returns the alarms that the last rows of a run raise."""
    alarms = Alarms(str(run.setting("entropy.method.kind")))
    for row in run.rows[-PATIENCE:]:
        alarms.look(row | {"entropy/error": -target_errors(run)[-1]})
    return {name for name, count in alarms.state_dict()["runs"].items() if count < 0}


@pytest.mark.parametrize("method", ["repo_r", "clip_cov"])
@pytest.mark.parametrize("exact", [0.94, 0.92, 0.88, 0.5])
@pytest.mark.parametrize("more", [{}, {"entropy/tabular_dh": 0.01, "entropy/tabular_dh_free": -0.01}])
def test_alarms_and_findings_use_the_same_thresholds(method: str, exact: float, more: dict[str, float]) -> None:
    """A saturated coefficient 8 % off its target used to be an alarm and not a warning of the report."""
    config = {"entropy": {"method": {"kind": method}, "controller": {"kind": "doubling"}}}
    row = {"entropy/exact": exact, "entropy/affected": 0.002, "entropy/saturated": 1.0, "entropy/coefficient": 1.0}
    run = made(config, *[row | more] * 30, every=OPEN)
    topics = {finding.topic for finding in diagnose(run) if finding.severity == "warning"}
    assert ("saturated" in topics) == is_saturated(run) == ("saturated" in alarmed(run)) == (exact < 0.9)
    few = exact < 0.9 and method == "repo_r" and not more
    assert ("too_few_tokens" in topics) == is_without_effect(run) == ("too_few_tokens" in alarmed(run)) == few
