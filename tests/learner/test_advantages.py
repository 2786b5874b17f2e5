"""Group baselines against their definitions, and what leaves them unchanged."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import make_trajectory

from envs.types import Group, Status
from learner.advantages import ADVANTAGES, Advantage, grpo, leave_one_out, plain, returns_to_go, whitened
from learner.batching import no_signal, trajectory_advantages, turn_advantages
from learner.settings import BATCH_BASELINES

REWARDS = st.lists(st.integers(-8, 8).map(lambda x: x / 4), min_size=2, max_size=12)
NAMES = sorted(name for name, a in ADVANTAGES.items() if name not in BATCH_BASELINES)  # those with a group baseline


@given(REWARDS)
def test_grpo_is_the_standard_score_of_the_group(rewards: list[float]) -> None:
    mean, std = statistics.fmean(rewards), statistics.pstdev(rewards)
    assert grpo(np.array(rewards)) == pytest.approx([(r - mean) / (std + 1e-6) for r in rewards], abs=1e-9)


@given(REWARDS, st.sampled_from(["rloo", "loop"]))
def test_leave_one_out_subtracts_the_mean_of_the_others(rewards: list[float], name: str) -> None:
    others = [statistics.fmean(rewards[:i] + rewards[i + 1 :]) for i in range(len(rewards))]
    expected = [r - b for r, b in zip(rewards, others, strict=True)]
    assert ADVANTAGES[name].baseline(np.array(rewards)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@given(rewards=REWARDS, shift=st.integers(-16, 16), data=st.data())
def test_a_shift_changes_nothing_and_order_is_kept(
    name: str, rewards: list[float], shift: int, data: st.DataObject
) -> None:
    advantage = ADVANTAGES[name].baseline
    base = advantage(np.array(rewards))
    assert advantage(np.array(rewards) + shift) == pytest.approx(base, abs=1e-9)
    order = data.draw(st.permutations(range(len(rewards))))
    assert advantage(np.array(rewards)[order]) == pytest.approx(base[order], abs=1e-9)
    assert base.sum() == pytest.approx(0, abs=1e-9)


@given(REWARDS.filter(lambda r: len(set(r)) > 1), st.sampled_from([0.5, 2.0, 10.0]))
def test_only_grpo_forgets_the_scale(rewards: list[float], scale: float) -> None:
    r = np.array(rewards)
    assert grpo(scale * r) == pytest.approx(grpo(r), rel=1e-4, abs=1e-9)
    assert leave_one_out(scale * r) == pytest.approx(scale * leave_one_out(r), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@given(reward=st.floats(-1e9, 1e9), size=st.integers(2, 40))
def test_equal_rewards_give_exactly_zero(name: str, reward: float, size: int) -> None:
    assert not ADVANTAGES[name].baseline(np.full(size, reward)).any()


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
    st.lists(st.integers(-4, 4), min_size=3, max_size=3),
    st.integers(2, 4),
)
def test_leave_one_out_is_an_unbiased_policy_gradient(weights: list[int], rewards: list[int], size: int) -> None:
    """E over all groups of (1/G) sum_i A_i grad log pi(a_i) is the exact gradient of E[r], here on softmax logits."""
    pi, r = np.array(weights) / sum(weights), np.array(rewards[: len(weights)], np.float64)
    exact = pi * (r - pi @ r)
    actual = np.zeros(len(pi))
    for group in itertools.product(range(len(pi)), repeat=size):
        a = leave_one_out(r[list(group)])
        scores = np.eye(len(pi))[list(group)] - pi
        actual += np.prod(pi[list(group)]) * (a @ scores) / size
    assert actual == pytest.approx(exact, abs=1e-12)


def test_one_response_has_no_others_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="at least 2 responses per prompt, not 1"):
        leave_one_out(np.array([1.0]))


def test_advantages_of_several_groups_follow_one_another_and_silent_groups_are_counted() -> None:
    from support.builders import make_group

    groups = [make_group([0, 1, 1]), make_group([1, 1]), make_group([0, 0.5])]
    actual = trajectory_advantages(groups, Advantage(leave_one_out))
    assert actual == pytest.approx([-1, 0.5, 0.5, 0, 0, -0.5, 0.5])
    assert no_signal(groups) == 1


def test_dr_grpo_subtracts_the_mean_and_does_not_divide() -> None:
    assert ADVANTAGES["dr_grpo"].baseline(np.array([0.0, 1.0, 2.0, 5.0])) == pytest.approx([-2, -1, 0, 3])
    assert not ADVANTAGES["dr_grpo"].whiten


@given(st.lists(st.tuples(st.floats(-5, 5).map(lambda x: round(x, 3)), st.integers(1, 30)), min_size=2, max_size=20))
def test_whitening_is_over_tokens(pairs: list[tuple[float, int]]) -> None:
    """Every token carries its trajectory's advantage: the mean and the population variance of that long list are 0 and 1."""
    a, lengths = np.array([x for x, _ in pairs]), np.array([n for _, n in pairs], np.float64)
    actual = whitened(a, lengths)
    tokens = np.repeat(actual, lengths.astype(int))
    if np.ptp(a) == 0:
        assert not actual.any()
        return
    assert tokens.mean() == pytest.approx(0, abs=1e-9)
    assert tokens.std() == pytest.approx(1, abs=1e-9)
    assert (np.argsort(actual, kind="stable") == np.argsort(a, kind="stable")).all()


