"""The division of rows into micro-batches costs the least of all divisions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.microbatches.partition import QUADRATIC, partition, row_cost


def divisions(rows: list[int]) -> Iterator[list[list[int]]]:
    """Yields every way to divide rows into parts, in any order."""
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    for division in divisions(rest):
        yield [[first], *division]
        for i, part in enumerate(division):
            yield [*division[:i], [first, *part], *division[i + 1 :]]


def cost(parts: list[list[int]], overhead: float) -> float:
    return sum(overhead + len(part) * row_cost(max(part)) for part in parts)


def divided(lengths: list[int], overhead: float, slots: int | None) -> list[list[int]]:
    sizes = partition(lengths, [row_cost(n) for n in lengths], overhead=overhead, slots=slots)
    assert sum(sizes) == len(lengths) and all(sizes)
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [lengths[a:b] for a, b in pairwise(ends)]


@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=7), st.floats(0, 900), st.one_of(st.none(), st.integers(1, 2000))
)
def test_no_division_within_the_budget_costs_less(lengths: list[int], overhead: float, slots: int | None) -> None:
    lengths.sort(reverse=True)
    parts = divided(lengths, overhead, slots)
    allowed = [
        other
        for other in divisions(lengths)
        if slots is None or all(len(part) == 1 or len(part) * max(part) <= slots for part in other)
    ]
    assert parts in allowed
    assert cost(parts, overhead) == pytest.approx(min(cost(other, overhead) for other in allowed))


def test_an_overhead_joins_rows_and_padding_parts_them() -> None:
    assert divided([64, 60, 8, 7], 1e6, None) == [[64, 60, 8, 7]]
    assert divided([64, 60, 8, 7], 50.0, None) == [[64, 60], [8, 7]]
    assert divided([64, 60, 8, 7], 0.0, None) == [[64], [60], [8], [7]]
    assert divided([64, 64, 8, 8], 0.1, 100) == [[64], [64], [8, 8]]


def test_a_part_takes_as_many_rows_as_fit() -> None:
    assert divided([10, 10, 10], 1e6, 30) == [[10, 10, 10]]
    assert sorted(map(len, divided([10, 10, 10], 1e6, 29))) == [1, 2]
    assert divided([31, 10, 10, 10], 1e6, 30) == [[31], [10, 10, 10]]


def test_a_division_that_is_found_later_does_not_hide_a_better_one() -> None:
    assert divided([64, 48, 8], 50.0, None) == [[64, 48], [8]]
    assert divided([64, 48, 32, 32], 50.0, None) == [[64, 48], [32, 32]]


def test_a_row_at_the_length_of_the_quadratic_term_costs_twice_its_slots() -> None:
    assert row_cost(int(QUADRATIC)) == 2 * QUADRATIC


def test_nothing_is_divided_into_nothing() -> None:
    assert partition([], [], overhead=1.0) == []
