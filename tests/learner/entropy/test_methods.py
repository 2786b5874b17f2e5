"""Entropy methods: exact and tabular, in float64, against the distribution itself."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.builders import assert_close, loss_data, make_stats
from torch import Tensor

from learner.entropy import build
from learner.entropy.target import TargetSettings
from learner.ledger.predicted import predicted_dh
from learner.logprobs import token_logprobs
from learner.objective import token_loss
from learner.settings import ObjectiveSettings
from learner.types import LossData, Shaping, TokenStats

# What each kind needs beside its name.
SETTINGS: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in build.METHODS}


def make_method(kind: str, **settings: Any) -> Any:
    return build.METHODS[kind](build.parse(build.METHODS, {**SETTINGS[kind], **settings}, "method"))


def table(logits: Tensor, advantages: Tensor) -> TokenStats:
    """Returns statistics with every token of one softmax position, as if each had been sampled. float64 [V]"""
    logp = logits.log_softmax(-1)
    p = logp.exp()
    entropy = -(p * logp).sum()
    kappa = (p * p * (logp + entropy)).sum()
    entropy_grad_sq = (p * (logp + entropy)).square().sum()
    entropy, kappa, entropy_grad_sq = (x.expand_as(logp) for x in (entropy, kappa, entropy_grad_sq))
    uniform, env = torch.rand(len(logp)).double(), torch.zeros(len(logp)).long()
    return TokenStats(logp, entropy, kappa, entropy_grad_sq, logp, advantages, uniform, env, p)


def expected_dh(stats: TokenStats, shaped: Tensor | None = None) -> float:
    """Returns the expectation over a ~ pi of the ledger's per-token change of entropy."""
    return float((stats.logp.exp() * predicted_dh(stats, Shaping(advantages=shaped))).sum())


LOGITS = st.integers(2, 8).flatmap(
    lambda v: st.tuples(
        st.lists(st.floats(-4, 4), min_size=v, max_size=v), st.lists(st.floats(-3, 3), min_size=v, max_size=v)
    )
)


