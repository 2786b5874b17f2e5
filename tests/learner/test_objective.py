"""The loss: surrogates against the papers, the scaling contract, and stored values."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.builders import alike, assert_close, loss_data, make_stats, make_trajectory, trajectories
from torch import Tensor

from envs.types import Trajectory
from learner.batching import build_batches
from learner.objective import SURROGATES, ClipRange, token_loss, weigh
from learner.settings import BatchPlan, ImportanceSettings, ObjectiveSettings
from learner.types import Aggregation, LossData, MicroBatch, Shaping

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"


# --- references, from the papers ----------------------------------------------------------------------------------------


def ppo_reference(logp: float, old: float, advantage: float, low: float, high: float) -> float:
    """Returns minus the objective of PPO (arXiv 1707.06347, eq. 7), with a lower and an upper range."""
    ratio = math.exp(logp - old)
    return -min(ratio * advantage, max(1 - low, min(ratio, 1 + high)) * advantage)


def reference(case: dict[str, Any]) -> float:
    """Computes the loss of a case in numpy float64: surrogate, token weight, bonus, KL penalty, weighted sum."""
    c = {k: np.asarray(v, np.float64) if isinstance(v, list) else v for k, v in case.items() if k != "loss"}
    a = c.get("shaped", c["advantages"])
    if c["surrogate"] == "ppo":
        ratio = np.exp(c["logp"] - c["old_logp"])
        high = c.get("shaped_clip_high", c["clip_high"])
        per_token = -np.minimum(ratio * a, np.clip(ratio, 1 - c["clip_low"], 1 + high) * a)
    else:
        per_token = -a
    per_token = per_token * c.get("token_weight", 1.0) - c.get("bonus", 0.0) * c["entropy"]
    moved = np.exp(c["logp"] - c["old_logp"])  # pi / pi_old, on samples of pi_old
    per_token = per_token + c.get("kl", 0.0) * (moved - 1 - np.log(moved))
    return float((c["weight"] * per_token).sum())


def computed(case: dict[str, Any]) -> float:
    def tensor(name: str) -> Tensor | None:
        return torch.tensor(case[name], dtype=torch.float64) if isinstance(case.get(name), list) else case.get(name)

    logp, entropy, old, advantages, weight = (
        tensor(n) for n in ("logp", "entropy", "old_logp", "advantages", "weight")
    )
    shaping = Shaping(
        advantages=tensor("shaped"),
        clip_high=tensor("shaped_clip_high"),
        weight=tensor("token_weight"),
        bonus=tensor("bonus"),
        kl=tensor("kl"),
    )
    assert logp is not None
    data = LossData(old, advantages, weight, torch.arange(len(logp)))  # type: ignore[arg-type]
    objective = ObjectiveSettings(**{k: case[k] for k in ("surrogate", "clip_low", "clip_high")})
    return float(token_loss(logp, entropy, data, shaping, objective).loss)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(json.loads(GOLDEN.read_text())))
def test_golden_losses(name: str) -> None:
    case = json.loads(GOLDEN.read_text())[name]
    assert reference(case) == pytest.approx(case["loss"], rel=1e-12)
    assert computed(case) == pytest.approx(case["loss"], rel=1e-12)


LOGP = st.floats(-6, -0.01)
ADVANTAGE = st.floats(-3, 3)


@given(LOGP, LOGP, ADVANTAGE, st.floats(0, 0.9), st.floats(0, 2))
def test_ppo_is_the_clipped_objective_and_its_gradient_stops_outside_the_clip(
    logp: float, old: float, advantage: float, low: float, high: float
) -> None:
    x = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
    loss = SURROGATES["ppo"](x, x - old, torch.tensor([advantage]).double(), ClipRange(low, high))
    a = float(torch.tensor(advantage))  # as float32 holds it
    assert loss.item() == pytest.approx(ppo_reference(logp, old, a, low, high), rel=1e-9, abs=1e-12)
    loss.sum().backward()
    assert x.grad is not None
    ratio = math.exp(logp - old)
    bound = (ratio > 1 + high and a > 0) or (ratio < 1 - low and a < 0)
    if min(abs(ratio - 1 - high), abs(ratio - 1 + low)) > 1e-9:
        assert x.grad.item() == pytest.approx(0 if bound else -a * ratio, rel=1e-9, abs=1e-12)


@given(LOGP, ADVANTAGE)
def test_policy_gradient_has_the_gradient_of_reinforce_whatever_the_old_policy(logp: float, advantage: float) -> None:
    x = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([advantage], dtype=torch.float64)
    for old in (logp, logp - 3.0):
        x.grad = None
        loss = SURROGATES["policy_gradient"](x, x - old, a, ClipRange(0.2, 0.2))
        loss.sum().backward()
        assert x.grad is not None
        assert (loss.item(), x.grad.item()) == (-a.item(), -a.item())


def run(stats_seed: int, shaping: Shaping, surrogate: Any = "ppo") -> tuple[Any, Tensor]:
    stats = make_stats(20, stats_seed)
    logp = stats.logp.clone().requires_grad_()
    objective = ObjectiveSettings(surrogate=surrogate, clip_low=0.1, clip_high=0.15)
    terms = token_loss(logp, stats.entropy, loss_data(stats), shaping, objective)
    return terms, logp


def test_diagnostics_count_the_clipped_tokens_of_each_side() -> None:
    terms, logp = run(3, Shaping())
    stats = make_stats(20, 3)
    ratio = (stats.logp - stats.old_logp).exp()
    up, down = (ratio > 1.15) & (stats.advantages > 0), (ratio < 0.9) & (stats.advantages < 0)
    assert up.any()
    assert down.any()
    assert terms.tokens["clipped_high"].tolist() == up.tolist()
    assert terms.tokens["clipped_low"].tolist() == down.tolist()
    assert_close(terms.tokens["ratio"], ratio)
    assert_close(terms.tokens["withheld"], ratio * (up | down))  # all of a clipped token, nothing of another
    assert (terms.tokens["kl"] >= 0).all()
    assert_close(terms.tokens["kl"], ratio - 1 - ratio.log())
    terms.loss.backward()
    assert logp.grad is not None
    # the tokens called clipped are exactly those without a gradient, those of no advantage aside
    assert (logp.grad == 0).tolist() == (up | down | (stats.advantages == 0)).tolist()


def test_clipping_is_decided_on_the_shaped_advantage() -> None:
    stats = make_stats(20, 3)
    terms, _ = run(3, Shaping(advantages=-stats.advantages))
    ratio = (stats.logp - stats.old_logp).exp()
    assert terms.tokens["clipped_high"].tolist() == ((ratio > 1.15) & (stats.advantages < 0)).tolist()


def test_a_clip_range_of_a_token_of_its_own_replaces_the_upper_one_only() -> None:
    wide = torch.linspace(0, 5, 20, dtype=torch.float64)
    terms, _ = run(3, Shaping(clip_high=wide))
    stats = make_stats(20, 3)
    expected = [
        ppo_reference(float(x), float(old), float(a), 0.1, float(h))
        for x, old, a, h in zip(stats.logp, stats.old_logp, stats.advantages, wide, strict=True)
    ]
    assert terms.loss.item() == pytest.approx(sum(expected) / 20, rel=1e-12)


def test_the_penalty_is_never_negative_and_pulls_towards_the_old_policy() -> None:
    stats = make_stats(20, 4)
    terms, logp = run(4, Shaping(advantages=torch.zeros(20).double(), kl=torch.ones(20).double()))
    assert terms.loss.item() > 0
    terms.loss.backward()
    assert logp.grad is not None
    assert (logp.grad.sign() == (stats.logp - stats.old_logp).sign()).all()


def test_a_clip_of_one_below_and_infinity_above_is_none() -> None:
    """So that CISPO has no lower bound, and KL-Cov none at all."""
    ratio = torch.tensor([0.0, 1e-30, 0.5, 1.0, 7.0, 1e30]).double()
    for low in (1.0, math.inf):
        assert torch.equal(ClipRange(low, math.inf).apply(ratio), ratio)
    terms, _ = run(3, Shaping(clip_low=math.inf, clip_high=math.inf))
    assert not (terms.tokens["clipped_high"] | terms.tokens["clipped_low"] | (terms.tokens["withheld"] != 0)).any()
    lower, _ = run(3, Shaping(clip_low=0.5))  # replaces the lower one only
    stats = make_stats(20, 3)
    expected = [
        ppo_reference(float(x), float(old), float(a), 0.5, 0.15)
        for x, old, a in zip(stats.logp, stats.old_logp, stats.advantages, strict=True)
    ]
    assert lower.loss.item() == pytest.approx(sum(expected) / 20, rel=1e-12)


def test_a_ratio_that_underflows_leaves_finite_diagnostics() -> None:
    x = torch.tensor([-200.0])
    one = torch.ones(1)
    terms = token_loss(x, one, LossData(one, one, one, torch.zeros(1).long()), Shaping(), ObjectiveSettings())
    assert terms.tokens["ratio"].item() == 0.0
    assert terms.tokens["kl"].item() == pytest.approx(200.0)


# --- the scaling contract -----------------------------------------------------------------------------------------------


def fake_policy(tokens: np.ndarray, position: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (logp, old_logp, entropy) that depend on the token and its position in its trajectory. float64"""
    t, p, a = (torch.tensor(x, dtype=torch.float64) for x in (tokens, position, targets))
    logp = -1.5 + torch.sin(0.7 * t + 1.3 * p + 2.1 * a)
    return logp, logp + 0.4 * torch.cos(t + a), 1.0 + torch.cos(0.3 * a * p)


