"""A learner that goes over to another stage: what changes, what is kept, and that a resumed one is the same to the bit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import make_trajectory
from support.ranks import Meeting, learner_settings, simulated

from learner.batching import build_batches
from learner.entropy.target import TargetSettings
from learner.learner import Learner
from learner.rank_settings import LearnerStage, RankPlace, RankSettings
from learner.settings import BatchPlan, KLSettings, ObjectiveSettings
from learner.types import RankBatch

PLACEMENT = RankPlace(0, 1, "", 0, False, 60.0)
TARGET = TargetSettings(fraction=0.7)
CONTROLLERS: list[dict[str, Any]] = [
    {"kind": "isentropic"},
    {"kind": "doubling", "start": 0.02, "allow_negative": False},
    {"kind": "pi", "start": 0.02},
]


def batch(iteration: int, env: str) -> RankBatch:
    made = [make_trajectory([(3, 4)], reward=i % 2, index=i, env=env, seed=iteration) for i in range(8)]
    advantages = np.array([((7 * i + iteration) % 5 - 2) / 2 for i in range(8)])
    return build_batches(
        made,
        advantages,
        plan=BatchPlan(updates=2, epochs=1, ranks=1, micro_batch_tokens=10_000, packing=False),
        aggregation="token",
        temperature=1.0,
    )[0]


def settings(controller: dict[str, Any]) -> RankSettings:
    made = learner_settings(ObjectiveSettings(), {"kind": "repo_r"}, controller)
    return replace(made, learner=made.learner.model_copy(update={"lr": 4.0}))


def stage(**more: Any) -> LearnerStage:
    return LearnerStage(**{"objective": ObjectiveSettings(clip_high=0.4), "lr": 2.0, "target": TARGET, **more})


def trained(controller: dict[str, Any]) -> Learner:
    """Returns a learner after two iterations on the first environment."""
    learner = Learner(settings(controller), PLACEMENT)
    for i in range(2):
        learner.train(batch(i, "a"))
    return learner


@pytest.fixture(autouse=True)
def _simulated() -> Any:
    with simulated(Meeting(1)):
        yield


def state(learner: Learner) -> dict[str, Any]:
    (states,) = learner.steering.state_dict().values()
    return states


def test_what_a_stage_sets_is_in_its_first_iteration() -> None:
    learner = trained(CONTROLLERS[0])
    learner.begin_stage(stage(target=TargetSettings(nats=0.25)))
    row = learner.train(batch(2, "b"))
    assert (row["lr"], row["entropy/target"]) == (2.0, 0.25)
    assert learner.settings.objective.clip_high == 0.4


@pytest.mark.parametrize("controller", CONTROLLERS, ids=lambda c: c["kind"])
def test_keep_goes_on_reset_starts_anew_and_reanchor_measures_the_start_again(controller: dict[str, Any]) -> None:
    before = state(trained(controller))
    unused = Learner(settings(controller), PLACEMENT)
    assert before["controller"] != state(unused)["controller"], "a controller that did not move shows nothing"
    assert before["target"]["iteration"] == 2

    states = {}
    for mode in ("keep", "reset", "reanchor"):
        learner = trained(controller)
        learner.begin_stage(stage(controller=mode))
        states[mode] = state(learner)
    assert states["keep"] == before
    assert repr(states["reset"]) == repr(state(unused))  # a start that is not measured yet is nan
    assert states["reanchor"]["controller"] == before["controller"]
    assert repr(states["reanchor"]["target"]) == repr(state(unused)["target"])


def test_reanchored_targets_are_fractions_of_the_new_environments_entropy() -> None:
    rows = {}
    for mode in ("keep", "reanchor"):
        learner = trained(CONTROLLERS[1])
        learner.begin_stage(stage(controller=mode))
        rows[mode] = learner.train(batch(2, "b"))
    assert rows["reanchor"]["entropy/target"] == pytest.approx(0.7 * rows["reanchor"]["entropy/exact"])
    assert rows["keep"]["entropy/target"] != pytest.approx(rows["reanchor"]["entropy/target"])


def test_the_difference_between_two_environments_is_nobodys_update() -> None:
    learner = trained(CONTROLLERS[0])
    pairs = learner.ledger.state["n"]
    learner.begin_stage(stage())
    assert "entropy/realised_dh" not in learner.train(batch(2, "b"))
    assert learner.ledger.state["n"] == pairs
    assert math.isfinite(learner.train(batch(3, "b"))["entropy/realised_dh"])


@pytest.mark.parametrize("optimiser", ["keep", "reset"])
def test_the_optimiser_is_reset_where_that_was_asked_for(optimiser: str) -> None:
    learner = trained(CONTROLLERS[0])
    learner.begin_stage(stage(optimiser=optimiser))
    assert getattr(learner.engine, "resets") == (optimiser == "reset")  # noqa: B009 - of the fake


def test_a_reference_that_a_later_stage_needs_is_held_from_the_start() -> None:
    learner = Learner(replace(settings(CONTROLLERS[0]), hold_reference=True), PLACEMENT)
    assert "kl/reference" not in learner.train(batch(0, "a"))
    learner.begin_stage(stage(objective=ObjectiveSettings(kl=KLSettings(coefficient=0.1))))
    assert learner.train(batch(1, "b"))["kl/reference"] > 0


@pytest.mark.parametrize("mode", ["keep", "reset", "reanchor"])
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_stopped_at_or_after_a_boundary_and_resumed_is_the_same_to_the_bit(mode: Any, stop: int) -> None:
    """stop: iterations done; the boundary is after two. At it, the checkpoint is of the stage that ended."""
    first, second = settings(CONTROLLERS[0]), stage(controller=mode, target=TargetSettings(fraction=0.9))

    def go_on(learner: Learner, done: int, until: int) -> list[dict[str, float]]:
        rows = []
        for i in range(done, until):
            if i == 2:
                learner.begin_stage(second)
            rows.append(learner.train(batch(i, "a" if i < 2 else "b")))
        return rows

    undisturbed = Learner(first, PLACEMENT)
    expected = go_on(undisturbed, 0, 5)
    stopped = Learner(first, PLACEMENT)
    go_on(stopped, 0, stop)
    saved, weights = json.loads(json.dumps(stopped.state_dict())), dict(stopped.policy.weights())
    at = first
    if stop > 2:
        learner = first.learner.model_copy(update={"lr": second.lr})
        entropy = first.entropy.model_copy(update={"target": second.target})
        at = replace(first, objective=second.objective, learner=learner, entropy=entropy)
    resumed = Learner(at, PLACEMENT)
    resumed.load_state_dict(saved)
    for name, parameter in resumed.policy.weights():
        parameter.data.copy_(weights[name])
    assert repr(go_on(resumed, stop, 5)) == repr(expected[stop:])
    assert all(torch.equal(p, dict(undisturbed.policy.weights())[name]) for name, p in resumed.policy.weights())
    assert repr(resumed.state_dict()) == repr(undisturbed.state_dict())
