"""Units: every response once, prompts shared where there is room, and work that is divided evenly among ranks."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from learner.microbatches import units as module
from learner.microbatches.partition import row_cost
from learner.microbatches.units import Member, deal, saved, shared_units, single_units


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    """Draws responses to up to four prompts, which may have one token alone."""
    prompts = [(k,) * draw(st.integers(1, 30)) for k in range(4)]
    chosen = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=24))
    return [Member(3 * i, len(prompts[k]) + own, prompts[k]) for i, (k, own) in enumerate(chosen)]


@given(members(), st.integers(1, 5), st.integers(1, 200))
def test_every_trajectory_is_in_one_unit_within_the_slots(found: list[Member], ranks: int, slots: int) -> None:
    by_index = {m.trajectory: m for m in found}
    made = shared_units(found, ranks, slots)
    assert sorted(i for unit in made for i in unit.members) == sorted(by_index)
    for unit in made:
        own = [by_index[i] for i in unit.members]
        assert len({m.prompt for m in own}) == 1
        assert unit.skipped == (0, *[len(own[0].prompt) - 1] * (len(own) - 1))
        assert unit.slots == sum(m.tokens - n for m, n in zip(own, unit.skipped, strict=True))
        assert unit.slots <= slots or len(own) == 1
        assert math.isclose(unit.cost, sum(row_cost(m.tokens - n, n) for m, n in zip(own, unit.skipped, strict=True)))
        assert len(own) == 1 or len(own[0].prompt) > 1  # there is nothing to share of one token, which stays
    assert saved(made, found) >= 0


@given(members(), st.integers(2, 5))
def test_no_rank_has_more_to_do_than_with_nothing_shared(found: list[Member], ranks: int) -> None:
    def slowest(units: list[module.Unit]) -> float:
        return max(sum(u.cost for u in share) for share in deal(units, ranks))

    assert slowest(shared_units(found, ranks, 10_000)) <= slowest(single_units(found)) * (1 + 1e-12)


def test_one_rank_has_each_prompt_once() -> None:
    found = [Member(i, 100 + 5 * (i % 3), (i // 8,) * 90) for i in range(16)]
    made = shared_units(found, 1, 10_000)
    assert [len(unit.members) for unit in made] == [8, 8]
    assert saved(made, found) == 14 * 89 / sum(m.tokens for m in found)
    assert saved(single_units(found), found) == 0
    assert saved([], []) == 0


def test_a_prompt_of_many_responses_is_divided_among_ranks() -> None:
    found = [Member(i, 60, (1,) * 20) for i in range(64)]
    shares = deal(shared_units(found, 4, 10_000), 4)
    loads = [sum(unit.slots for unit in share) for share in shares]
    assert max(loads) < 1.1 * min(loads)
    assert sum(loads) < 64 * 60 * 0.75  # and its prompt is still shared within them


def test_a_response_whose_mask_would_be_large_stands_alone() -> None:
    long = Member(0, 5000, (1,) * 1000)
    assert [len(u.members) for u in shared_units([long, long._replace(trajectory=1)], 1, 100_000)] == [1, 1]
    short = [Member(i, 1500, (1,) * 1000) for i in range(2)]
    assert [len(u.members) for u in shared_units(short, 1, 100_000)] == [2]


def test_a_rank_that_has_least_to_do_is_dealt_to_first_by_number_then_by_place() -> None:
    shares = deal(single_units([Member(i, n, (i,)) for i, n in enumerate((9, 9, 4, 4, 4))]), 3)
    assert [[u.members[0] for u in share] for share in shares] == [[0], [1], [2, 3, 4]]
