"""Reward hacking is found where there is any, and not where a policy only learns."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestration.stats import longest
from orchestration.telemetry.alarms import Alarms
from orchestration.telemetry.keys import lookup
from orchestration.telemetry.reward_hacking import WINDOW, RewardHackingMonitor, _Series
from orchestration.thresholds import PATIENCE

Row = dict[str, float]
Curve = Callable[[int], float]


def rows(reward: Curve, check: Curve, length: Curve = lambda i: 20.0, n: int = 40, noise: float = 0.02) -> list[Row]:
    rng = random.Random(7)
    return [
        {
            "iteration": i + 1.0,
            "reward/mean": reward(i) + rng.gauss(0, noise),
            "reward/a": 0.0,
            "correct/mean": check(i) + rng.gauss(0, noise),
            "response/length_mean": length(i) + rng.gauss(0, noise),
        }
        for i in range(n)
    ]


def measured_in(history: list[Row]) -> list[Row]:
    monitor = RewardHackingMonitor()
    return [monitor.look(row) for row in history]


def up(i: int) -> float:
    return 0.2 + 0.01 * i


def still(i: int) -> float:
    return 0.2


def down(i: int) -> float:
    return 0.4 - 0.005 * i


def ever(measured: list[Row], key: str) -> bool:
    """Returns whether the key stays 1 for as many iterations in a row as an alarm waits."""
    first, last = longest([row.get(key, 0.0) for row in measured])
    return last - first + 1 >= PATIENCE


# --- what is found ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [still, down])
def test_a_reward_that_rises_alone_is_found(check: Curve) -> None:
    measured = measured_in(rows(up, check))
    assert ever(measured, "drift/hacking")
    assert measured[-1]["drift/reward"] == pytest.approx(0.35, abs=0.03)
    assert measured[-1]["drift/check"] == pytest.approx(check(37) - check(2), abs=0.03)
    assert not ever(measured, "drift/longer")


@pytest.mark.parametrize(
    ("reward", "check"), [(up, up), (up, lambda i: 0.2 + 0.005 * i), (still, still), (still, down), (down, down)]
)
def test_a_policy_that_learns_or_does_not_is_not_suspected(reward: Curve, check: Curve) -> None:
    assert not ever(measured_in(rows(reward, check)), "drift/hacking")


def test_noise_alone_is_seldom_suspected() -> None:
    def suspected(seed: int) -> bool:
        rng = random.Random(seed)
        values = [(rng.random(), rng.random()) for _ in range(60)]
        series = [{"reward/mean": r, "correct/mean": c, "response/length_mean": 9.0} for r, c in values]
        return ever(measured_in(series), "drift/hacking")

    assert sum(suspected(seed) for seed in range(500)) <= 5


@pytest.mark.parametrize(("end", "hit"), [(2.0, True), (0.2, True), (1.3, False), (0.7, False)])
def test_length_that_drifts_while_the_reward_rises(end: float, hit: bool) -> None:
    def length(i: int) -> float:
        return 20.0 * (1 + (end - 1) * i / 39)

    measured = measured_in(rows(up, up, length))
    assert ever(measured, "drift/longer") == hit
    assert measured[-1]["drift/length"] == pytest.approx((end - 1) * 35 / 39, abs=0.06)
    assert not ever(measured_in(rows(still, still, length)), "drift/longer")


def test_the_verdict_is_the_check_where_the_reward_has_terms() -> None:
    """The share of correct responses stays, as where an environment gives points and seldom calls a response correct."""
    history = rows(up, still)
    for i, row in enumerate(history):
        row["term/verdict"] = up(i)
    assert not ever(measured_in(history), "drift/hacking")


def test_an_environment_that_never_says_correct_is_no_check() -> None:
    history = rows(up, still)
    for row in history:
        row["correct/mean"] = 0.0
    assert not ever(measured_in(history), "drift/hacking")


def test_held_out_success_that_falls_is_found() -> None:
    def run(last: float) -> list[Row]:
        history = rows(up, up)
        before = {"iteration": 0.0, "eval/a/pass@1": 0.5, "eval/a/pass@1/T=1": 0.9, "eval/other/pass@1": 0.9}
        history[19] |= {"eval/a/pass@1": last, "eval/other/pass@1": 0.0}  # not in training here
        return [before, *history]

    measured = measured_in(run(0.4))
    assert measured[0] == {}
    assert measured[-1]["drift/held_out"] == pytest.approx(-0.1)
    assert ever(measured, "drift/hacking")
    assert not ever(measured_in(run(0.48)), "drift/hacking")  # within the noise of an evaluation
    assert measured[15]["drift/held_out"] == 0.0


def test_nothing_is_said_before_two_windows_are_full() -> None:
    measured = measured_in(rows(up, still))
    assert [bool(row) for row in measured] == [i + 1 >= 2 * WINDOW for i in range(40)]
    assert all(lookup(key) for row in measured for key in row)


def test_a_stage_is_compared_with_its_own_start() -> None:
    first = [row | {"stage/index": 0.0} for row in rows(up, up)]
    first[-1]["eval/a/pass@1"] = 0.8  # before the boundary: where the next stage starts
    second = [row | {"stage/index": 1.0} for row in rows(still, still)]
    second[-1]["eval/a/pass@1"] = 0.7
    measured = measured_in([*first, *second])
    assert [bool(row) for row in measured[40:]] == [i + 1 >= 2 * WINDOW for i in range(40)]
    assert measured[39]["drift/reward"] > 0.3
    assert abs(measured[-1]["drift/reward"]) < 0.03
    assert measured[-1]["drift/held_out"] == pytest.approx(-0.1)


def test_the_error_is_that_of_a_difference_of_two_means() -> None:
    """sqrt(2 / WINDOW) standard deviations, from the neighbours of a long series without a trend."""
    series, rng = _Series(), np.random.default_rng(0)
    for value in rng.normal(3.0, 0.5, 20_000):
        series.add(float(value))
    assert series.error == pytest.approx(0.5 * (2 / WINDOW) ** 0.5, rel=0.02)


# --- state --------------------------------------------------------------------------------------------------------------


def observed_by(monitor: RewardHackingMonitor, alarms: Alarms, history: list[Row]) -> list[Any]:
    out = []
    for row in history:
        more = monitor.look(row)
        out.append((more, alarms.look(row | more)))
    return out


@pytest.mark.parametrize("at", [1, WINDOW, 12, 25, 39])
def test_a_resumed_run_sees_and_says_the_same(at: int) -> None:
    history = [{"iteration": 0.0, "eval/a/pass@1": 0.5}, *rows(up, still, lambda i: 20.0 + i)]
    history[20]["eval/a/pass@1"] = 0.3
    undisturbed = observed_by(RewardHackingMonitor(), Alarms("none"), history)
    assert sum(len(sentences) for _, sentences in undisturbed) == 2  # gamed, longer: once each
    monitor, alarms = RewardHackingMonitor(), Alarms("none")
    before = observed_by(monitor, alarms, history[:at])
    state = json.loads(json.dumps([monitor.state_dict(), alarms.state_dict()]))
    monitor, alarms = RewardHackingMonitor(), Alarms("none")
    monitor.load_state_dict(state[0])
    alarms.load_state_dict(state[1])
    assert before + observed_by(monitor, alarms, history[at:]) == undisturbed
