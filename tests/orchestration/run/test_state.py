"""state.json: what is written is read again, and what earlier versions wrote still is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.builders import make_group, stages_data

from envs import catalog
from orchestration.config.run_config import validate
from orchestration.run.state import RunState
from orchestration.sampling.curriculum import Curriculum, stages_of

# As a run of the first version with stages wrote it, without the sizes of its files.
EARLIER: dict[str, Any] = {
    "format": 1,
    "iteration": 4,
    "policy_version": 4,
    "curriculum": {
        "stage": 1,
        "iteration": 1,
        "rewards": [0.25],
        "given": [[12, 0], [1, 3]],
        "again": [2, 0],
        "tried": [[[3, 1.0, 2.0]], []],
    },
    "owes_evaluation": True,
    "learner": {"controller": {"coefficient": 0.1}},
}


def fresh(**second: Any) -> RunState:
    data = stages_data(advance={"reward": 0.9, "window": 1}, **second)
    data["batch"] |= {"adaptive": {"revisit": 0.5}}
    data |= {"rewards": {"verdict": 2.0}, "evaluation": {"prompts": 2, "samples": 2, "ks": [1], "start": True}}
    config = validate(data)
    environments = [catalog.load(e.name, e.params, seed=0) for e in config.all_environments]
    return RunState.fresh(config, Curriculum(environments, stages_of(config), 0, config.batch.adaptive))


def test_a_fresh_run_owes_the_evaluation_before_training() -> None:
    state = fresh()
    assert (state.iteration, state.policy_version, state.owes_evaluation) == (0, 0, True)
    assert state.rewards["verdict"] == 2.0


def test_what_is_saved_is_what_is_restored() -> None:
    state = fresh()
    state.curriculum.next(3)
    state.curriculum.observe([make_group([0.0, 1.0])])
    state.monitor.look({"reward/mean": 0.5, "correct/mean": 0.5, "response/length_mean": 9.0})
    state.alarms.look({"drift/hacking": 1.0})
    state.iteration, state.policy_version, state.owes_evaluation, state.learner = 1, 1, False, {"a": 1}
    saved = json.loads(json.dumps(state.state_dict()))
    keys = ["iteration", "policy_version", "curriculum", "owes_evaluation", "rewards", "drift", "alarms", "learner"]
    assert list(saved) == keys
    restored = fresh()
    assert restored.state_dict() != saved
    restored.load_state_dict(saved, Path())
    assert json.loads(json.dumps(restored.state_dict())) == saved


def test_a_state_of_an_earlier_version_is_restored() -> None:
    """An older state has no alarms, monitor and rewards."""
    state = fresh()
    state.load_state_dict(EARLIER, Path())
    assert (state.iteration, state.policy_version, state.owes_evaluation) == (4, 4, True)
    assert state.curriculum.state_dict() == EARLIER["curriculum"]
    assert state.learner == EARLIER["learner"]
    assert state.monitor.state_dict() == fresh().monitor.state_dict()
    assert state.rewards["verdict"] == 2.0, "the present configuration's"
