"""Tests what the loss does to a softmax table, exactly, in float64: the predicted change of entropy is its derivative along the
step that the loss takes; what clipping withheld is what the step lacks; a KL penalty has the gradient it is said to have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import assert_close
from support.tables import METHODS, MOVED, SURROGATES, TABLES, Table, change_of_entropy, entropies, make_method

from learner.ledger.predicted import Fresh, planned_dh, predicted_dh, tally_update
from learner.ledger.tally import Tally
from learner.objective import reference_pull, weigh, with_reference
from learner.settings import ImportanceSettings, KLSettings, ObjectiveSettings
from learner.types import Shaping

COEFFICIENTS = st.sampled_from([0.05, 0.3, 0.9])
UNBOUNDED = {"clip_low": 1.0, "clip_high": 1e9}
few, fewer = settings(max_examples=25), settings(max_examples=8)


def by_position(table: Table, shaping: Shaping) -> torch.Tensor:
    """Returns the ledger's change of entropy, summed over the samples of each position. [S]"""
    return (table.weight * predicted_dh(table.stats(), shaping)).view_as(table.logits).sum(-1)


def test_the_derivative_of_entropy_is_what_a_small_step_measures() -> None:
    table = Table.random(3)
    direction, eps = table.advantages, 1e-5
    measured = (entropies(table.logits + eps * direction) - entropies(table.logits - eps * direction)) / (2 * eps)
    assert_close(change_of_entropy(table.logits, direction), measured, 1e-7, 1e-9)


# --- predicted dH -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(METHODS))
@fewer
@given(table=TABLES, coefficient=COEFFICIENTS)
def test_the_predicted_change_is_the_derivative_along_the_step_of_the_loss(
    name: str, table: Table, coefficient: float
) -> None:
    """At the start of an iteration, for every method under every surrogate."""
    shaping = make_method(name).shape(table.stats(), coefficient)
    for surrogate in SURROGATES:
        actual = change_of_entropy(table.logits, table.descent(shaping, ObjectiveSettings(surrogate=surrogate)))
        assert_close(by_position(table, shaping), actual, 1e-9, 1e-12, surrogate)


@few
@given(TABLES, st.floats(0.05, 2))
def test_the_bonus_is_predicted_by_the_entropy_grad_sq_and_raises_entropy(table: Table, coefficient: float) -> None:
    still = replace(table, advantages=torch.zeros_like(table.advantages))
    actual = change_of_entropy(table.logits, still.descent(Shaping(bonus=coefficient), ObjectiveSettings()))
    entropy_grad_sq = table.stats().entropy_grad_sq.view_as(table.logits)[:, 0]
    assert_close(actual, coefficient * table.share * entropy_grad_sq, 1e-9, 1e-14)
    assert (actual >= 0).all()
    average = by_position(still, make_method("repo").shape(still.stats(), coefficient))
    assert_close(average, actual, 1e-9, 1e-12)  # on average it is what REPO adds


@few
@given(TABLES, COEFFICIENTS)
def test_a_token_that_drops_out_of_the_surrogate_keeps_its_bonus(table: Table, coefficient: float) -> None:
    keep = (table.uniform.flatten() > 0.5).double()
    shaping = Shaping(weight=keep, bonus=coefficient)
    actual = change_of_entropy(table.logits, table.descent(shaping, ObjectiveSettings()))
    assert_close(by_position(table, shaping), actual, 1e-9, 1e-12)


@few
@given(
    TABLES,
    st.floats(0.05, 2),
    st.sampled_from(["k2", "k3"]),
    st.sampled_from(["none", "truncated", "masked"]),
    COEFFICIENTS,
)
def test_the_predicted_change_counts_the_reference_and_the_correction_for_the_engine(
    table: Table, penalty: float, estimator: Any, kind: Any, coefficient: float
) -> None:
    """The sum equals the derivative of entropy along the step of the complete loss.

    The correction multiplies neither the bonus nor the KL.
    """
    stats, reference = table.stats(), reference_of(table).flatten()
    generator = torch.Generator().manual_seed(2)
    engine = stats.old_logp + 0.3 * torch.randn(len(stats.logp), generator=generator, dtype=torch.float64)
    objective = ObjectiveSettings(
        surrogate="ppo",
        clip_low=0.2,
        clip_high=0.2,
        importance=ImportanceSettings(kind=kind, cap=1.1),
        kl=KLSettings(coefficient=penalty, estimator=estimator),
    )
    shaping = replace(make_method("repo_r").shape(stats, coefficient), bonus=coefficient)
    step = table.descent(shaping, objective, engine_logp=engine, reference_logp=reference)
    importance, _ = weigh(objective.importance, stats.old_logp - engine, table.data().trajectory)
    no = torch.zeros_like(stats.logp, dtype=torch.bool)
    pull = reference_pull(stats.logp, reference, objective)
    fresh = Fresh(stats, table.weight, engine, no, no, no, reference, None if kind == "none" else importance, pull)
    actual = (table.weight * planned_dh(fresh, shaping)).view_as(table.logits).sum(-1)
    assert_close(actual, change_of_entropy(table.logits, step), 1e-9, 1e-12)
    assert (
        reference_pull(
            stats.logp, reference, objective.model_copy(update={"kl": KLSettings(coefficient=penalty, estimator="k1")})
        )
        is None
    )  # in the advantage already


