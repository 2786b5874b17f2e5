"""Estimators against brute force and against their definitions."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.stats import (
    distinct_correct,
    fit_line,
    last_third,
    longest,
    mean,
    mean_pass_at_k,
    pass_at_k,
    rms,
    std,
)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_k_subsets_that_hold_a_correct_response(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(itertools.combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(s) < c for s in subsets) / len(subsets), abs=1e-12)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_stable_for_large_counts(case: tuple[int, int, int]) -> None:
    n, c, k = case
    exact = 1 - math.comb(n - c, k) / math.comb(n, k) if math.comb(n - c, k) else 1.0
    assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-9)


def test_pass_at_1_is_the_share_correct_and_pass_at_k_is_unbiased() -> None:
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)
    rng = random.Random(0)
    counts = [(16, sum(rng.random() < 0.1 for _ in range(16))) for _ in range(20_000)]
    assert mean_pass_at_k(counts, 8) == pytest.approx(1 - 0.9**8, abs=0.01)  # the plug-in estimate is 0.52


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_pass_at_k_refuses_counts_that_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


def test_distinct_correct_counts_solutions_once_and_only_correct_ones() -> None:
    responses = ["1 + 2", "1  +\n2", "2 + 1", "9 - 9"]
    assert distinct_correct(responses, [True, True, True, False]) == 2
    assert distinct_correct(responses, [True, True, True, False], key=lambda r: "".join(sorted(r.split()))) == 1
    with pytest.raises(ValueError):
        distinct_correct(responses, [True])


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_mean_std_and_rms_follow_the_statistics_module(values: list[float]) -> None:
    holes = [math.nan, *values, math.inf]
    assert mean(holes) == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert std(holes) == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6)
    assert rms(holes) == pytest.approx(math.sqrt(statistics.fmean(v * v for v in values)), rel=1e-6, abs=1e-6)


def test_nothing_has_no_mean() -> None:
    assert all(map(math.isnan, (mean([]), rms([math.nan]), mean_pass_at_k([], 1), std([]), std([1.0, math.nan]))))


PAIRS = st.lists(st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)), min_size=3, max_size=40)


@given(PAIRS.filter(lambda pairs: len({x for x, _ in pairs}) > 1 and len({y for _, y in pairs}) > 1))
def test_the_fitted_line_is_least_squares(pairs: list[tuple[int, int]]) -> None:
    xs, ys = zip(*pairs, strict=True)
    line = fit_line((*xs, math.nan, 1.0), (*ys, 1.0, math.inf))  # pairs that are not finite do not count
    slope, intercept = statistics.linear_regression(xs, ys)
    assert line.slope == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert line.intercept == pytest.approx(intercept, rel=1e-6, abs=1e-6)
    assert line.correlation == pytest.approx(statistics.correlation(xs, ys), rel=1e-6, abs=1e-9)


def test_a_line_through_too_little_is_nan_and_small_changes_do_not_underflow() -> None:
    assert all(map(math.isnan, (*fit_line([], []), *fit_line([0.1] * 3, [1.0, 2.0, 3.0]))))
    flat = fit_line([1.0, 2.0, 4.0], [0.1] * 3)
    assert flat.slope == pytest.approx(0.0)
    assert math.isnan(flat.correlation)
    assert fit_line([0.0, 1e-90, 2e-90], [0.0, 2e-90, 4e-90]).correlation == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], (0, -1)), ([0.0], (0, -1)), ([1.0], (0, 0)), ([0, 1, 1, 0, 1], (1, 2)), ([1, float("nan"), 1, 1], (2, 3))],
)
def test_the_longest_stretch(flags: list[float], expected: tuple[int, int]) -> None:
    assert longest(flags) == expected


def test_the_last_third_is_rounded_up() -> None:
    assert [list(last_third(range(n))) for n in range(5)] == [[], [0], [1], [2], [2, 3]]
