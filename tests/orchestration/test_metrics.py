"""The table of keys, the reductions, and what a row may hold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.metrics import (
    KEYS,
    Metric,
    Reducer,
    Reduction,
    UnknownMetricError,
    lookup,
    reduce,
    spec_of,
    validate_row,
)


@pytest.mark.parametrize(
    ("key", "family", "env"),
    [
        ("reward/mean", "reward/mean", None),
        ("reward/countdown", "reward/{env}", "countdown"),
        ("eval/gym:chain_sum/pass@16", "eval/{env}/pass@{k}", "gym:chain_sum"),
        ("eval/countdown/pass@1/T=0.3", "eval/{env}/pass@{k}/T={temperature}", "countdown"),
        ("eval/countdown/distinct_correct", "eval/{env}/distinct_correct", "countdown"),
    ],
)
def test_a_key_finds_its_entry(key: str, family: str, env: str | None) -> None:
    found = lookup(key)
    assert found is not None
    assert (found[0], found[1].get("env")) == (family, env)


@pytest.mark.parametrize("key", ["reward/{env}", "eval/a/pass@0", "eval/a/pass@1/T=hot", "reward/a/b", "", "loss "])
def test_a_key_outside_the_table_is_not_found(key: str) -> None:
    assert lookup(key) is None


def test_every_entry_explains_itself() -> None:
    assert all(spec.help and spec.reduction in Reduction for spec in KEYS.values())


def test_an_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(UnknownMetricError, match="Did you mean 'grad_norm'"):
        validate_row({"iteration": 1.0, "gradnorm": 0.1})
    assert spec_of("reward/meen").unit == ""  # any word may be an environment ...
    with pytest.raises(UnknownMetricError, match="'reward/mean'"):
        validate_row({"iteration": 1.0, "reward/meen": 0.1}, envs=["countdown"])  # ... unless they are known
    with pytest.raises(UnknownMetricError, match="'eval/countdown/pass@"):
        validate_row({"iteration": 1.0, "eval/countdwn/pass@1": 0.1}, envs=["countdown"])


def test_a_row_reports_what_is_not_finite_and_needs_an_iteration() -> None:
    row = {"iteration": 1.0, "loss": math.nan, "lr": 1e-4, "ratio/max": math.inf, "reward/countdown": 1.0}
    assert validate_row(row, envs=["countdown"]) == ["loss", "ratio/max"]
    with pytest.raises(ValueError, match="'iteration'"):
        validate_row({"loss": 1.0})


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("mean", 2.0), ("weighted", 2.5), ("sum", 6.0), ("max", 3.0), ("min", 1.0)],
)
def test_each_reduction(reduction: str, expected: float) -> None:
    parts = [Metric(v, w, Reduction(reduction)) for v, w in ((1.0, 1.0), (2.0, 1.0), (3.0, 4.0))]
    assert reduce(parts) == pytest.approx(expected)


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_is_never_hidden(reduction: Reduction, place: int) -> None:
    values = [1.0, 2.0]
    values.insert(place, math.nan)
    assert math.isnan(reduce([Metric(v, 1.0, reduction) for v in values]))


def test_a_rank_without_tokens_does_not_count() -> None:
    parts = [Metric(math.nan, 0.0, Reduction.WEIGHTED), Metric(3.0, 5.0, Reduction.WEIGHTED)]
    assert reduce(parts) == 3.0
    assert math.isnan(reduce(parts[:1]))


def test_reduction_errors_are_sentences() -> None:
    with pytest.raises(ValueError, match="max, mean"):
        reduce([Metric(1.0, reduction=Reduction.MAX), Metric(1.0)])
    with pytest.raises(ValueError, match="no metric"):
        reduce([])
    with pytest.raises(ValueError, match="weight"):
        Metric(1.0, weight=math.nan)


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 50)), min_size=1, max_size=20), st.integers(0, 20))
def test_how_the_ranks_are_cut_does_not_matter(parts: list[tuple[float, int]], cut: int) -> None:
    whole, left, right = Reducer(), Reducer(), Reducer()
    for i, (value, weight) in enumerate(parts):
        for reducer in (whole, left if i < cut else right):
            reducer.add("entropy/exact", value, weight)
            reducer.add("ratio/max", value)
    left.merge(right)
    assert left.row() == pytest.approx(whole.row())
    assert whole.row()["entropy/exact"] == pytest.approx(sum(v * w for v, w in parts) / sum(w for _, w in parts))
    assert whole.row()["ratio/max"] == max(v for v, _ in parts)


def test_a_reducer_refuses_a_key_outside_the_table() -> None:
    with pytest.raises(UnknownMetricError, match="entropy/exact"):
        Reducer().update({"entropie/exact": 1.0})
