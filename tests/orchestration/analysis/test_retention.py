"""The retention matrix and its metrics, against numbers computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.builders import AFTER, BEFORE, staged_rows

from orchestration.analysis.retention import Retention, areas, boundaries, height, matrix, stage_metrics


def retention_of(k: int = 1, data: list[dict[str, float]] | None = None) -> Retention:
    made = matrix(staged_rows() if data is None else data, k)
    assert made is not None
    return made


def test_the_matrix_is_read_from_the_staged_rows() -> None:
    r = retention_of()
    assert (r.environments, r.trained) == (("a", "b", "c"), (("a",), ("b",), ("c",)))
    assert (r.before, list(r.after)) == (BEFORE, AFTER)
    assert retention_of(4).at(2, "a") == pytest.approx(0.66)
    assert matrix([{"iteration": 1.0, "reward/mean": 0.1}], 1) is None
    assert boundaries(staged_rows()) == [2.0, 4.0]


def test_transfer_and_forgetting_of_three_tasks() -> None:
    r = retention_of()
    assert r.average == pytest.approx((0.6 + 0.4 + 0.7) / 3)
    assert r.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.4 - 0.8)) / 2)
    assert r.forward_transfer == pytest.approx(((0.3 - 0.2) + (0.4 - 0.0)) / 2)
    assert r.forgetting == pytest.approx(((0.9 - 0.6) + (0.8 - 0.4)) / 2)
    assert math.isnan(r.backward("c"))
    assert math.isnan(r.forward("a"))
    assert math.isnan(r.forgotten("c"))


def test_forgetting_counts_from_the_best_and_backward_transfer_from_the_own_stage() -> None:
    data = staged_rows()
    data[4]["eval/a/pass@1"] = 0.95  # better after the second stage than after its own
    r = retention_of(1, data)
    assert r.forgotten("a") == pytest.approx(0.95 - 0.6)
    assert r.backward("a") == pytest.approx(0.6 - 0.9)
    data[6]["eval/a/pass@1"] = 0.97
    assert retention_of(1, data).forgotten("a") == pytest.approx(0.95 - 0.97), "the end itself is no peak to fall from"


def test_an_environment_that_comes_back_and_one_never_trained() -> None:
    data = staged_rows()
    data[3]["reward/a"] = 0.5  # the second stage trains a again
    for i in (0, 2, 4, 6):
        data[i]["eval/z/pass@1"] = 0.5
    r = retention_of(1, data)
    assert r.trained[1] == ("b", "a")
    assert r.backward("a") == pytest.approx(0.6 - 0.5)
    assert math.isnan(r.forward("a"))
    assert r.environments[-1] == "z"
    assert all(math.isnan(f("z")) for f in (r.backward, r.forward, r.forgotten))
    assert r.average == pytest.approx((0.6 + 0.4 + 0.7) / 3)


def test_the_last_evaluation_of_a_stage_is_the_one_that_counts() -> None:
    data = staged_rows()
    data[1] |= {"eval/a/pass@1": 0.4, "eval/b/pass@1": 0.4, "eval/c/pass@1": 0.4}
    assert list(retention_of(1, data).after) == AFTER


def test_without_the_evaluation_before_training_nothing_is_said_of_forward_transfer() -> None:
    r = retention_of(1, staged_rows()[1:])
    assert (r.before, math.isnan(r.forward_transfer)) == ({}, True)
    assert r.backward_transfer == pytest.approx(-0.35)


def test_a_single_stage_has_nothing_to_forget() -> None:
    r = retention_of(1, staged_rows()[:3])
    assert r.average == pytest.approx(0.9)
    assert all(math.isnan(v) for v in (r.backward_transfer, r.forward_transfer, r.forgetting))


def test_areas_are_mean_heights() -> None:
    assert height([(0, 0.0), (1, 1.0), (3, 1.0)]) == pytest.approx((0.5 + 2.0) / 3)
    assert height([(4, 0.7), (5, math.nan)]) == 0.7
    assert math.isnan(height([]))
    first, second, third = areas(staged_rows())
    assert (first.reward, second.reward, third.reward) == pytest.approx((0.4, 0.6, 0.2))
    # From the evaluation before the stage to the one after it, of the stage's own environment.
    assert first.evaluation == pytest.approx((0.1 + 0.9) / 2)
    assert second.evaluation == pytest.approx((0.3 + 0.8) / 2)
    assert third.evaluation == pytest.approx((0.4 + 0.7) / 2)


def test_a_stages_entropy_is_compared_with_its_own_start() -> None:
    """Uses the first 3 and the last 5 iterations of the stage, whatever another stage's entropy was."""
    begin = {"eval/a/pass@1": 0.0}
    heights = [[1.0, 2.0, 3.0, 9.0, 0.0, 1.0, 1.0, 1.0, 2.0], [8.0, 8.0, 8.0, 4.0, 4.0, 4.0, 4.0, 4.0], [0.0] * 6]
    data: list[dict[str, float]] = [{"iteration": 0.0, **begin}]
    for stage, values in enumerate(heights):
        for value in values:
            at = float(len(data))
            data.append(
                {
                    "iteration": at,
                    "stage/index": float(stage),
                    "reward/a": 0.0,
                    "reward/mean": 0.0,
                    "entropy/exact": value,
                }
            )
    assert [a.entropy_change for a in areas(data)] == pytest.approx(
        [1.0 / 2.0 - 1, 4.0 / 8.0 - 1, math.nan], nan_ok=True
    )
    assert math.isnan(areas([{k: v for k, v in row.items() if k != "entropy/exact"} for row in data])[0].entropy_change)


def test_the_metrics_of_a_run_with_stages() -> None:
    numbers: Any = stage_metrics(staged_rows(), 4)
    assert numbers["backward/pass@4"] == pytest.approx(1.1 * -0.35)
    assert numbers["forgetting/pass@1"] == pytest.approx(0.35)
    assert numbers["forward/pass@1"] == pytest.approx(0.25)
    assert numbers["area/reward/1"] == pytest.approx(0.6)
    assert set(numbers) == {
        *(f"{what}/pass@{k}" for what in ("retained", "backward", "forward", "forgetting") for k in (1, 4)),
        *(f"area/{what}/{s}" for what in ("reward", "eval") for s in range(3)),
        *(f"entropy_change/{s}" for s in range(3)),
        *(f"matrix/pass@{k}/{s}/{e}" for k in (1, 4) for s in ("start", 0, 1, 2) for e in "abc"),
    }
    assert (numbers["matrix/pass@1/start/b"], numbers["matrix/pass@1/1/b"]) == (
        retention_of(1).at(-1, "b"),
        retention_of(1).at(1, "b"),
    )
    assert stage_metrics([{"iteration": 1.0}], 4) == {}
