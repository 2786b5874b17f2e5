"""The learning rate rises over the warm-up and falls to its floor; values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from learner.schedule import learning_rate

SETTINGS: dict[str, Any] = {"peak": 2.0, "warmup": 4, "total": 12, "floor": 0.25}


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_a_warm_up_reaches_the_peak_in_equal_steps(shape: Any) -> None:
    assert [learning_rate(k, shape=shape, **SETTINGS) for k in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_a_constant_rate_stays_and_the_others_end_at_the_floor() -> None:
    assert {learning_rate(k, shape="constant", **SETTINGS) for k in range(4, 30)} == {2.0}
    assert [learning_rate(k, shape="linear", **SETTINGS) for k in (6, 8, 10, 12, 30)] == [1.625, 1.25, 0.875, 0.5, 0.5]
    cosine = [learning_rate(k, shape="cosine", **SETTINGS) for k in (6, 8, 10, 12, 30)]
    quarter = 0.75 * math.cos(math.pi / 4)  # of the way the rate is this far from its middle
    assert cosine == pytest.approx([1.25 + quarter, 1.25, 1.25 - quarter, 0.5, 0.5])


def test_without_steps_after_the_warm_up_the_rate_ends_one_step_later() -> None:
    assert learning_rate(4, shape="linear", **{**SETTINGS, "total": 4}) == 2.0
    assert learning_rate(5, shape="linear", **{**SETTINGS, "total": 4}) == 0.5