def micro_loss(micro: MicroBatch, shaping: Shaping | None = None) -> float:
    at = micro.predict
    logp, old, entropy = fake_policy(micro.tokens.ravel()[at], micro.positions.ravel()[at], micro.targets)
    advantages, weight = (torch.tensor(x, dtype=torch.float64) for x in (micro.advantages, micro.weight))
    shaping = Shaping(bonus=0.3) if shaping is None else shaping
    data = LossData(old, advantages, weight, torch.tensor(micro.trajectory).long())
    return float(token_loss(logp, entropy, data, shaping, ObjectiveSettings()).loss)


def update_losses(
    responses: list[Trajectory], advantages: np.ndarray, aggregation: Aggregation, **plan: Any
) -> list[float]:
    """Returns the loss of each update: the sum over all micro-batches of all ranks."""
    settings: dict[str, Any] = {"updates": 1, "epochs": 1, "ranks": 1, "micro_batch_tokens": 10_000, "packing": False}
    made = BatchPlan(**{**settings, **plan})
    batches = build_batches(responses, advantages, plan=made, aggregation=aggregation, temperature=1.0)
    return [sum(micro_loss(m) for b in batches for m in b.updates[k]) for k in range(made.updates)]


def plain_loss(responses: list[Trajectory], advantages: np.ndarray, aggregation: Aggregation) -> float:
    """Computes DAPO's token mean and GRPO's mean over trajectories of their token means, one token at a time."""
    means, total, count = [], 0.0, 0
    for response, advantage in zip(responses, advantages, strict=True):
        ids, token_losses = response.token_ids, []
        for at in (i for i, sampled in enumerate(response.action_mask) if sampled):
            logp, old, entropy = (
                float(x) for x in fake_policy(*(np.array([v]) for v in (ids[at - 1], at - 1, ids[at])))
            )
            token_losses.append(ppo_reference(logp, old, advantage, 0.2, 0.2) - 0.3 * entropy)
        means.append(sum(token_losses) / len(token_losses))
        total, count = total + sum(token_losses), count + len(token_losses)
    return total / count if aggregation == "token" else sum(means) / len(means)


