"""The learning rate rises over the warm-up and falls to its floor; values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from learner.schedule import learning_rate
from learner.settings import ScheduleSettings

STEPS = 12


def rates(shape: Any, steps: Sequence[int], total: int = STEPS) -> list[float]:
    settings = ScheduleSettings(lr=2.0, schedule=shape, warmup_steps=4, lr_floor=0.25)
    return [learning_rate(step, settings, total) for step in steps]


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_a_warm_up_reaches_the_peak_in_equal_steps(shape: Any) -> None:
    assert rates(shape, range(5)) == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_a_constant_rate_stays_and_the_others_end_at_the_floor() -> None:
    assert set(rates("constant", range(4, 30))) == {2.0}
    assert rates("linear", (6, 8, 10, 12, 30)) == [1.625, 1.25, 0.875, 0.5, 0.5]
    cosine = rates("cosine", (6, 8, 10, 12, 30))
    quarter = 0.75 * math.cos(math.pi / 4)  # of the way the rate is this far from its middle
    assert cosine == pytest.approx([1.25 + quarter, 1.25, 1.25 - quarter, 0.5, 0.5])


def test_without_steps_after_the_warm_up_the_rate_ends_one_step_later() -> None:
    assert rates("linear", (4, 5), total=4) == [2.0, 0.5]
