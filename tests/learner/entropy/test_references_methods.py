"""The methods of entropy control against their papers' formulas, written again in plain numbers (support/references_entropy.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import references_entropy as references
from support.builders import loss_data, make_stats
from support.tables import MOVED, Table, make_method

from learner.entropy.repo import free_dh
from learner.ledger.predicted import predicted_dh
from learner.objective import gradient_weight, token_loss
from learner.settings import ObjectiveSettings
from learner.types import Shaping, TokenStats

few = settings(max_examples=40)
BATCHES = st.tuples(st.integers(0, 999), st.integers(1, 60))


# --- REPO, REPO-R, REPO-D -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repo_r", "repo_r, raw", "repo_r, positive", "repo", "repo, raw"])
@few
@given(seed=st.integers(0, 999), coefficient=st.floats(-3, 3))
def test_every_form_of_repo_is_a_minus_beta_l(name: str, seed: int, coefficient: float) -> None:
    stats, kind = make_stats(15, seed), name.partition(",")[0]
    form = {"centred": "raw" not in name, "part": "positive" if "positive" in name else "both"}
    columns = (x.tolist() for x in (stats.advantages, stats.logp, stats.entropy))
    expected = [references.repo(kind, a, x, h, coefficient, **form) for a, x, h in zip(*columns, strict=True)]
    shaping = make_method(name).shape(stats, coefficient)
    assert shaping.advantages.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    touched = [kind == "repo" or (a > 0 if "positive" in name else a != 0) for a in stats.advantages.tolist()]
    assert shaping.touched is None if kind == "repo" else shaping.touched.tolist() == touched


RULES = [
    ("policy_gradient", 0.2, 0.2),
    ("ppo", 0.1, 0.15),
    ("gspo", 0.05, 0.4),
    ("cispo", 1.0, 0.15),
]


def with_gradient_weight(table: Table, rule: tuple[Any, float, float]) -> TokenStats:
    """Returns the table's statistics as the learner measures them under this objective."""
    objective = ObjectiveSettings(surrogate=rule[0], clip_low=rule[1], clip_high=rule[2])
    stats = table.stats()
    return replace(stats, gradient_weight=gradient_weight(stats.logp, table.data(), None, objective))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r[0])
@settings(max_examples=15)
@given(table=MOVED, coefficient=st.floats(-3, 30))
def test_repo_d_is_a_minus_zeta_times_the_entropy_lost_times_l(
    rule: tuple[str, float, float], table: Table, coefficient: float
) -> None:
    """The change of entropy is that of a small step along the objective's gradient, in a table whose policy has moved already."""
    stats = with_gradient_weight(table, rule)
    logits, old, advantages = (x.numpy() for x in (table.logits, table.old, table.advantages))
    dh = references.free_change(logits, old, advantages, table.weight.view_as(table.logits).numpy(), rule)
    assert float(free_dh(stats)) == pytest.approx(dh, rel=1e-4, abs=1e-7)
    log_p = references.log_softmax(logits)
    entropy = -(np.exp(log_p) * log_p).sum(-1, keepdims=True)
    expected = advantages - coefficient * max(0.0, -dh) * (log_p + entropy)
    shaping = make_method("repo_d").shape(stats, coefficient)
    assert shaping.advantages.view_as(table.logits).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert replace(shaping, advantages=None) == Shaping()


@few
@given(st.integers(0, 10_000).map(Table.random))
def test_repo_d_with_one_over_the_slope_holds_entropy_and_a_gain_is_left_alone(table: Table) -> None:
    stats = with_gradient_weight(table, ("ppo", 0.2, 0.2))
    ones = replace(stats, advantages=stats.centred)
    slope = float(-free_dh(ones))
    lost = -float(free_dh(stats))
    shaping = make_method("repo_d").shape(stats, 1 / slope)
    controlled = float((table.weight * predicted_dh(stats, shaping)).sum())
    assert controlled == pytest.approx(0.0 if lost > 0 else -lost, rel=1e-9, abs=1e-12)
    # The same as the base form at the coefficient the isentropic controller would hold it with.
    if lost > 0:
        assert shaping.advantages.tolist() == pytest.approx(
            make_method("repo").shape(stats, lost / slope).advantages.tolist(), rel=1e-9, abs=1e-12
        )
    else:
        assert torch.equal(shaping.advantages, stats.advantages)


# --- Clip-Cov, KL-Cov -------------------------------------------------------------------------------------------------------------


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
    stats = make_stats(batch[1], batch[0])  # at PPO's clip of 0.2
    high = max(low + width, 1e-3)
    columns = [x.tolist() for x in (stats.logp, stats.old_logp, stats.advantages)]
    clipped = [references.clipped_by_ppo(x, old, a, 0.2, 0.2) for x, old, a in zip(*columns, strict=True)]
    c = references.covariances(columns[2], columns[0])
    expected = references.clip_cov(c, clipped, stats.uniform.tolist(), coefficient, low, high)
    shaping = make_method("clip_cov", low=low, high=high).shape(stats, coefficient)
    assert set(shaping.touched.nonzero().flatten().tolist()) == expected
    assert shaping.weight.tolist() == [float(i not in expected) for i in range(len(c))]
    assert replace(shaping, weight=None, touched=None) == Shaping()