def test_reinforce_pp_normalises_over_the_global_batch_and_not_within_a_group() -> None:
    from support.builders import make_trajectory

    from envs.types import Group, Status

    def group(rewards: list[float], index: int, lengths: list[int], failed: int | None = None) -> Group:
        responses = [
            make_trajectory([(2, n)], reward=r, index=index, seed=i, status=Status.ERROR if i == failed else Status.OK)
            for i, (r, n) in enumerate(zip(rewards, lengths, strict=True))
        ]
        return Group(responses[0].prompt, tuple(responses))

    groups = [group([1, 1], 0, [3, 5]), group([0, 1, 9], 1, [2, 7, 4], failed=2)]
    rewards, lengths = np.array([1, 1, 0, 1.0]), np.array([3, 5, 2, 7.0])  # the failed response counts nowhere
    mean = (rewards * lengths).sum() / lengths.sum()
    std = np.sqrt((lengths * (rewards - mean) ** 2).sum() / lengths.sum())
    actual = trajectory_advantages(groups, ADVANTAGES["reinforce_pp"])
    assert actual == pytest.approx([*((rewards - mean) / std), 0.0])
    based = trajectory_advantages(groups, ADVANTAGES["reinforce_pp_baseline"])
    centred = np.array([0, 0, -0.5, 0.5])
    mean = (centred * lengths).sum() / lengths.sum()
    std = np.sqrt((lengths * (centred - mean) ** 2).sum() / lengths.sum())
    assert based == pytest.approx([*((centred - mean) / std), 0.0])


# --- turn-level advantages ----------------------------------------------------------------------------------------------


def test_what_is_yet_to_be_earned() -> None:
    assert returns_to_go(np.array([1.0, 0.0, 4.0]), 0.5).tolist() == [2.0, 2.0, 4.0]
    assert returns_to_go(np.array([1.0, 0.0, 4.0]), 1.0).tolist() == [5.0, 4.0, 4.0]
    assert returns_to_go(np.zeros(0), 0.9).tolist() == []


def episodes(rewards: list[list[float]], lost: int = -1) -> Group:
    """Builds a trajectory for each list of what its turns earn, the last one by the verdict. Those in `lost` are not scored."""
    made = []
    for i, own in enumerate(rewards):
        trajectory = make_trajectory([(2, 1 + k) for k in range(len(own))], reward=own[-1], seed=i)
        turns = tuple(replace(t, reward=r) for t, r in zip(trajectory.turns, [*own[:-1], 0.0], strict=True))
        status = Status.ERROR if i == lost else Status.OK
        made.append(replace(trajectory, turns=turns, verdict=replace(trajectory.verdict, status=status)))
    return Group(made[0].prompt, tuple(made))