def tensors(case: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    return torch.tensor(case[0], dtype=torch.float64), torch.tensor(case[1], dtype=torch.float64)


# --- how entropy moves --------------------------------------------------------------------------------------------------


@given(LOGITS)
def test_the_ledgers_dh_is_unbiased(case: tuple[list[float], list[float]]) -> None:
    """sum_a pi_a dh(a) = -sum_a pi_a^2 (A_a - abar) L_a: exact without A being centred."""
    stats = table(*tensors(case))
    p = stats.logp.exp()
    terms = -p * p * (stats.advantages - (p * stats.advantages).sum()) * stats.centred
    # relative to the size of what is summed: the sum itself may cancel
    size = float((p * p * stats.advantages.abs().max() * stats.centred.abs()).sum())
    assert expected_dh(stats) == pytest.approx(float(terms.sum()), rel=1e-10, abs=1e-10 * size + 1e-18)


@given(LOGITS)
def test_it_is_the_derivative_of_entropy_along_a_policy_gradient_step(case: tuple[list[float], list[float]]) -> None:
    logits, advantages = tensors(case)
    z = logits.clone().requires_grad_()
    (z.softmax(-1) * advantages).sum().backward()
    assert z.grad is not None
    eps = 1e-4

    def entropy(step: float) -> float:
        log_p = (logits + step * z.grad).log_softmax(-1)  # type: ignore[operator]
        return -float((log_p.exp() * log_p).sum())

    slope = (8 * (entropy(eps) - entropy(-eps)) - (entropy(2 * eps) - entropy(-2 * eps))) / (12 * eps)
    assert expected_dh(table(logits, advantages)) == pytest.approx(slope, rel=1e-6, abs=1e-9)


@given(LOGITS)
def test_the_centred_log_prob_has_mean_zero_under_the_policy(case: tuple[list[float], list[float]]) -> None:
    stats = table(*tensors(case))
    assert float((stats.logp.exp() * stats.centred).sum()) == pytest.approx(0, abs=1e-12)


# --- REPO ---------------------------------------------------------------------------------------------------------------


@given(LOGITS, st.floats(1e-4, 10))
def test_repo_always_raises_entropy_and_by_the_stated_amount(
    case: tuple[list[float], list[float]], coefficient: float
) -> None:
    stats = table(*tensors(case))
    shaping = make_method("repo").shape(stats, coefficient)
    gain = expected_dh(stats, shaping.advantages) - expected_dh(stats)
    square = float((stats.logp.exp() ** 2 * stats.centred**2).sum())
    assert gain == pytest.approx(coefficient * square, rel=1e-9, abs=1e-12)
    if square > 1e-9:
        assert gain > 0
        down = make_method("repo").shape(stats, -coefficient)
        assert expected_dh(stats, down.advantages) < expected_dh(stats)


@pytest.mark.parametrize("centred", [True, False])
def test_repo_r_raises_entropy_in_most_random_cases(centred: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    method, cases, raised = make_method("repo_r", centred=centred), 1000, 0
    for _ in range(cases):
        v = int(torch.randint(2, 12, (1,), generator=generator))
        logits, advantages = torch.randn(2, v, generator=generator, dtype=torch.float64)
        advantages -= (2 * logits).softmax(
            -1
        ) @ advantages  # the raw form needs advantages of mean zero more than the centred
        stats = table(2 * logits, advantages)
        raised += expected_dh(stats, method.shape(stats, 0.05).advantages) > expected_dh(stats)
    assert raised / cases > 0.95  # not "always": see the next test


def test_repo_r_fails_where_it_is_known_to_fail() -> None:
    """Uncentred: only the likeliest token carries advantage. Centred: a token a little likelier than the average one."""
    sharp = table(torch.tensor([0.6, 0.2, 0.1, 0.1]).double().log(), torch.tensor([1.0, 0.0, 0.0, 0.0]).double())
    raw, centred = (make_method("repo_r", centred=c).shape(sharp, 0.05).advantages for c in (False, True))
    assert expected_dh(sharp, raw) < expected_dh(sharp) < expected_dh(sharp, centred)

    p = torch.tensor([0.5, 0.12, *[0.01] * 38], dtype=torch.float64)
    second = torch.zeros(40, dtype=torch.float64)
    second[1] = 1.0
    stats = table(p.log(), second)
    assert 0 < p[1] * stats.centred[1] < stats.kappa[1]
    assert expected_dh(stats, make_method("repo_r").shape(stats, 0.05).advantages) < expected_dh(stats)


@given(LOGITS, st.floats(-50, 50), st.booleans())
def test_repo_r_follows_its_formula_and_never_flips_an_advantage(
    case: tuple[list[float], list[float]], coefficient: float, centred: bool
) -> None:
    stats = table(*tensors(case))
    shaped = make_method("repo_r", centred=centred).shape(stats, coefficient).advantages
    assert shaped is not None
    assert (shaped * stats.advantages >= 0).all()
    surprise = stats.centred if centred else stats.logp
    for a, x, value in zip(stats.advantages.tolist(), surprise.tolist(), shaped.tolist(), strict=True):
        factor = 1 - coefficient * x if a > 0 else 1 + coefficient * x
        assert value == pytest.approx(a * max(0.0, factor), rel=1e-12, abs=1e-12)


def test_repo_r_without_a_clamp_in_reach_is_a_minus_beta_l_with_beta_proportional_to_the_advantage() -> None:
    stats = make_stats(50)
    shaping = make_method("repo_r").shape(stats, 0.01)
    assert_close(shaping.advantages, stats.advantages - 0.01 * stats.advantages.abs() * (stats.logp + stats.entropy))
    assert shaping.touched is not None
    assert shaping.touched.tolist() == (stats.advantages != 0).tolist()


@pytest.mark.parametrize("kind", ["repo", "repo_r"])
def test_raw_log_probs_are_a_choice_and_change_the_step_size(kind: str) -> None:
    stats = make_stats(400)
    centred, raw = (make_method(kind, centred=c).shape(stats, 0.05).advantages for c in (True, False))
    assert centred is not None
    assert raw is not None
    assert not torch.equal(centred, raw)
    up, down = stats.advantages > 0, stats.advantages < 0
    if kind == "repo_r":  # log pi < 0: every A > 0 grows, every A < 0 shrinks
        assert (raw[up] > stats.advantages[up]).all()
        assert (raw[down] > stats.advantages[down]).all()
    assert (raw >= stats.advantages).all()
    assert (centred < stats.advantages).any()


@pytest.mark.parametrize("kind", ["repo", "repo_r", "repo_d"])
def test_a_coefficient_of_zero_changes_no_advantage(kind: str) -> None:
    stats = make_stats(20)
    assert torch.equal(make_method(kind).shape(stats, 0.0).advantages, stats.advantages)


# --- bonus, clips -------------------------------------------------------------------------------------------------------


def test_the_bonus_adds_the_gradient_of_the_exact_entropy() -> None:
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).double()
    coefficient, weight = 0.3, torch.full((6,), 1 / 6)
    z = logits.clone().requires_grad_()
    entropy = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)
    (-coefficient * entropy).mean().backward()

    hidden = logits.float().requires_grad_()  # an identity head: the hidden states are the logits
    logp, exact, *_ = token_logprobs(hidden, torch.eye(9), torch.zeros(6, dtype=torch.long))
    zero = torch.zeros(6)
    stats = TokenStats(logp.detach(), exact.detach(), zero, zero, logp.detach(), zero, zero, zero.long(), zero)
    shaping = make_method("bonus").shape(stats, coefficient)
    terms = token_loss(logp, exact, loss_data(stats, weight), shaping, ObjectiveSettings())
    terms.loss.backward()
    assert hidden.grad is not None
    assert z.grad is not None
    assert_close(hidden.grad, z.grad, 1e-4, 1e-7)
    assert shaping.touched is None  # it acts on every token


