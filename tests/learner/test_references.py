"""Advantages, losses and the methods over a batch against the formulas of their papers (tests/support/references.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import references
from support.builders import make_trajectory, trajectories
from support.references import Response, Rules

from envs.types import Group, Trajectory
from learner.advantages import ADVANTAGES
from learner.batching import build_batches, trajectory_advantages
from learner.objective import CLIPPED, gradient_weight, token_loss, with_reference
from learner.settings import BatchPlan, ObjectiveSettings
from learner.types import LossData, Shaping

few = settings(max_examples=40)


# --- advantages -----------------------------------------------------------------------------------------------------------

RESPONSES = st.tuples(st.integers(-4, 4).map(lambda x: x / 2), st.integers(1, 9))
GROUPS = st.lists(st.lists(RESPONSES, min_size=2, max_size=5), min_size=1, max_size=4)
SINGLES = st.lists(st.lists(RESPONSES, min_size=1, max_size=1), min_size=1, max_size=8)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@few
@given(groups=GROUPS)
def test_every_advantage_is_that_of_its_paper(name: str, groups: list[list[tuple[float, int]]]) -> None:
    assert_advantages(name, groups)


@few
@given(groups=SINGLES)
def test_reinforce_pp_takes_one_response_a_prompt_as_its_paper_does(groups: list[list[tuple[float, int]]]) -> None:
    assert_advantages("reinforce_pp", groups)


def assert_advantages(name: str, groups: list[list[tuple[float, int]]]) -> None:
    made = []
    for g, responses in enumerate(groups):
        members = [make_trajectory([(1, n)], reward=r, index=g, seed=i) for i, (r, n) in enumerate(responses)]
        made.append(Group(members[0].prompt, tuple(members)))
    rewards, lengths = [[r for r, _ in g] for g in groups], [[n for _, n in g] for g in groups]
    expected = references.batch_advantages(name, rewards, lengths)
    assert trajectory_advantages(made, ADVANTAGES[name]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


# --- the loss ---------------------------------------------------------------------------------------------------------------


def make_responses(trajectories: list[Trajectory], seed: int, spread: float) -> tuple[list[np.ndarray], list[Response]]:
    """Returns (log-probs of the policy, the rest) of every trajectory, with random engine log-probs."""
    rng, logps, made = np.random.default_rng(seed), [], []
    for trajectory in trajectories:
        n = trajectory.response_tokens
        old = -rng.exponential(1.0, n) - 0.05
        logps.append(old + spread * rng.standard_normal(n))
        engine, reference = (old + 0.3 * rng.standard_normal(n) for _ in range(2))
        advantage = float(np.float32(rng.choice([-1.5, -0.5, 0.0, 0.5, 2.0])))
        made.append(Response(old, engine, reference, rng.uniform(0.1, 2, n), advantage))
    return logps, made


def computed(
    trajectories: list[Trajectory],
    logps: list[np.ndarray],
    responses: list[Response],
    rules: Rules,
    plan: BatchPlan,
    own_clip: bool = False,
) -> tuple[float, list[np.ndarray]]:
    """Returns the loss of the update over all micro-batches of all ranks, and its gradient in every log-prob.

    own_clip: leave the clip range out of the settings.
    """
    objective = ObjectiveSettings.model_validate(
        {
            "surrogate": rules.surrogate,
            **({} if own_clip else {"clip_low": rules.low, "clip_high": rules.high}),
            "importance": {"kind": rules.importance, "cap": rules.cap, "floor": rules.floor, "level": rules.level},
            "kl": {"coefficient": rules.kl, "estimator": rules.estimator},
        }
    )
    aggregation: Any = rules.aggregation
    advantages = np.array([r.advantage for r in responses])
    batches = build_batches(
        trajectories, advantages, plan=plan, aggregation=aggregation, temperature=1.0, length_scale=rules.max_tokens
    )
    total, grads = 0.0, [np.full(len(x), np.nan) for x in logps]
    for micro in (m for b in batches for m in b.updates[0]):
        at = list(zip(micro.trajectory.tolist(), micro.action_index.tolist(), strict=True))
        old, engine, reference, entropy = (
            torch.tensor([getattr(responses[i], name)[t] for i, t in at], dtype=torch.float64)
            for name in ("old", "engine", "reference", "entropy")
        )
        x = torch.tensor([logps[i][t] for i, t in at], dtype=torch.float64, requires_grad=True)
        a = with_reference(torch.tensor(micro.advantages).double(), old, reference, objective)
        weight, trajectory = torch.tensor(micro.weight).double(), torch.tensor(micro.trajectory).long()
        data = LossData(old, a, weight, trajectory, engine, reference)
        actual = token_loss(x, entropy, data, Shaping(bonus=rules.bonus), objective).loss
        total += float(actual.detach())
        if at:
            for (i, t), g in zip(at, torch.autograd.grad(actual, x)[0].tolist(), strict=True):
                assert np.isnan(grads[i][t]), "a token counts once"
                grads[i][t] = g
    return total, grads


def near_a_bound(logps: list[np.ndarray], responses: list[Response], rules: Rules) -> bool:
    """Returns whether a ratio is near a bound, where a finite difference is not a derivative."""
    if rules.surrogate not in CLIPPED:
        return False
    d = [x - r.old for x, r in zip(logps, responses, strict=True)]
    ratios = np.exp([x.mean() for x in d] if rules.surrogate == "gspo" else np.concatenate(d))
    return any(np.abs(ratios - bound).min() < 1e-4 for bound in (1 - rules.low, 1 + rules.high))


@st.composite
def batch_plans(draw: st.DrawFn) -> BatchPlan:
    return BatchPlan(
        updates=1,
        epochs=1,
        ranks=draw(st.integers(1, 3)),
        micro_batch_tokens=draw(st.sampled_from([1, 20, 1000])),
        packing=draw(st.booleans()),
    )


def check(rules: Rules, responses: list[Trajectory], plan: BatchPlan, seed: int) -> None:
    logps, made = make_responses(responses, seed, 0.25)
    if near_a_bound(logps, made, rules):
        return
    value, grads = computed(responses, logps, made, rules, plan)
    assert value == pytest.approx(references.loss(logps, logps, made, rules), rel=1e-6, abs=1e-7)
    for actual, expected in zip(grads, references.gradients(logps, made, rules), strict=True):
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-7)


CASE = {"responses": trajectories(min_size=2, max_size=4), "plan": batch_plans(), "seed": st.integers(0, 9999)}


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("surrogate", ["policy_gradient", "ppo", "cispo", "gspo"])
@settings(max_examples=12)
@given(**CASE)
def test_value_and_gradient_of_every_surrogate_are_those_of_its_paper(
    surrogate: str, aggregation: str, responses: list[Trajectory], plan: BatchPlan, seed: int
) -> None:
    """The batch plan does not matter, and observations between turns are in no formula."""
    if surrogate == "gspo":
        aggregation = "sequence"  # GSPO is defined a response
    check(Rules(surrogate, 0.1, 0.3, aggregation, 7, bonus=0.2), responses, plan, seed)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("kind", "floor"), [("truncated", 0.0), ("masked", 0.0), ("masked", 0.8)])
@settings(max_examples=12)
@given(**CASE)
def test_the_correction_for_engine_log_probs_is_that_of_its_paper(
    kind: str, floor: float, level: str, responses: list[Trajectory], plan: BatchPlan, seed: int
) -> None:
    """The correction weighs the surrogate alone, not the bonus and not the penalty."""
    rules = Rules(importance=kind, level=level, cap=1.2, floor=floor, bonus=0.3, kl=0.4, estimator="k3")
    check(rules, responses, plan, seed)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@settings(max_examples=12)
@given(**CASE)
def test_the_penalty_to_the_reference_is_that_of_its_estimator(
    estimator: str, responses: list[Trajectory], plan: BatchPlan, seed: int
) -> None:
    check(Rules(kl=0.7, estimator=estimator), responses, plan, seed)


@few
@given(seed=st.integers(0, 9999))
def test_gspo_is_the_clipped_objective_of_whole_responses(seed: int) -> None:
    """Eq. 5 on two responses by hand: within the range, every token's gradient is s A / |y| over the number of responses."""
    responses = [make_trajectory([(1, 3), (2, 2)], index=0), make_trajectory([(1, 4)], index=1)]
    logps, made = make_responses(responses, seed, 0.3)
    made = [replace(r, advantage=a) for r, a in zip(made, (1.5, -0.5), strict=True)]
    rules = Rules("gspo", 0.05, 0.05, "sequence")
    _, grads = computed(
        responses, logps, made, rules, BatchPlan(updates=1, epochs=1, ranks=1, micro_batch_tokens=100, packing=False)
    )
    for logp, response, actual in zip(logps, made, grads, strict=True):
        s = np.exp((logp - response.old).mean())
        stopped = s > 1.05 if response.advantage > 0 else s < 0.95
        expected = 0.0 if stopped else -s * response.advantage / len(logp) / 2
        assert actual == pytest.approx(np.full(len(logp), expected), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("surrogate", sorted(CLIPPED))
def test_a_clip_range_that_is_left_out_is_the_surrogates_published_one(surrogate: str) -> None:
    """Ratios on either side of every bound that any of the three has, and advantages of both signs."""
    low, high = references.PUBLISHED_CLIP[surrogate]
    rules = Rules(surrogate, low, high, "sequence")
    plan = BatchPlan(updates=1, epochs=1, ranks=1, micro_batch_tokens=100, packing=False)
    for ratio in (1e-3, 0.5, 0.79, 0.81, 1 - 3.5e-4, 1 - 2.5e-4, 1 + 3.5e-4, 1 + 4.5e-4, 1.19, 1.21, 4.9, 5.1):
        responses = [make_trajectory([(1, 3)], index=0), make_trajectory([(1, 2)], index=1)]
        logps, made = make_responses(responses, 0, 0.0)
        made = [replace(r, advantage=a) for r, a in zip(made, (1.5, -0.5), strict=True)]
        logps = [x + np.log(ratio) for x in logps]
        value, grads = computed(responses, logps, made, rules, plan, own_clip=True)
        assert value == pytest.approx(references.loss(logps, logps, made, rules), rel=1e-6), ratio
        for actual, expected in zip(grads, references.gradients(logps, made, rules), strict=True):
            assert actual == pytest.approx(expected, rel=1e-5, abs=1e-7), ratio


def test_a_clip_range_that_is_given_wins_one_side_at_a_time() -> None:
    assert ObjectiveSettings().clip == (0.2, 0.2)
    assert ObjectiveSettings(surrogate="gspo", clip_high=0.1).clip == (3e-4, 0.1)
    assert ObjectiveSettings(surrogate="cispo", clip_low=0.0).clip == (0.0, 4.0)


@few
@given(
    st.sampled_from(["policy_gradient", *sorted(CLIPPED)]),
    st.integers(0, 9999),
    st.booleans(),
    trajectories(min_size=2, max_size=4),
)
def test_the_gradient_weight_is_what_multiplies_the_advantage_in_the_gradient(
    surrogate: Any, seed: int, corrected: bool, responses: list[Trajectory]
) -> None:
    """Minus the derivative of the loss over A, token by token, with the clip, the weights and the correction in it."""
    corrected = (
        corrected and surrogate != "gspo"
    )  # weights a token within a response's one ratio: only GSPO-token has that
    rules = Rules(surrogate, 0.1, 0.3, "sequence", importance="truncated" if corrected else "none", cap=1.2)
    logps, made = make_responses(responses, seed, 0.25)
    if near_a_bound(logps, made, rules):
        return
    expected = np.concatenate(references.gradients(logps, made, rules))
    objective = ObjectiveSettings(surrogate=surrogate, clip_low=0.1, clip_high=0.3)
    lengths = [len(x) for x in logps]
    old, engine = (torch.tensor(np.concatenate([getattr(r, n) for r in made])) for n in ("old", "engine"))
    advantages = torch.tensor(np.repeat([r.advantage for r in made], lengths))
    weight = torch.tensor(np.repeat([1 / (len(made) * n) for n in lengths], lengths))
    trajectory = torch.arange(len(made)).repeat_interleave(torch.tensor(lengths))
    importance = (old - engine).exp().clamp(max=1.2) if corrected else None
    data = LossData(old, advantages, weight, trajectory)
    g = gradient_weight(torch.tensor(np.concatenate(logps)), data, importance, objective)
    assert (-g * advantages).tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-7)


def test_a_token_clipped_by_cispo_keeps_its_gradient_with_a_limited_weight() -> None:
    for ratio, kept in ((5.0, 1.3), (0.1, 0.9), (1.1, 1.1)):
        x = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
        old = (x - np.log(ratio)).detach()
        data = LossData(old, torch.tensor([2.0]).double(), torch.ones(1).double(), torch.zeros(1).long())
        token_loss(
            x, x.detach(), data, Shaping(), ObjectiveSettings(surrogate="cispo", clip_low=0.1, clip_high=0.3)
        ).loss.backward()
        assert x.grad is not None
        assert x.grad.item() == pytest.approx(-2.0 * kept)
