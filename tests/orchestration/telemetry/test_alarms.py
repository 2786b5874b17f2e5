"""Alarms speak once, after enough iterations, and not without cause."""

from __future__ import annotations

from typing import Any

import pytest

from orchestration.telemetry.alarms import Alarms
from orchestration.thresholds import PATIENCE


def row(**values: float) -> dict[str, float]:
    keys = {"error": 0.2, "saturated": 0.0, "affected": 1.0, "coefficient": 0.5}
    return {f"entropy/{k}": v for k, v in {**keys, **values}.items()}


def alarms_of(method: str, rows: list[dict[str, float]]) -> list[list[str]]:
    alarms = Alarms(method)
    return [alarms.look(r) for r in rows]


@pytest.mark.parametrize(
    ("values", "method", "parts"),
    [
        (
            {"saturated": 1.0},
            "repo_r",
            ["the coefficient of repo_r is saturated", "bound 0.5", "20% under", "controller.high"],
        ),
        (
            {"saturated": 1.0, "error": -0.3, "coefficient": 0.04},
            "repo_r",
            ["30% over", "0.04", "allow a negative coefficient"],
        ),
        ({"affected": 0.002}, "adapo", ["adapo acts on too few tokens", "0.20% of them", "20% under its target"]),
    ],
)
def test_an_alarm_is_one_sentence_said_once(values: dict[str, float], method: str, parts: list[str]) -> None:
    alarms = alarms_of(method, [row(**values)] * 30)
    assert [len(x) for x in alarms] == [0] * (PATIENCE - 1) + [1] + [0] * (30 - PATIENCE)
    assert all(part in alarms[PATIENCE - 1][0] for part in parts), alarms[PATIENCE - 1][0]


def test_a_saturated_coefficient_is_reported_once_even_if_it_recovers_meanwhile() -> None:
    bad = [row(saturated=1.0)] * PATIENCE
    assert sum(map(len, alarms_of("repo_r", [*bad, row(), *bad]))) == 1


GAMED = {"drift/hacking": 1.0, "drift/reward": 0.31, "drift/check": -0.02}


@pytest.mark.parametrize("method", ["none", "repo_r"])  # whether entropy is held or not
@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (GAMED, ["the reward may be gamed", "rose by 0.31 while", "verdict changed by -0.02, for 5 iterations"]),
        (GAMED | {"drift/held_out": -0.1}, ["verdict changed by -0.02 and held-out pass@1 by -0.1"]),
        ({"drift/longer": 1.0, "drift/length": 0.8, "drift/reward": 0.2}, ["80% longer", "rose by 0.2", "only longer"]),
        ({"drift/longer": 1.0, "drift/length": -0.6, "drift/reward": 0.2}, ["60% shorter", "only shorter"]),
    ],
)
def test_a_reward_that_is_gamed_is_said_once(values: dict[str, float], parts: list[str], method: str) -> None:
    fine = dict.fromkeys(values, 0.0)
    alarms = alarms_of(method, [fine] * 3 + [values] * 30)
    assert [len(x) for x in alarms] == [0] * (PATIENCE + 2) + [1] + [0] * (30 - PATIENCE)
    assert all(part in alarms[PATIENCE + 2][0] for part in parts), alarms[PATIENCE + 2][0]
    assert not any(alarms_of(method, ([values] * (PATIENCE - 1) + [fine]) * 4))


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({}, "repo_r"),
        ({"saturated": 1.0, "error": 0.03}, "repo_r"),  # near enough
        ({"affected": 0.002, "error": 0.03}, "adapo"),
        ({"saturated": 1.0, "affected": 0.002, "error": 0.08}, "adapo"),  # as far as a working controller may be off
        (
            {"affected": 0.002, "tabular_dh": 0.01, "tabular_dh_free": -0.01},
            "adapo",
        ),  # few, and yet they move entropy
        ({"affected": 0.002}, "kl_cov"),  # few tokens by design
        ({"saturated": 1.0, "released": 1.0}, "repo_r"),
        ({"saturated": 1.0, "error": float("nan")}, "repo_r"),
        ({"affected": 0.0}, "none"),
    ],
)
def test_without_cause_nothing_is_said(values: dict[str, float], method: str) -> None:
    assert not any(alarms_of(method, [row(**values)] * 30))


def test_one_good_iteration_starts_the_count_anew() -> None:
    bad: list[Any] = [row(saturated=1.0)] * (PATIENCE - 1)
    assert not any(alarms_of("repo_r", [*bad, row(), *bad]))


def test_the_state_of_an_older_checkpoint_is_read_under_the_present_names() -> None:
    alarms = Alarms("adapo")
    alarms.load_state_dict({"runs": {"spent": -(10**9), "idle": PATIENCE - 1, "hacking": 0, "longer": 2}})
    assert alarms.state_dict() == {
        "runs": {"saturated": -(10**9), "too_few_tokens": PATIENCE - 1, "hacking": 0, "longer": 2}
    }
    sentences = alarms.look(row(saturated=1.0, affected=0.002))
    assert len(sentences) == 1
    assert "too few tokens" in sentences[0]
