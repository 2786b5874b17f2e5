"""Where a batch plan shares a prompt among its responses: what stands in the row, and from how much saved on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.builders import alike, make_trajectory

from envs.types import Trajectory
from learner.batching import build_batches
from learner.settings import BatchPlan
from learner.types import MicroBatch


def micro_batches(responses: list[Trajectory], sharing: bool = True, **least: Any) -> list[MicroBatch]:
    plan = BatchPlan(packing=True, prefix_sharing=sharing)
    advantages = np.zeros(len(responses))
    batches = build_batches(responses, advantages, plan=plan, aggregation="token", temperature=1.0, **least)
    return list(batches[0].updates[0])


def test_a_shared_prompt_stands_once_and_its_last_token_in_every_branch() -> None:
    shapes = [[(4, 2)], [(4, 3)], [(4, 1), (2, 2)], [(3, 2)]]
    responses = alike([make_trajectory(turns, index=0, seed=i) for i, turns in enumerate(shapes)], 3)
    (micro,) = micro_batches(responses)
    # the longest first, with its whole prompt
    assert micro.positions.tolist() == [[*range(9), *range(3, 7), *range(3, 6), *range(5)]]
    assert list(dict.fromkeys(micro.trajectory.tolist())) == [2, 1, 0, 3]
    row, branch = micro.tokens[0].tolist(), responses[1].token_ids
    assert row[9:13] == list(branch[3:])
    assert micro.predict.tolist() == [3, 6, 7, 9, 10, 11, 13, 14, 18, 19]
    assert micro.targets.tolist() == [row[i + 1] for i in micro.predict]
    (apart,) = micro_batches(responses, sharing=False)
    assert apart.tokens.size == 9 + 7 + 6 + 5


@pytest.mark.parametrize("prompt", [1, 2, 9])
def test_prompts_are_shared_where_that_saves_enough(prompt: int) -> None:
    responses = alike([make_trajectory([(prompt, 3)], index=0, seed=i) for i in range(4)])
    saves = 3 * (prompt - 1) / (4 * (prompt + 3))

    def slots(least: float) -> int:
        return sum(m.tokens.size for m in micro_batches(responses, least_saved=least))

    assert slots(saves - 1e-9) == slots(0.0) == 4 * (prompt + 3) - 3 * (prompt - 1)
    assert slots(saves + 1e-9) == 4 * (prompt + 3)