@pytest.mark.parametrize("kind", ["clip_higher", "adapo"])
@given(seed=st.integers(0, 200), coefficient=st.floats(0, 1))
def test_clip_methods_widen_the_upper_range_and_count_the_tokens_at_it(
    kind: str, seed: int, coefficient: float
) -> None:
    stats = make_stats(30, seed)
    shaping = make_method(kind).shape(stats, coefficient)
    assert shaping.clip_high == coefficient
    assert shaping.touched is not None
    for i, touched in enumerate(shaping.touched.tolist()):
        ratio = float((stats.logp[i] - stats.old_logp[i]).exp())
        if abs(ratio - 1 - coefficient) > 1e-12:
            assert touched == (float(stats.advantages[i]) > 0 and ratio > 1 + coefficient)
    plain = (stats.logp, stats.entropy, loss_data(stats))
    terms = token_loss(*plain, shaping, ObjectiveSettings())
    assert terms.tokens["clipped_high"].tolist() == shaping.touched.tolist()
    assert float(terms.loss) == float(token_loss(*plain, Shaping(), ObjectiveSettings(clip_high=coefficient)).loss)


def test_clip_methods_need_the_surrogate_that_clips() -> None:
    clips = {"clip_higher", "adapo", "lower_clip"}
    assert {k for k, m in build.METHODS.items() if m.surrogates is not None} == clips
    assert all(build.METHODS[k].surrogates == {"ppo", "gspo", "cispo"} for k in clips)


