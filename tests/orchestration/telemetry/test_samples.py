"""The samples that are kept: a few words each, or all that is needed to compute their log-probs again."""

import json

from support.builders import make_trajectory

from orchestration.telemetry.rollout_metrics import samples


def test_samples_hold_tokens_only_where_they_are_asked_for() -> None:
    trajectories = [make_trajectory([(3, 2), (1, 4)], index=i, seed=i, version=5) for i in range(8)]
    plain = samples(2, trajectories, 4)
    assert [set(row) for row in plain] == [
        {"iteration", "env", "prompt", "response", "reward", "correct", "status"}
    ] * 4
    full = samples(2, trajectories, 4, tokens=True)
    assert [row["index"] for row in full] == [0, 2, 4, 6]
    assert all(row["versions"] == [5, 5] for row in full)
    for row, trajectory in zip(full, trajectories[::2], strict=True):
        ids = [token for turn in row["turns"] for token in (*turn["context"], *turn["response"])]
        assert tuple(ids) == trajectory.token_ids
        assert [tuple(turn["logprobs"]) for turn in row["turns"]] == [turn.logprobs for turn in trajectory.turns]
    assert json.loads(json.dumps(full)) == full
