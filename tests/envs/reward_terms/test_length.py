"""Tests length terms: values worked out by hand, and properties of any numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.reward_terms import length

TOKENS = st.integers(0, 5000)
ENDS = st.tuples(st.integers(0, 2000), st.integers(1, 2000)).map(lambda pair: (pair[0], pair[0] + pair[1]))
VALUE = st.floats(-5, 5)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0), (12288, 0), (16384, 0), (16385, -1 / 4096), (18432, -0.5), (20480, -1), (20481, -1), (99999, -1)],
)
def test_overlong_is_the_published_table(tokens: int, expected: float) -> None:
    """DAPO, eq. 13, with the numbers of its section 4.1: 16,384 tokens expected, 4,096 more as the buffer."""
    assert length.overlong(tokens, 20480, 4096) == pytest.approx(expected, abs=1e-12)


@given(TOKENS, st.integers(1, 3000), st.data())
def test_overlong_is_the_three_cases_of_the_equation(tokens: int, limit: int, data: st.DataObject) -> None:
    buffer = data.draw(st.integers(1, limit))
    if tokens <= limit - buffer:
        expected = 0.0
    elif tokens <= limit:
        expected = ((limit - buffer) - tokens) / buffer
    else:
        expected = -1.0
    assert length.overlong(tokens, limit, buffer) == pytest.approx(expected, abs=1e-12)
    assert length.overlong(tokens + 1, limit, buffer) <= length.overlong(tokens, limit, buffer)


@given(TOKENS, ENDS)
def test_progress_begins_and_ends_where_it_is_told(tokens: int, ends: tuple[int, int]) -> None:
    free, full = ends
    share = length.progress(tokens, free, full)
    assert 0.0 <= share <= 1.0
    assert (share == 0.0) == (tokens <= free)
    assert (share == 1.0) == (tokens >= full)
    if free <= tokens <= full:
        assert free + share * (full - free) == pytest.approx(tokens)


@given(VALUE, VALUE, st.floats(0, 1), st.sampled_from(["linear", "cosine"]))
def test_both_shapes_go_from_the_one_value_to_the_other(
    start: float, end: float, share: float, shape: length.Shape
) -> None:
    assert length.between(start, end, 0.0, shape) == pytest.approx(start)
    assert length.between(start, end, 1.0, shape) == pytest.approx(end)
    value = length.between(start, end, share, shape)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9
    # the way back is the way there, mirrored
    assert value + length.between(start, end, 1.0 - share, shape) == pytest.approx(start + end, abs=1e-9)


@given(st.floats(0, 1))
def test_the_cosine_is_the_published_one(share: float) -> None:
    """CosFn(t, T, low, high) = low + (high - low)(1 + cos(t pi / T)) / 2: high at t = 0, low at t = T."""
    low, high = -1.0, 2.0
    expected = low + (high - low) / 2 * (1 + math.cos(share * math.pi))
    assert length.between(high, low, share, "cosine") == pytest.approx(expected)


def test_the_cosine_is_flat_at_the_ends_and_the_line_is_not() -> None:
    assert length.between(0, -1, 0.25, "linear") == pytest.approx(-0.25)
    assert length.between(0, -1, 0.25, "cosine") == pytest.approx(-(1 - math.sqrt(0.5)) / 2)
    assert length.between(0, -1, 0.01, "cosine") > -0.001 > length.between(0, -1, 0.01, "linear")


@given(VALUE, st.floats(0.1, 3), VALUE)
def test_a_score_is_scaled_then_shifted_then_cut(score: float, scale: float, shift: float) -> None:
    free = length.normalised(score, scale, shift)
    assert free == pytest.approx(scale * score + shift)
    assert length.normalised(score, scale, shift, -0.5, 0.5) == max(-0.5, min(0.5, free))


@given(st.floats(-10, 10), st.floats(0.1, 10), st.floats(0, 1))
def test_a_judges_score_becomes_a_share(low: float, width: float, share: float) -> None:
    high = low + width
    score = min(max(low + share * width, low), high)
    assert length.rescaled(score, low, high) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("score", [-0.01, 10.01, math.nan, math.inf])
def test_a_score_outside_its_scale_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="is not within 0 to 10"):
        length.rescaled(score, 0, 10)