@given(seed=st.integers(0, 200), coefficient=st.floats(0.2, 20))
def test_lower_clip_narrows_the_lower_range_and_counts_the_tokens_at_it(seed: int, coefficient: float) -> None:
    stats = make_stats(30, seed)
    shaping = make_method("lower_clip").shape(stats, coefficient)
    assert shaping.clip_low == pytest.approx(0.2 / coefficient)
    plain = (stats.logp, stats.entropy, loss_data(stats))
    terms = token_loss(*plain, shaping, ObjectiveSettings())
    assert shaping.touched is not None
    assert terms.tokens["clipped_low"].tolist() == shaping.touched.tolist()
    own = token_loss(*plain, Shaping(), ObjectiveSettings(clip_low=shaping.clip_low))
    assert float(terms.loss) == float(own.loss)
    each = make_method("lower_clip").shape(stats, torch.full((30,), coefficient, dtype=stats.logp.dtype))
    assert float(token_loss(*plain, each, ObjectiveSettings()).loss) == pytest.approx(float(terms.loss))


@given(seed=st.integers(0, 200), coefficient=st.floats(-3, 3))
def test_entrocraft_weakens_one_sign_of_the_advantages(seed: int, coefficient: float) -> None:
    stats = make_stats(30, seed)
    shaping = make_method("entrocraft").shape(stats, coefficient)
    assert shaping.advantages is not None
    assert shaping.touched is not None
    for a, shaped, touched in zip(
        stats.advantages.tolist(), shaping.advantages.tolist(), shaping.touched.tolist(), strict=True
    ):
        weaker = a * coefficient > 0  # below the target the positive ones, above it the negative ones
        assert shaped == pytest.approx(a * max(0.0, 1.0 - abs(coefficient)) if weaker else a)
        assert touched == (weaker and shaped != a)


def test_entrocraft_that_nothing_switches_is_refused() -> None:
    method = build.parse(build.METHODS, {"kind": "entrocraft"}, "method")
    for given_, refused in (({}, True), ({"value": 0.0}, True), ({"value": 0.5}, False)):
        fixed = build.parse(build.CONTROLLERS, {"kind": "fixed", **given_}, "controller")
        with pytest.raises(ValueError, match="entrocraft with a coefficient fixed at 0") if refused else nullcontext():
            build.build(method, fixed, TargetSettings())


def test_no_control_changes_nothing() -> None:
    shaping = make_method("none").shape(make_stats(3), 0.0)
    assert replace(shaping, touched=None) == Shaping()
    assert shaping.touched is not None
    assert not shaping.touched.any()  # no coefficient, no token affected


@pytest.mark.parametrize(
    "kind", ["bonus", "repo", "repo_r", "repo_d", "clip_higher", "adapo", "lower_clip", "entrocraft"]
)
def test_every_coefficient_is_oriented_towards_more_entropy(kind: str) -> None:
    """A policy-gradient step on softmax logits with a higher coefficient leaves at least as much entropy."""
    generator = torch.Generator().manual_seed(3)
    method = make_method(kind)
    ends: list[list[float]] = []
    for _ in range(40):
        logits = torch.randn(6, generator=generator, dtype=torch.float64)
        old = (logits + 0.5 * torch.randn(6, generator=generator, dtype=torch.float64)).log_softmax(-1)
        advantages = (logits.softmax(-1) > 0.25).double() - 0.3  # the likely tokens are the good ones
        ends.append([])
        for coefficient in (0.05, 0.5):
            z = logits.clone().requires_grad_()
            logp = z.log_softmax(-1)
            entropy = -(logp.exp() * logp).sum().expand(6)
            stats = replace(table(logits, advantages), old_logp=old)
            data = LossData(old, advantages, old.exp(), torch.arange(6))
            terms = token_loss(logp, entropy, data, method.shape(stats, coefficient), ObjectiveSettings())
            terms.loss.backward()
            assert z.grad is not None
            after = (logits - 0.05 * z.grad).log_softmax(-1)
            ends[-1].append(-float((after.exp() * after).sum()))
    low, high = np.array(ends).mean(0)
    assert high > low if kind not in ("clip_higher", "adapo") else high != low
