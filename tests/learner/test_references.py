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
from support.builders import make_stats, make_trajectory, trajectories
from support.references import Response, Rules
from support.tables import make_method

from envs.types import Group, Trajectory
from learner.advantages import ADVANTAGES
from learner.batching import build_batches, trajectory_advantages
from learner.objective import CLIPPED, token_loss, with_reference
from learner.settings import BatchPlan, ObjectiveSettings
from learner.types import LossData, Shaping, TokenStats

few = settings(max_examples=40)


# --- advantages -----------------------------------------------------------------------------------------------------------

RESPONSES = st.tuples(st.integers(-4, 4).map(lambda x: x / 2), st.integers(1, 9))
GROUPS = st.lists(st.lists(RESPONSES, min_size=2, max_size=5), min_size=1, max_size=4)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@few
@given(groups=GROUPS)
def test_every_advantage_is_that_of_its_paper(name: str, groups: list[list[tuple[float, int]]]) -> None:
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
    trajectories: list[Trajectory], logps: list[np.ndarray], responses: list[Response], rules: Rules, plan: BatchPlan
) -> tuple[float, list[np.ndarray]]:
    """Returns the loss of the update over all micro-batches of all ranks, and its gradient in every log-prob."""
    objective = ObjectiveSettings.model_validate(
        {
            "surrogate": rules.surrogate,
            "clip_low": rules.low,
            "clip_high": rules.high,
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


# --- REPO, Clip-Cov, KL-Cov ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repo_r", "repo_r, raw", "repo_r, positive", "repo_d", "repo_d, raw"])
@few
@given(seed=st.integers(0, 999), coefficient=st.floats(-3, 3))
def test_every_form_of_repo_is_a_minus_beta_l(name: str, seed: int, coefficient: float) -> None:
    stats, kind = make_stats(15, seed), name[:6]
    form = {"centred": "raw" not in name, "part": "positive" if "positive" in name else "both"}
    columns = (x.tolist() for x in (stats.advantages, stats.logp, stats.entropy))
    expected = [references.repo(kind, a, x, h, coefficient, **form) for a, x, h in zip(*columns, strict=True)]
    shaping = make_method(name).shape(stats, coefficient)
    assert shaping.advantages.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    touched = [kind == "repo_d" or (a > 0 if "positive" in name else a != 0) for a in stats.advantages.tolist()]
    assert shaping.touched is None if kind == "repo_d" else shaping.touched.tolist() == touched


BATCHES = st.tuples(st.integers(0, 999), st.integers(1, 60))


def with_ties(seed: int, n: int) -> TokenStats:
    """Returns statistics with a third of the tokens certain, so that equal advantages give covariances equal to the last bit."""
    stats = make_stats(n, seed)
    certain = torch.arange(n) % 3 == 0
    return replace(stats, logp=stats.logp.masked_fill(certain, 0.0), advantages=stats.advantages.sign())


@few
@given(BATCHES, st.floats(0, 1), st.floats(-1, 1, allow_subnormal=False), st.floats(0, 2, allow_subnormal=False))
def test_clip_cov_drops_the_share_it_was_told_of_those_it_may(
    batch: tuple[int, int], coefficient: float, low: float, width: float
) -> None:
    stats = make_stats(batch[1], batch[0])
    high = max(low + width, 1e-3)
    c = references.covariances(stats.advantages.tolist(), stats.logp.tolist())
    expected = references.clip_cov(c, stats.uniform.tolist(), coefficient, low, high)
    shaping = make_method("clip_cov", low=low, high=high).shape(stats, coefficient)
    assert set(shaping.touched.nonzero().flatten().tolist()) == expected
    assert shaping.weight.tolist() == [float(i not in expected) for i in range(len(c))]
    assert (shaping.advantages, shaping.kl, shaping.bonus) == (None, None, None)


@few
@given(BATCHES, st.floats(1e-3, 1), st.floats(0.01, 5))
def test_kl_cov_penalises_the_share_with_the_highest_covariance(
    batch: tuple[int, int], share: float, coefficient: float
) -> None:
    stats = with_ties(*batch)
    c = references.covariances(stats.advantages.tolist(), stats.logp.tolist())
    # Sums in another order differ in their last bits: what ties must tie there too.
    c = [round(x, 12) for x in c]
    expected = references.kl_cov(c, stats.uniform.tolist(), share)
    shaping = make_method("kl_cov", share=share).shape(stats, coefficient)
    assert set(shaping.touched.nonzero().flatten().tolist()) == expected
    assert shaping.kl.tolist() == pytest.approx([coefficient * (i in expected) for i in range(len(c))])
    assert (shaping.advantages, shaping.weight, shaping.bonus) == (None, None, None)


@pytest.mark.parametrize("name", ["clip_cov, wide", "kl_cov", "kl_cov, wide"])
@few
@given(batch=BATCHES, coefficient=st.floats(0.01, 0.9), rng=st.randoms(use_true_random=False))
def test_what_is_chosen_does_not_depend_on_the_order_of_the_tokens(
    name: str, batch: tuple[int, int], coefficient: float, rng: Any
) -> None:
    stats = with_ties(*batch)
    order = torch.tensor(rng.sample(range(batch[1]), batch[1]))
    full, moved = (make_method(name).shape(s, coefficient).touched for s in (stats, stats.take(order)))
    assert moved.tolist() == full[order].tolist()


def test_a_small_share_of_a_small_batch_is_one_token_and_ties_fall_to_the_lowest_draw() -> None:
    zero = torch.zeros(5).double()
    uniform = torch.tensor([0.5, 0.4, 0.1, 0.2, 0.3]).double()
    a = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]).double()
    logp = torch.tensor([0.0, 0.0, -3.0, 0.0, 0.0]).double()
    stats = TokenStats(logp, zero, zero, zero, zero, a, uniform, zero.long())
    assert make_method("kl_cov").shape(stats, 1.0).touched.tolist() == [False, False, False, True, False]
    assert make_method("clip_cov, wide").shape(stats, 1e-4).touched.tolist() == [False, False, False, True, False]