# --- what clipping withheld -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(METHODS))
@fewer
@given(table=MOVED, coefficient=COEFFICIENTS, kind=st.sampled_from(["none", "truncated"]))
def test_the_forgone_change_is_what_the_step_lacks_for_being_clipped(
    name: str, table: Table, coefficient: float, kind: Any
) -> None:
    stats, eta = table.stats(), 0.7
    shaping = replace(make_method(name).shape(stats, coefficient), clip_low=None, clip_high=None)
    generator = torch.Generator().manual_seed(1)
    engine = stats.old_logp + 0.3 * torch.randn(len(stats.logp), generator=generator, dtype=torch.float64)
    for surrogate in SURROGATES:
        rule = ObjectiveSettings(
            surrogate=surrogate, clip_low=0.1, clip_high=0.15, importance=ImportanceSettings(kind=kind, cap=1.1)
        )
        free = table.descent(shaping, rule.model_copy(update=UNBOUNDED), engine_logp=engine)
        clipped = table.descent(shaping, rule, engine_logp=engine)
        lacking = float(change_of_entropy(table.logits, free - clipped).sum())
        terms, tally = table.loss(table.logits, shaping, rule, engine_logp=engine), Tally()
        tally_update(tally, terms.loss, terms.tokens, stats, shaping, eta * table.weight)
        actual = tally.sums["forgone_high"] + tally.sums["forgone_low"]
        assert actual == pytest.approx(eta * lacking, rel=1e-9, abs=1e-12)


# --- KL to the reference policy ---------------------------------------------------------------------------------------------


def divergence(log_p: torch.Tensor, log_q: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Returns KL(p || q), averaged over the positions."""
    return (share * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()


def descent_of(table: Table, value: str) -> torch.Tensor:
    """Returns minus the exact gradient of KL(pi || ref) or KL(ref || pi); the reference is `old` of a table with another seed."""
    z = table.logits.clone().requires_grad_()
    own, other = z.log_softmax(-1), reference_of(table)
    kl = divergence(*((own, other) if value == "pi || ref" else (other, own)), share=table.share)
    return -torch.autograd.grad(kl, z)[0]


def reference_of(table: Table) -> torch.Tensor:
    return (table.logits + table.advantages.roll(1, 0)).log_softmax(-1)


@few
@given(TABLES, st.floats(0.01, 2))
def test_the_expected_gradient_of_each_estimator_is_the_one_stated(table: Table, coefficient: float) -> None:
    """The gradient is that of KL(pi || ref) for k1 in the advantage and k2 in the loss, and of KL(ref || pi) for k3."""
    reference = reference_of(table).flatten()
    still = replace(table, advantages=torch.zeros_like(table.advantages))
    stated: tuple[tuple[Any, str], ...] = (("k2", "pi || ref"), ("k3", "ref || pi"))
    for estimator, value in stated:
        objective = ObjectiveSettings(kl=KLSettings(coefficient=coefficient, estimator=estimator))
        actual = still.descent(Shaping(), objective, reference_logp=reference)
        assert_close(actual, coefficient * descent_of(table, value), 1e-9, 1e-12)
    objective = ObjectiveSettings(kl=KLSettings(coefficient=coefficient, estimator="k1"))
    rewarded = with_reference(torch.zeros_like(reference), table.old.flatten(), reference, objective)
    in_advantage = replace(table, advantages=rewarded.view_as(table.logits))
    actual = in_advantage.descent(Shaping(), objective, reference_logp=reference)
    assert_close(actual, coefficient * descent_of(table, "pi || ref"), 1e-9, 1e-12)
    change = change_of_entropy(table.logits, actual)
    assert_close(by_position(in_advantage, Shaping()), change, 1e-9, 1e-12)  # and the ledger knows of it


@few
@given(TABLES)
def test_the_values_of_k2_and_k3_and_of_the_old_policy(table: Table) -> None:
    """k3 averages to KL(pi || ref); the ledger's kl, over samples of old, to KL(old || pi)."""
    reference = reference_of(table)
    still = replace(table, advantages=torch.zeros_like(table.advantages))
    loss = still.loss(
        still.logits, Shaping(), ObjectiveSettings(kl=KLSettings(coefficient=0.5)), reference_logp=reference.flatten()
    ).loss
    exact = 0.5 * divergence(still.logits.log_softmax(-1), reference, still.share)
    assert float(loss) == pytest.approx(float(exact), rel=1e-9, abs=1e-14)
    moved = replace(table, old=reference)
    tokens = moved.loss(moved.logits, Shaping(), ObjectiveSettings()).tokens
    exact = divergence(reference, moved.logits.log_softmax(-1), moved.share)
    assert float((moved.weight * tokens["kl"]).sum()) == pytest.approx(float(exact), rel=1e-9, abs=1e-14)
