"""What a run's learner may compute with."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import config_data

from orchestration.cluster.placement import learner_threads
from orchestration.config.run_config import validate


@pytest.mark.parametrize(
    ("learner", "generators", "threads"),
    [
        ({}, {}, 2),  # one CPU each
        ({"cpus": 0.6}, {"cpus": 0.6, "count": 2}, 1),
        ({"cpus": 1, "ranks": 2}, {"cpus": 3, "count": 2}, 4),
        ({"cpus": 0.3}, {"cpus": 0.3}, 1),
        ({"threads": 7}, {}, 7),
        ({"gpus": 1}, {"gpus": 1}, None),
    ],
)
def test_a_rank_has_the_threads_that_generators_leave_idle(
    learner: dict[str, Any], generators: dict[str, Any], threads: int | None
) -> None:
    assert learner_threads(validate(config_data(learner=learner, generators=generators))) == threads
