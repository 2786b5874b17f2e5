"""An iteration's row: every part of it is there, and under which keys."""

from __future__ import annotations

import pytest
from support.builders import make_group

from orchestration.telemetry.iteration_row import Iteration, iteration_row


def test_a_row_has_what_every_stage_returned() -> None:
    groups = [make_group([0.0, 1.0]), make_group([1.0, 1.0], index=1)]  # two response tokens each
    row = iteration_row(
        Iteration(
            number=3,
            policy_version=4,
            groups=groups,
            update={"loss": 0.5},
            logprob_gap={"sync/logprob_gap_max": 0.1},
            sampling={"dynamic/rounds": 2.0},
            curriculum={"stage/index": 1.0},
            seconds={"generate": 1.0, "train": 2.0},
            total_seconds=4.0,
            sent_bytes=100,
            ended_at=9.0,
        )
    )
    expected = {
        "loss": 0.5, "sync/logprob_gap_max": 0.1, "dynamic/rounds": 2.0, "stage/index": 1.0,
        "time/generate": 1.0, "time/train": 2.0, "time/iteration": 4.0, "time/unix": 9.0,
        "iteration": 3.0, "policy_version": 4.0, "sync/bytes": 100.0, "tokens/generated": 8.0, "tokens/per_second": 2.0,
        "reward/mean": 0.75, "groups/no_signal": 1.0,
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert all(isinstance(value, float) for value in row.values())
    assert row["reward/std"] == pytest.approx(0.1875**0.5)
