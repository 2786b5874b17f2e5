"""What actors are built from: the schedule that a pair of fractions stands for."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import config_data, stages_data

from orchestration.cluster.actor_settings import Start, learner_stage, rank_settings
from orchestration.config.run_config import validate

PAIR: dict[str, Any] = {"target": {"fraction": [1.0, 0.5]}, "environments": {"countdown": {"fraction": [0.8, 0.2]}}}


def test_a_pair_of_fractions_lasts_as_long_as_the_run() -> None:
    data = config_data()
    data["run"]["iterations"] = 40
    entropy = rank_settings(validate(data | {"entropy": PAIR}), Start("m")).entropy
    assert (entropy.target.fraction, entropy.target.schedule) == (1.0, ((1, 1.0), (40, 0.5)))
    assert entropy.environments["countdown"].schedule == ((1, 1.0), (40, 0.25))


@pytest.mark.parametrize(("controller", "lengths"), [("keep", (8, 8)), ("reset", (3, 5)), ("reanchor", (3, 5))])
def test_with_stages_it_lasts_as_long_as_the_target_counts_on(controller: str, lengths: tuple[int, int]) -> None:
    config = validate(stages_data(controller=controller) | {"entropy": {"target": PAIR["target"]}})
    first = rank_settings(config, Start("m")).entropy.target
    again = rank_settings(config, Start("m", stage=1)).entropy.target
    assert tuple(target.schedule[-1][0] for target in (first, again)) == lengths
    assert learner_stage(config, 1).target == again
