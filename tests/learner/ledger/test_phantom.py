"""Phantom clipping: exact cases, and properties against plain counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.ledger.phantom import QUANTILES, phantom_clipping

CLIP = {"clip_low": 0.2, "clip_high": 0.3}
pairs = st.lists(st.tuples(st.floats(-12, 0), st.floats(-2, 2)), min_size=1, max_size=60)


def arrays(tokens: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    reference = np.array([r for r, _ in tokens])
    return reference + np.array([g for _, g in tokens]), reference


def test_an_exact_case() -> None:
    ratios = [1.0, 1.05, 1.15, 1.29, 1.31, 0.95, 0.85, 0.79]
    reference = np.array([-1.0, -1, -1, -5, -1, -1, -5, -5])
    measured = phantom_clipping(reference + np.log(ratios), reference, **CLIP)
    assert (measured.all.tokens, measured.all.outside, measured.all.clipped) == (8, 5 / 8, 2 / 8)
    assert (measured.rare.tokens, measured.rare.outside, measured.rare.clipped) == (3, 1.0, 1 / 3)
    assert measured.sigma == pytest.approx(np.log(ratios).std())
    assert measured.quantiles["q50"] == pytest.approx(np.median(np.log(ratios)))
    assert list(measured.quantiles) == ["q0.1", "q1", "q50", "q99", "q99.9"]


def test_equal_log_probs_are_clipped_nowhere() -> None:
    logp = np.linspace(-9, 0, 30, dtype=np.float32)
    measured = phantom_clipping(logp, logp, clip_low=0.0, clip_high=0.0)
    assert (measured.sigma, measured.all.outside, measured.all.clipped, measured.rare.clipped) == (0, 0, 0, 0)
    assert set(measured.quantiles.values()) == {0.0}


def test_without_rare_tokens_their_shares_are_not_a_number() -> None:
    measured = phantom_clipping(np.array([-1.0]), np.array([-2.0]), **CLIP)  # -2 itself is not rare
    assert measured.rare.tokens == 0
    assert math.isnan(measured.rare.outside)
    assert math.isnan(measured.rare.clipped)


@given(pairs)
def test_shares_are_counts(tokens: list[tuple[float, float]]) -> None:
    logp, reference = arrays(tokens)
    measured = phantom_clipping(logp, reference, **CLIP)
    ratios = [(math.exp(a - b), b < -2.0) for a, b in zip(logp, reference, strict=True)]
    for shares, chosen in ((measured.all, [r for r, _ in ratios]), (measured.rare, [r for r, rare in ratios if rare])):
        assert shares.tokens == len(chosen)
        if chosen:
            assert shares.outside * len(chosen) == pytest.approx(sum(not 0.9 <= r <= 1.1 for r in chosen))
            assert shares.clipped * len(chosen) == pytest.approx(sum(not 0.8 <= r <= 1.3 for r in chosen))


@given(pairs, st.randoms())
def test_the_order_of_tokens_does_not_matter_and_quantiles_are_in_order(
    tokens: list[tuple[float, float]], random: object
) -> None:
    first = phantom_clipping(*arrays(tokens), **CLIP)
    shuffled = list(tokens)
    getattr(random, "shuffle")(shuffled)  # noqa: B009 - hypothesis does not type it
    again = phantom_clipping(*arrays(shuffled), **CLIP)
    assert again.quantiles == first.quantiles
    assert again.sigma == pytest.approx(first.sigma)
    assert list(first.quantiles.values()) == sorted(first.quantiles.values())
    assert list(QUANTILES.values()) == sorted(QUANTILES.values())


@given(pairs, st.floats(-3, 3))
def test_a_common_shift_moves_quantiles_and_not_sigma(tokens: list[tuple[float, float]], shift: float) -> None:
    logp, reference = arrays(tokens)
    before, after = (phantom_clipping(x, reference, **CLIP) for x in (logp, logp + shift))
    assert after.sigma == pytest.approx(before.sigma, abs=1e-9)
    for name, value in before.quantiles.items():
        assert after.quantiles[name] == pytest.approx(value + shift, abs=1e-9)


@pytest.mark.parametrize(
    ("logp", "reference", "expected"),
    [
        ([], [], "no tokens"),
        ([0.0], [0.0, 1.0], r"shape \(1,\) cannot be compared with those of shape \(2,\)"),
        ([0.0, math.nan, -1.0], [0.0, 0.0, -math.inf], "2 of 3 tokens have a log-prob that is not finite"),
    ],
)
def test_what_cannot_be_compared_is_said(logp: list[float], reference: list[float], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        phantom_clipping(np.array(logp), np.array(reference), **CLIP)