def test_a_turn_is_compared_with_the_others_at_the_same_turn() -> None:
    """By hand: with a discount of 1/2 the returns-to-go are 1 + 1/2 * (1/2 + 1/2 * 2), then 3/2, then 2."""
    group = episodes([[1.0, 0.5, 2.0], [0.0, 1.0], [4.0], [9.0, 9.0]], lost=3)
    actual = turn_advantages([group], ADVANTAGES["dr_grpo"], 0.5)
    mean = (1.75 + 0.5 + 4.0) / 3
    assert [f.tolist() for f in actual] == [
        pytest.approx([1.75 - mean, 0.25, 0.0]),  # its third turn is alone
        pytest.approx([0.5 - mean, -0.25]),
        pytest.approx([4.0 - mean]),
        [0.0, 0.0],
    ]


def test_the_weight_of_the_verdict_is_that_of_what_turns_earn() -> None:
    """The result is the same as if every turn before the last had earned a tenth."""
    tenth = turn_advantages([episodes([[1.0, 0.5, 0.2], [0.0, 0.1], [0.4]])], ADVANTAGES["dr_grpo"], 0.5, weight=0.1)
    expected = turn_advantages([episodes([[0.1, 0.05, 0.2], [0.0, 0.1], [0.4]])], ADVANTAGES["dr_grpo"], 0.5)
    assert [t.tolist() for t in tenth] == [pytest.approx(e.tolist()) for e in expected]


EARNED = st.lists(st.floats(-2, 2).map(lambda x: round(x, 2)), min_size=1, max_size=4)


@given(st.lists(st.lists(EARNED, min_size=1, max_size=5), min_size=1, max_size=3), st.sampled_from(sorted(ADVANTAGES)))
def test_with_one_turn_each_it_is_the_trajectory_s_advantage(rewards: list[list[list[float]]], name: str) -> None:
    groups = [episodes([own[-1:] for own in group], lost=len(group) - 2) for group in rewards]
    actual = turn_advantages(groups, ADVANTAGES[name], 0.7)
    assert np.concatenate(actual) == pytest.approx(trajectory_advantages(groups, ADVANTAGES[name]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "least"), [("reinforce_pp", 1), ("reinforce_pp_baseline", 2)])
@given(rewards=st.lists(st.lists(EARNED, min_size=1, max_size=5), min_size=1, max_size=3))
def test_whitening_by_turn_is_over_the_tokens_of_turns_that_are_compared(
    name: str, least: int, rewards: list[list[list[float]]]
) -> None:
    """Under the batch's baseline a turn is compared with those of other prompts, though none of its own group has it."""
    groups = [episodes(group, lost=0) for group in rewards]
    actual = iter(turn_advantages(groups, ADVANTAGES[name], 1.0))
    tokens: list[float] = []
    for group in groups:
        lengths = [len(t.turns) for t in group.trajectories[1:]]  # of the scored
        for i, (t, own) in enumerate(zip(group.trajectories, actual, strict=False)):
            for k, turn in enumerate(t.turns):
                if i > 0 and sum(n > k for n in lengths) >= least:
                    tokens += [own[k]] * len(turn.response_ids)
                else:
                    assert own[k] == 0.0
    if any(tokens):
        assert np.mean(tokens) == pytest.approx(0, abs=1e-9)
        assert np.std(tokens) == pytest.approx(1, abs=1e-9)


@given(st.lists(EARNED, min_size=2, max_size=5), st.floats(0.1, 1.0), st.floats(-3, 3))
def test_a_reward_that_all_get_at_a_turn_changes_nothing(
    rewards: list[list[float]], discount: float, more: float
) -> None:
    count = min(map(len, rewards))
    rewards = [own[:count] for own in rewards]
    shifted = [[own[0] + more, *own[1:]] for own in rewards]
    pairs = zip(
        *(turn_advantages([episodes(r)], ADVANTAGES["rloo"], discount) for r in (rewards, shifted)), strict=True
    )
    for before, after in pairs:
        assert after == pytest.approx(before, abs=1e-9)


def test_the_settings_know_which_baselines_are_the_batchs() -> None:
    assert {name for name, kind in ADVANTAGES.items() if kind.baseline is plain} == BATCH_BASELINES