@given(
    trajectories(max_size=8),
    st.integers(1, 4),
    st.integers(1, 60),
    st.sampled_from(["padded", "packed", "shared"]),
    st.sampled_from(["token", "sequence"]),
    st.randoms(use_true_random=False),
)
def test_the_loss_does_not_depend_on_ranks_micro_batches_layout_or_order(
    responses: list[Trajectory], ranks: int, budget: int, layout: str, aggregation: Aggregation, rng: Any
) -> None:
    responses, packing = alike(responses, 3), layout != "padded"
    plan: dict[str, Any] = {"ranks": ranks, "packing": packing, "prefix_sharing": layout == "shared"}
    advantages = np.array([rng.randrange(-8, 9) / 4 for _ in responses])
    (full,) = update_losses(responses, advantages, aggregation)
    assert full == pytest.approx(plain_loss(responses, advantages, aggregation), rel=1e-6, abs=1e-6)  # float32 weights
    (divided,) = update_losses(responses, advantages, aggregation, micro_batch_tokens=budget, **plan)
    assert divided == pytest.approx(full, rel=1e-9, abs=1e-9)
    order = rng.sample(range(len(responses)), len(responses))
    (moved,) = update_losses([responses[i] for i in order], advantages[order], aggregation, **plan)
    assert moved == pytest.approx(full, rel=1e-9, abs=1e-9)