def test_clip_cov_spends_its_share_on_tokens_that_still_have_a_gradient() -> None:
    """Five tokens may be dropped, PPO has clipped the three with the lowest draws: the next one goes."""
    n = 6
    logp, old = torch.full((n,), -1.0).double(), torch.full((n,), -1.0).double()
    old[:3] -= 1.0  # a ratio of e
    logp[5], a = -6.0, torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0]).double()
    uniform = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.0]).double()
    data = loss_data(replace(make_stats(n), logp=logp, old_logp=old, advantages=a))
    g = gradient_weight(logp, data, None, ObjectiveSettings())
    stats = replace(make_stats(n), logp=logp, old_logp=old, advantages=a, uniform=uniform, gradient_weight=g)
    shaping = make_method("clip_cov", low=0.1).shape(stats, 1 / n)
    assert shaping.touched.tolist() == [False, False, False, True, False, False]


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


@pytest.mark.parametrize("form", ["abs", "kl"])
@few
@given(batch=BATCHES, share=st.floats(0.05, 0.6), beta=st.floats(0.01, 5))
def test_the_loss_of_kl_cov_and_its_gradient_are_the_published_ones(
    form: str, batch: tuple[int, int], share: float, beta: float
) -> None:
    """Without PPO's clip, though the settings of the objective have one; ratios go far outside."""
    stats = make_stats(batch[1], batch[0])
    stats = replace(stats, old_logp=stats.logp + 3 * (stats.old_logp - stats.logp))
    logp, old, a = (x.tolist() for x in (stats.logp, stats.old_logp, stats.advantages))
    chosen = references.kl_cov(references.covariances(a, logp), stats.uniform.tolist(), share)

    def loss(x: list[float]) -> float:
        return references.kl_cov_loss(x, old, a, chosen, beta, form)

    x = stats.logp.clone().requires_grad_()
    shaping = make_method("kl_cov", share=share, form=form).shape(stats, beta)
    actual = token_loss(x, stats.entropy, loss_data(stats), shaping, ObjectiveSettings()).loss
    assert actual.item() == pytest.approx(loss(logp), rel=1e-9, abs=1e-12)
    (gradient,) = torch.autograd.grad(actual, x)
    if (stats.logp - stats.old_logp).abs().min() > 1e-5:  # |log ratio| has no derivative at 0
        assert gradient.tolist() == pytest.approx(references.slopes(loss, logp), rel=1e-5, abs=1e-7)


def test_the_default_of_kl_cov_is_what_its_authors_train_with() -> None:
    """A fixed pull of the coefficient, 1, on the share of 0.2 %, whatever the ratio; and the paper's formula has ratio - 1."""
    method = make_method("kl_cov")
    assert (method.share, method.coefficient_range.start) == (2e-3, 1.0)
    for ratio in (3e-4, 0.5, 0.98, 1.02, 1.5):
        x = torch.tensor([np.log(ratio) - 1.0], requires_grad=True)
        old = torch.full((1,), -1.0).double()
        stats = replace(make_stats(1), logp=x.detach(), old_logp=old, advantages=torch.zeros(1).double())
        pulls = []
        for form in ({}, {"form": "kl"}):
            shaping = make_method("kl_cov", **form).shape(stats, 1.0)
            loss = token_loss(x, stats.entropy, loss_data(stats), shaping, ObjectiveSettings()).loss
            pulls.append(float(torch.autograd.grad(loss, x)[0]))
        assert pulls == pytest.approx([1.0 if ratio > 1 else -1.0, ratio - 1], rel=1e-9)


def test_kl_cov_can_keep_the_surrogates_clip() -> None:
    stats = make_stats(40, 1)
    plain = (stats.logp, stats.entropy, loss_data(stats))
    clipped, unclipped = (
        token_loss(*plain, make_method("kl_cov", clipped=c).shape(stats, 1.0), ObjectiveSettings()).tokens
        for c in (True, False)
    )
    assert clipped["clipped_high"].any()
    assert clipped["clipped_low"].any()
    assert not (unclipped["clipped_high"] | unclipped["clipped_low"]).any()


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
    zero, one = torch.zeros(5).double(), torch.ones(5).double()
    uniform = torch.tensor([0.5, 0.4, 0.1, 0.2, 0.3]).double()
    a = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]).double()
    logp = torch.tensor([0.0, 0.0, -3.0, 0.0, 0.0]).double()
    stats = TokenStats(logp, zero, zero, zero, zero, a, uniform, zero.long(), one)
    assert make_method("kl_cov").shape(stats, 1.0).touched.tolist() == [False, False, False, True, False]
    assert make_method("clip_cov, wide").shape(stats, 1e-4).touched.tolist() == [False, False, False, True, False]
