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

from envs.types import Group
from learner.advantages import grpo
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
    assert (held.controller.kind, held.start_responses) == ("additive", 256)
    assert DiversitySettings.model_validate({"target": {"solutions": 3.0}}).start_responses == 0
    assert control(controller={"kind": "fixed", "value": 0.3}).coefficient == 0.3


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"controller": {"kind": "fixed", "value": 1.0}}, "can move the coefficient to 1: keep it from 0 to under 1"),
        ({"controller": {"kind": "fixed", "value": -0.5}}, "a fixed coefficient of -0.5 is negative"),
        ({"controller": {"kind": "additive", "high": 2.0}}, "can move the coefficient to 2: keep it"),
        ({"controller": {"kind": "isentropic"}}, "unknown diversity controller 'isentropic'"),
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
        "diversity/target": 2.0,
        "diversity/shared": 1.0,
        "diversity/saturated": 0.0,
    }
    assert c.observe([FOUR], trained=True)["diversity/coefficient"] == pytest.approx(0.5)
    for _ in range(9):
        last = c.observe([ONE], trained=True)
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


def test_it_holds_the_number_of_solutions_of_a_tabular_policy() -> None:
    """Six correct answers of twelve, one policy a prompt: GRPO ends at one of them, with diversity several stay."""

    def end(section: dict[str, Any] | None) -> tuple[float, float, float]:
        rng = np.random.default_rng(3)
        logits = rng.normal(size=(8, 12))
        c = None if section is None else control(**section)
        for _ in range(300):
            drawn: list[tuple[np.ndarray, Group]] = []
            for z in logits:
                p = np.exp(z - z.max())
                actions = rng.choice(12, 16, p=p / p.sum())
                drawn.append((actions, solved_group([str(a) if a < 6 else "" for a in actions])))
            groups = [g for _, g in drawn]
            if c is not None:
                c.observe(groups, trained=True)
                groups = c.apply(groups)
            for z, (actions, _), group in zip(logits, drawn, groups, strict=True):
                p = np.exp(z - z.max())
                advantage = grpo(np.array([t.verdict.reward for t in group.trajectories]))
                gradient = np.bincount(actions, advantage, 12) - advantage.sum() * p / p.sum()
                z += 0.5 * gradient / 16
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        right = p[:, :6] / p[:, :6].sum(1, keepdims=True)
        return 1 / float((right**2).sum(1).mean()), float(p[:, :6].sum(1).mean()), 0.0 if c is None else c.coefficient

    alone, solved_alone, _ = end(None)
    held, solved, coefficient = end({"target": {"solutions": 2.5}})
    assert alone < 1.6 and solved_alone > 0.9
    assert held == pytest.approx(2.5, rel=0.15) and solved > 0.9
    assert 0 < coefficient < 0.95


def test_diverse_rewards_without_a_coefficient_are_the_rewards() -> None:
    rewards = np.array([1.0, 2.0, 3.0])
    assert diverse_rewards(rewards, rewards, ["a", "a", "b"], 0.0) == pytest.approx(rewards)