@given(trajectories(min_size=4, max_size=4), st.integers(1, 3), st.integers(1, 40), st.booleans())
def test_each_update_is_the_loss_of_its_own_trajectories(
    responses: list[Trajectory], ranks: int, budget: int, packing: bool
) -> None:
    advantages = np.array([1.0, -0.5, 0.25, -2.0])
    plan = {"mixed": False, "ranks": ranks, "micro_batch_tokens": budget, "packing": packing}
    losses = update_losses(responses, advantages, "token", updates=2, **plan)
    halves = [plain_loss(responses[s], advantages[s], "token") for s in (slice(0, 2), slice(2, 4))]
    assert losses == pytest.approx(halves, rel=1e-6, abs=1e-6)


def test_token_and_sequence_aggregation_differ_where_lengths_do() -> None:
    responses = [make_trajectory([(1, n)], index=n) for n in (1, 9)]
    advantages = np.array([2.0, -1.0])
    token, sequence = (update_losses(responses, advantages, a)[0] for a in ("token", "sequence"))
    assert abs(token - sequence) > 0.1


def test_an_empty_micro_batch_adds_nothing() -> None:
    responses = [make_trajectory()]
    plan = BatchPlan(updates=1, epochs=1, ranks=2, micro_batch_tokens=9, packing=False)
    batches = build_batches(responses, np.ones(1), plan=plan, aggregation="token", temperature=1.0)
    (filler,) = batches[1].updates[0]
    assert micro_loss(filler) == 0.0
    assert micro_loss(replace(filler), Shaping(kl=torch.ones(0))) == 0.0


@pytest.mark.parametrize(
    ("settings", "weights", "limited"),
    [
        (ImportanceSettings(kind="truncated", cap=2.0), [0.25, 1.5, 2.0], [False, False, True]),
        (ImportanceSettings(kind="masked", cap=2.0, floor=0.5), [0.0, 1.5, 0.0], [True, False, True]),
        (ImportanceSettings(), [1.0, 1.0, 1.0], [False, False, False]),
    ],
)
def test_diagnostics_say_which_importance_weights_a_bound_limited(
    settings: ImportanceSettings, weights: list[float], limited: list[bool]
) -> None:
    w, out = weigh(settings, torch.tensor([0.25, 1.5, 3.0]).log(), torch.zeros(3, dtype=torch.int64))
    assert w.tolist() == pytest.approx(weights)
    assert out.tolist() == limited
