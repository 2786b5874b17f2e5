"""Estimators against brute force and against their definitions."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.estimators import (
    RunningRegression,
    distinct_correct,
    mean,
    mean_pass_at_k,
    pass_at_k,
    rms,
    spread,
)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_k_subsets_that_hold_a_correct_reply(case: tuple[int, int, int]) -> None:
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
    replies = ["1 + 2", "1  +\n2", "2 + 1", "9 - 9"]
    assert distinct_correct(replies, [True, True, True, False]) == 2
    assert distinct_correct(replies, [True, True, True, False], key=lambda r: "".join(sorted(r.split()))) == 1
    with pytest.raises(ValueError):
        distinct_correct(replies, [True])


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_mean_spread_and_rms_follow_the_statistics_module(values: list[float]) -> None:
    holes = [math.nan, *values, math.inf]
    assert mean(holes) == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert spread(holes) == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6)
    assert rms(holes) == pytest.approx(math.sqrt(statistics.fmean(v * v for v in values)), rel=1e-6, abs=1e-6)


def test_nothing_has_no_mean() -> None:
    assert all(map(math.isnan, (mean([]), spread([1.0]), rms([math.nan]), mean_pass_at_k([], 1))))


PAIRS = st.lists(st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)), min_size=3, max_size=40)


@given(PAIRS.filter(lambda pairs: len({x for x, _ in pairs}) > 1 and len({y for _, y in pairs}) > 1))
def test_running_regression_is_least_squares(pairs: list[tuple[int, int]]) -> None:
    line, (xs, ys) = RunningRegression(), zip(*pairs, strict=True)
    for x, y in pairs:
        line.add(x, y)
    slope, intercept = statistics.linear_regression(xs, ys)
    assert line.slope == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert line.intercept == pytest.approx(intercept, rel=1e-6, abs=1e-6)
    assert line.correlation == pytest.approx(statistics.correlation(xs, ys), rel=1e-6, abs=1e-9)


def test_running_regression_with_decay_is_weighted_least_squares() -> None:
    rng, decay = random.Random(1), 0.8
    pairs = [(rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(25)]
    line = RunningRegression(decay=decay)
    for x, y in pairs:
        line.add(x, y)
    w = [decay ** (len(pairs) - 1 - i) for i in range(len(pairs))]
    mx, my = (sum(a * p[i] for a, p in zip(w, pairs, strict=True)) / sum(w) for i in (0, 1))
    sxy = sum(a * (x - mx) * (y - my) for a, (x, y) in zip(w, pairs, strict=True))
    sxx = sum(a * (x - mx) ** 2 for a, (x, _) in zip(w, pairs, strict=True))
    assert line.slope == pytest.approx(sxy / sxx)


def test_running_regression_resumes_exactly_and_ignores_what_is_not_finite() -> None:
    whole, first, second = RunningRegression(0.9), RunningRegression(0.9), RunningRegression()
    assert math.isnan(whole.slope)
    assert math.isnan(whole.correlation)
    for x, y in [(1.0, 2.0), (math.nan, 1.0), (2.0, 1.0)]:
        whole.add(x, y)
        first.add(x, y)
    second.load_state_dict(first.state_dict())
    for line in (whole, second):
        line.add(5.0, -3.0)
    assert second.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match="slope"):
        second.load_state_dict({**first.state_dict(), "slope": 1.0})
    with pytest.raises(ValueError, match="decay"):
        RunningRegression(decay=0.0)
