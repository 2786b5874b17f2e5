"""The section `diversity` and its control: what is refused, what moves the coefficient, and that its state is whole."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from support.builders import solved_group
from support.configs import message

from learner.advantages import ADVANTAGES
from learner.batching import trajectory_advantages
from learner.diversity.control import DiversityControl
from learner.diversity.rewards import diverse_rewards
from learner.diversity.settings import DiversitySettings

ONE, TWO, FOUR = (
    solved_group(["a", "a", "a", "a"]),
    solved_group(["a", "b", "a", "b"]),
    solved_group(["a", "b", "c", "d"]),
)
STEP = {"kind": "additive", "step": 0.1, "start": 0.5}


def control(**section: Any) -> DiversityControl:
    return DiversityControl(DiversitySettings.model_validate(section))


def test_the_defaults() -> None:
    plain = DiversitySettings.model_validate({})
    assert (plain.controller.kind, plain.start_responses) == ("fixed", 0)
    assert DiversityControl(plain).coefficient == 0.8
    held = DiversitySettings.model_validate({"target": {"fraction": 0.9}})
    assert held.controller.model_dump()["step"] == 0.02
    assert (held.controller.kind, held.start_responses) == ("additive", 1024)
    assert DiversitySettings.model_validate({"target": {"solutions": 3.0}}).start_responses == 0
    assert control(controller={"kind": "fixed", "value": 0.3}).coefficient == 0.3


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"controller": {"kind": "fixed", "value": 1.0}}, "can move the coefficient to 1: keep it from 0 to under 1"),
        ({"controller": {"kind": "fixed", "value": -0.5}}, "a fixed coefficient of -0.5 is negative"),
        ({"controller": {"kind": "additive", "high": 2.0}}, "can move the coefficient to 2: keep it"),
        ({"controller": {"kind": "isentropic"}}, "unknown diversity controller 'isentropic'"),
        ({"controller": {"kind": "band"}}, "unknown diversity controller 'band'"),
        ({"controller": {}}, "the diversity controller needs a kind"),
        ({"controller": {"kind": "pi", "low": 0.9, "high": 0.5}}, "low (0.9) is above high (0.5)"),
        ({"target": {"fraction": 0.9, "solutions": 3.0}}, "both set the target: give one"),
        ({"target": {"solutions": 0.5}}, "greater than or equal to 1"),
        ({"coefficient": 0.8}, "coefficient"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(section: dict[str, Any], words: str) -> None:
    assert words in message(diversity=section)
    with pytest.raises(ValidationError):
        DiversitySettings.model_validate(section)


def test_a_group_in_which_nothing_can_be_more_common_is_refused() -> None:
    assert "batch.responses is 2, give 3 or more" in message(batch={"responses": 2}, diversity={})


def test_the_coefficient_rises_below_the_target_and_falls_above_it() -> None:
    c = control(controller=STEP, target={"solutions": 2.0})
    first = c.observe([ONE], trained=True)
    assert first == {
        "diversity/coefficient": pytest.approx(0.6),
        "diversity/solutions": 1.0,
        "diversity/controlled": pytest.approx(1.0),
        "diversity/target": 2.0,
        "diversity/shared": 1.0,
        "diversity/saturated": 0.0,
    }
    above = control(controller=STEP, target={"solutions": 2.0})
    assert above.observe([FOUR], trained=True)["diversity/coefficient"] == pytest.approx(0.4)
    last = [c.observe([ONE], trained=True) for _ in range(9)][-1]
    assert (last["diversity/coefficient"], last["diversity/saturated"]) == (0.95, 1.0)


def test_the_start_is_the_first_batch_or_what_was_measured_before_it() -> None:
    c = control(controller=STEP, target={"fraction": 0.5})
    assert c.observe([TWO], trained=True)["diversity/target"] == pytest.approx(1.5)
    c = control(controller=STEP, target={"fraction": 0.5})
    c.set_start([FOUR])
    assert c.observe([TWO], trained=True)["diversity/target"] == pytest.approx(3.0)  # of 6 pairs, none alike


def test_nothing_moves_without_two_correct_responses_or_without_updates() -> None:
    c = control(controller=STEP)
    metrics = c.observe([solved_group(["a", ""])], trained=True)
    assert metrics == {"diversity/coefficient": 0.5, "diversity/saturated": 0.0}  # and there is no start yet
    c.set_start([FOUR])
    assert c.observe([ONE], trained=False)["diversity/coefficient"] == 0.5
    assert c.observe([ONE], trained=True)["diversity/coefficient"] == 0.6


def test_what_is_observed_is_a_running_mean_of_the_collision_probability() -> None:
    c = control(controller=STEP, target={"solutions": 2.0})
    seen = [c.observe([group], trained=True) for group in (ONE, FOUR, solved_group(["a", ""]), TWO)]
    assert [row.get("diversity/solutions") for row in seen] == pytest.approx([1.0, 6.0, None, 3.0])
    collisions = [1.0, (0.8 * 1.0 + 1 / 6) / 1.8, None, (0.64 * 1.0 + 0.8 / 6 + 1 / 3) / 2.44]
    assert [row.get("diversity/controlled") for row in seen] == pytest.approx([c and 1 / c for c in collisions])
    assert [row["diversity/coefficient"] for row in seen] == pytest.approx([0.6, 0.7, 0.7, 0.6])


def test_rewards_are_changed_at_the_present_coefficient() -> None:
    group = solved_group(["a", "a", "b", ""])
    for value in (0.2, 0.8):
        (new,) = control(controller={"kind": "fixed", "value": value}).apply([group])
        factor = np.array([1 - value / 2, 1 - value / 2, 1.0])
        expected = [*(factor / factor.mean()), 0.0]
        assert [t.verdict.reward for t in new.trajectories] == pytest.approx(expected)
    assert control().apply([ONE]) == [ONE]


@pytest.mark.parametrize("kind", ["additive", "doubling", "pi", "proportional"])
def test_a_restored_control_goes_on_exactly(kind: str) -> None:
    more: dict[str, Any] = {"gain": 0.5} if kind == "proportional" else {}
    section = {"controller": {"kind": kind, **more}, "target": {"fraction": 0.9}}
    whole, batches = control(**section), [[FOUR], [TWO], [ONE, TWO], [TWO, FOUR]]
    for batch in batches[:2]:
        whole.observe(batch, trained=True)
    restored = control(**section)
    restored.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for batch in batches[2:]:
        assert restored.observe(batch, trained=True) == whole.observe(batch, trained=True)
    assert restored.state_dict() == whole.state_dict()


def test_a_stage_keeps_resets_or_anchors_anew() -> None:
    def moved() -> DiversityControl:
        c = control(controller=STEP, target={"fraction": 1.0})
        c.set_start([FOUR])
        c.observe([ONE], trained=True)
        return c

    kept, reset, anchored = moved(), moved(), moved()
    kept.begin_stage("keep")
    reset.begin_stage("reset")
    anchored.begin_stage("reanchor")
    assert [c.coefficient for c in (kept, reset, anchored)] == pytest.approx([0.6, 0.5, 0.6])
    assert kept.loop.target.start == 6.0
    assert math.isnan(reset.loop.target.start) and math.isnan(anchored.loop.target.start)


def tabular(section: dict[str, Any] | None, advantage: str) -> tuple[float, float, list[float]]:
    """Trains a policy of twelve answers, six of them correct, for each of eight prompts.

    Returns the effective number of solutions and the share correct, means over the last 100 of 300 iterations, and the
    coefficient of each of these.
    """
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(8, 12))
    control_ = None if section is None else control(**section)
    numbers, solved, coefficients = [], [], []
    for _ in range(300):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        right = p[:, :6] / p[:, :6].sum(1, keepdims=True)
        numbers.append(1 / float((right**2).sum(1).mean()))
        solved.append(float(p[:, :6].sum(1).mean()))
        drawn = [rng.choice(12, 16, p=row) for row in p]
        groups = [solved_group([str(a) if a < 6 else "" for a in actions]) for actions in drawn]
        if control_ is not None:
            control_.observe(groups, trained=True)
            groups = control_.apply(groups)
            coefficients.append(control_.coefficient)
        values = trajectory_advantages(groups, ADVANTAGES[advantage]).reshape(8, 16)
        for z, row, actions, a in zip(logits, p, drawn, values, strict=True):
            z += 0.5 * (np.bincount(actions, a, 12) - a.sum() * row) / 16
    return float(np.mean(numbers[-100:])), float(np.mean(solved[-100:])), coefficients[-100:]


@pytest.mark.parametrize(
    ("advantage", "controller", "within"), [("rloo", {"kind": "pi"}, 0.05), ("grpo", {"kind": "additive"}, 0.2)]
)
def test_it_holds_the_number_of_solutions_of_a_tabular_policy(
    advantage: str, controller: dict[str, Any], within: float
) -> None:
    if advantage == "grpo":
        controller = controller | {"step": 0.02}
    alone, solved_alone, _ = tabular(None, advantage)
    held, solved, coefficients = tabular({"controller": controller, "target": {"solutions": 2.5}}, advantage)
    assert alone < 2.0 and solved_alone > 0.9
    assert held == pytest.approx(2.5, rel=within) and solved > 0.9
    assert max(coefficients) < 0.95


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_the_size_of_the_coefficient_matters_in_a_group_that_is_all_correct_but_to_grpo(advantage: str) -> None:
    """GRPO divides by the std, and where all are correct diversity alone makes it: docs/entropy.md tells that."""
    group = solved_group(["a", "a", "a", "b"])
    small, large = (
        trajectory_advantages(control(controller={"kind": "fixed", "value": v}).apply([group]), ADVANTAGES[advantage])
        for v in (0.1, 0.8)
    )
    assert (small == pytest.approx(large, rel=1e-3)) == (advantage == "grpo")


def test_diverse_rewards_without_a_coefficient_are_the_rewards() -> None:
    rewards = np.array([1.0, 2.0, 3.0])
    assert diverse_rewards(rewards, rewards, ["a", "a", "b"], 0.0) == pytest.approx(rewards)
