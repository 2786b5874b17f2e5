"""Rewards by how common a solution is: against their definition, and what they leave as it was."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import group_of, make_trajectory, solved_group

from envs.types import Group, Status, Verdict
from learner.advantages import ADVANTAGES
from learner.batching import informative, no_signal, trajectory_advantages
from learner.diversity.rewards import diverse_rewards, diversified, measure, shares, solution_of, tells_apart
from learner.diversity.settings import DiversitySettings
from learner.types import SignalOf

ON = DiversitySettings.model_validate({})
# (reward, solution or None, whether it is correct); 0/1 rewards, or shaped ones.
Member = tuple[float, str | None, bool]
COEFFICIENTS = st.floats(0.01, 0.99)
BINARY = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=2, max_size=10)  # "": not correct
SHAPED = st.lists(
    st.tuples(st.integers(-8, 12).map(lambda x: x / 4), st.sampled_from(["a", "b", "c", None]), st.booleans()),
    min_size=2,
    max_size=10,
)


def rewards(group: Group) -> list[float]:
    return [t.verdict.reward for t in group.trajectories]


@given(BINARY, COEFFICIENTS)
def test_a_reward_of_one_is_one_minus_the_share_of_the_others_times_one_number(
    names: list[str], coefficient: float
) -> None:
    group = solved_group(names)
    new = rewards(diversified(group, coefficient))
    right = [name for name in names if name]
    raw = [
        1 - coefficient * (right.count(n) - 1) / (len(right) - 1) if n and len(right) > 1 else float(bool(n))
        for n in names
    ]
    scale = len(right) / sum(raw) if right else 1.0
    assert new == pytest.approx([scale * r for r in raw], rel=1e-12)
    assert sum(new) == pytest.approx(len(right))
    # Under GRPO that number does nothing: its advantages are those of 1 - coefficient * share itself, but for its epsilon.
    spread = float(np.std(raw))
    grpo = ADVANTAGES["grpo"].baseline
    assert grpo(np.array(new)) == pytest.approx(grpo(np.array(raw)), abs=2e-6 * len(names) / max(spread, 1e-3))


@pytest.mark.parametrize("name", ADVANTAGES)
@given(correct=st.lists(st.booleans(), min_size=2, max_size=12), coefficient=COEFFICIENTS)
def test_where_a_task_has_one_solution_advantages_are_bit_for_bit_the_same(
    name: str, correct: list[bool], coefficient: float
) -> None:
    groups = [solved_group(["a" if c else "" for c in correct]), solved_group(["b", "b", ""])]
    new = [diversified(g, coefficient) for g in groups]
    before, after = (trajectory_advantages(gs, ADVANTAGES[name]) for gs in (groups, new))
    assert before.tolist() == after.tolist()


def test_without_the_number_grpo_would_differ_by_its_epsilon_alone_and_rloo_by_the_coefficient() -> None:
    plain, raw = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.2, 0.2, 0.0, 0.0])  # one solution, coefficient 0.8
    grpo, rloo = ADVANTAGES["grpo"].baseline, ADVANTAGES["rloo"].baseline
    assert grpo(raw) == pytest.approx(grpo(plain), rel=1e-5)
    assert grpo(raw)[0] < grpo(plain)[0]
    assert rloo(raw) == pytest.approx(0.2 * rloo(plain))


@given(SHAPED, COEFFICIENTS)
def test_correct_beats_wrong_where_it_did_and_the_sum_stays(members: list[Member], coefficient: float) -> None:
    group = group_of(members)
    new, floor = rewards(diversified(group, coefficient)), max((r for r, _, c in members if not c), default=0.0)
    assert sum(new) == pytest.approx(sum(r for r, _, _ in members), abs=1e-9)
    for (reward, solution, correct), value in zip(members, new, strict=True):
        if not correct or solution is None or reward <= floor:
            assert value == reward
        else:
            assert value > floor
    # So the responses that are not correct get from a group's mean what they got before.
    for name in ("rloo", "dr_grpo"):
        before, after = (ADVANTAGES[name].baseline(np.array(r)) for r in (rewards(group), new))
        wrong = [i for i, (_, _, correct) in enumerate(members) if not correct]
        assert after[wrong] == pytest.approx(before[wrong], abs=1e-9)


@given(SHAPED, COEFFICIENTS, st.data())
def test_the_order_of_responses_and_the_names_of_solutions_do_not_matter(
    members: list[Member], coefficient: float, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(members))))
    base = np.array(rewards(diversified(group_of(members), coefficient)))
    moved = rewards(diversified(group_of([members[i] for i in order]), coefficient))
    assert moved == pytest.approx(base[list(order)], abs=1e-12)
    names = {"a": "c", "b": "a", "c": "b", None: None}
    renamed = group_of([(r, names[s], c) for r, s, c in members])
    assert rewards(diversified(renamed, coefficient)) == base.tolist()


@given(BINARY, COEFFICIENTS)
def test_a_rarer_solution_is_worth_more(names: list[str], coefficient: float) -> None:
    new = rewards(diversified(solved_group(names), coefficient))
    for (n, r), (m, s) in itertools.combinations([(n, r) for n, r in zip(names, new, strict=True) if n], 2):
        assert (names.count(n) < names.count(m)) == (r > s)


def test_by_hand() -> None:
    # Shares 1/2, 1/2, 0; factors .6, .6, 1 at .8; their mean is 2.2 / 3.
    new = rewards(diversified(solved_group(["a", "a", "b", ""]), 0.8))
    assert new == pytest.approx([1.8 / 2.2, 1.8 / 2.2, 3 / 2.2, 0])
    # Margins over .5 are .5, .5 and 1: the sum 2 stays.
    new = rewards(
        diversified(group_of([(1.0, "a", True), (1.0, "a", True), (1.5, "b", True), (0.5, None, False)]), 0.8)
    )
    each = 2 / (0.5 * 0.6 + 0.5 * 0.6 + 1)
    assert new == pytest.approx([0.5 + 0.3 * each, 0.5 + 0.3 * each, 0.5 + each, 0.5])


def test_tiny_and_huge_margins_stay_finite() -> None:
    for size in (5e-324, 1e-300, 1e300):
        assert np.isfinite(diverse_rewards(np.full(3, size), np.full(3, size), ["a", "a", "b"], 0.9)).all()


def test_what_was_not_scored_or_has_no_solution_is_neither_counted_nor_changed() -> None:
    whole = solved_group(["a", "a", "b", ""])
    lost = replace(make_trajectory(seed=9), verdict=Verdict(9.0, True, "b", Status.ERROR))
    also = replace(make_trajectory(seed=7), verdict=Verdict(0.9, False, None, Status.TIMEOUT))
    nameless = replace(make_trajectory(seed=8), verdict=Verdict(1.0, True))
    more = Group(whole.prompt, (*whole.trajectories, lost, also, nameless))
    assert rewards(diversified(more, 0.8)) == [*rewards(diversified(whole, 0.8)), 9.0, 0.9, 1.0]
    assert measure([more]) == measure([whole])


def test_texts_are_compared_without_case_and_white_space_where_that_is_asked_for() -> None:
    def said(text: str, solution: str | None = None) -> object:
        t = replace(make_trajectory(), texts=("first", text), verdict=Verdict(1.0, True, solution))
        return solution_of(t, True), solution_of(t)

    assert said("  The\nANSWER   is 4 ") == ("the answer is 4", None)
    assert said("anything", "1+3") == ("1+3", "1+3")
    wrong = replace(make_trajectory(), texts=("x",))
    assert solution_of(wrong, True) is None


@pytest.mark.parametrize("by", ["reward", "verdict", "correct"])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "a", "b"], True),  # all correct, unequally frequent: diversity alone tells them apart
        (["a", "b", "c"], False),
        (["a", "a", "a"], False),
        (["a", "a", "b", "b"], False),
        (["", "", ""], False),
        (["a", ""], True),
    ],
)
def test_dynamic_sampling_keeps_what_diversity_trains_on(names: list[str], expected: bool, by: SignalOf) -> None:
    group = solved_group(names)
    assert informative(group, by, ON) == expected
    assert trajectory_advantages([diversified(group, 0.3)], ADVANTAGES["rloo"]).any() == expected
    assert informative(group, by) == (len({bool(n) for n in names}) > 1)
    assert no_signal([group], ON) == (not expected)


@given(SHAPED, COEFFICIENTS)
def test_a_group_is_told_apart_where_a_coefficient_changes_its_rewards(
    members: list[Member], coefficient: float
) -> None:
    group = group_of(members)
    assert tells_apart(group) == (rewards(diversified(group, coefficient)) != rewards(group))


# --- the effective number of solutions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [(0.5, 0.3, 0.2), (0.9, 0.1, 0.0)])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_collision_probability_is_unbiased(p: tuple[float, ...], size: int) -> None:
    """Over all draws of `size` correct responses, the mean share is sum p^2."""
    total = 0.0
    for draw in itertools.product(range(len(p)), repeat=size):
        total += math.prod(p[i] for i in draw) * float(shares([str(i) for i in draw]).mean())
    assert total == pytest.approx(sum(x * x for x in p))


def test_collisions_are_averaged_over_groups_that_have_two_correct_responses() -> None:
    groups = [solved_group(["a", "a", "b"]), solved_group(["a", "a"]), solved_group(["a", ""]), solved_group(["", ""])]
    found = measure(groups)  # 1/3 and 1
    assert found.effective == pytest.approx(1 / ((1 / 3 + 1) / 2))
    assert found.shared == pytest.approx(4 / 5)
    assert (
        measure([solved_group(["a", "b", "c"]), solved_group(["a", "b"])]).effective == 4.0
    )  # as many as there are pairs
    nothing = measure([solved_group(["a", ""])])
    assert math.isnan(nothing.effective) and math.isnan(nothing.shared)


@given(st.integers(1, 6), st.integers(2, 4))
def test_equally_frequent_solutions_are_counted(kinds: int, each: int) -> None:
    """Up to what pairs without replacement take away: 1 / N of the chance to meet oneself."""
    names = [str(k) for k in range(kinds) for _ in range(each)]
    n = len(names)
    assert measure([solved_group(names)]).effective == pytest.approx((n - 1) / (each - 1))
