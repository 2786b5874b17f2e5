"""The mixture: shares kept at every moment, and a position that is all there is to resume."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import config_data, make_group, make_prompt, stages_data
from support.fakes import Numbered

from envs.types import Prompt
from orchestration.config.run_config import validate
from orchestration.config.sections import AdvanceSection
from orchestration.sampling.curriculum import Curriculum, Stage, stages_of


def mixture(weights: list[float], sizes: list[int | None] | None = None, seed: int = 0) -> Curriculum:
    """Returns a curriculum of one endless stage."""
    environments = [Numbered(f"e{i}", sizes[i] if sizes else None) for i in range(len(weights))]
    return Curriculum(environments, [Stage("only", tuple(w / sum(weights) for w in weights), 10**9)], seed)


WEIGHTS = st.lists(st.integers(1, 20).map(float), min_size=1, max_size=5)
SIZES = st.lists(st.none() | st.integers(1, 7), min_size=5, max_size=5)


@given(WEIGHTS, st.integers(1, 80))
def test_shares_are_kept_at_every_moment(weights: list[float], count: int) -> None:
    mixed, given_so_far, n = mixture(weights), Counter[int](), len(weights)
    for k in range(1, count + 1):
        given_so_far.update(p.environment for p in mixed.next(1))
        for i, w in enumerate(weights):
            ahead = given_so_far[i] - k * w / sum(weights)
            assert -max(1, n - 1) < ahead < 1 + 1e-9


def test_equal_weights_take_turns_and_a_weight_is_a_ratio() -> None:
    assert [p.environment for p in mixture([1, 1, 1]).next(6)] == [0, 1, 2, 0, 1, 2]
    assert Counter(p.environment for p in mixture([3, 1]).next(400)) == {0: 300, 1: 100}
    assert Counter(p.environment for p in mixture([0.3, 0.1]).next(400)) == {0: 300, 1: 100}


@given(st.none() | st.integers(1, 9), st.integers(1, 6), st.integers(0, 3))
def test_a_limit_keeps_to_the_first_prompts_and_walks_them_in_a_new_order_every_pass(
    size: int | None, limit: int, seed: int
) -> None:
    environments, stage = [Numbered("e", size)], Stage("only", (1.0,), 9)
    limited = Curriculum(environments, [stage], seed, limits=[limit])
    used = min(limit, size or limit)
    passes = [[p.task["task"] for p in limited.next(used)] for _ in range(20)]
    assert all(sorted(tasks) == list(range(used)) for tasks in passes)
    assert used < 3 or len({tuple(tasks) for tasks in passes}) > 1
    assert len({p.index for p in Curriculum(environments, [stage], seed, limits=[limit]).next(5 * used)}) == 5 * used
    assert [p.task["task"] for p in limited.held_out("eval", 9)] == list(range(9 if size is None else size))


@given(WEIGHTS, SIZES, st.integers(0, 40), st.integers(1, 20), st.integers(0, 3))
def test_the_state_after_n_prompts_is_a_fresh_run_without_its_first_n(
    weights: list[float], sizes: list[int | None], n: int, more: int, seed: int
) -> None:
    sizes = sizes[: len(weights)]
    undisturbed = mixture(weights, sizes, seed).next(n + more)
    stopped, resumed = mixture(weights, sizes, seed), mixture(weights, sizes, seed)
    stopped.next(n)
    state = json.loads(json.dumps(stopped.state_dict()))
    stopped.next(3)  # the state is a copy, not a view
    resumed.load_state_dict(state)
    assert resumed.next(more) == undisturbed[n:]


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_a_finite_split_is_walked_once_a_pass(size: int, passes: int, seed: int) -> None:
    prompts = mixture([1], [size], seed).next(size * passes)
    for k in range(passes):
        assert sorted(p.task["task"] for p in prompts[k * size : (k + 1) * size]) == list(range(size))
    assert len({p.key for p in prompts}) == size * passes, "the key of a prompt is unique over a run"


def test_every_pass_has_its_own_order_which_follows_from_the_seed() -> None:
    def orders(seed: int) -> list[list[int]]:
        tasks = [p.task["task"] for p in mixture([1], [30], seed).next(90)]
        return [tasks[i : i + 30] for i in (0, 30, 60)]

    a, b, c = orders(1)
    assert a != b != c != a
    assert orders(1) == [a, b, c]
    assert orders(2)[0] != a


def test_prompts_carry_the_index_of_their_environment() -> None:
    """Two environments of one name and the same prompts: their keys are equal, and the index is what request ids differ by."""
    twins = Curriculum([Numbered("e", None)] * 2, [Stage("only", (0.5, 0.5), 9)], 0)
    first, second = twins.next(2)
    assert (first.environment, second.environment) == (0, 1)
    assert first.key == second.key and first == Numbered("e", None).prompt("train", 0) != second
    assert [p.environment for p in twins.held_out("eval", 2)] == [0, 0, 1, 1]
    assert pickle.loads(pickle.dumps(second)) == second


def test_generated_environments_are_walked_by_index() -> None:
    assert [p.index for p in mixture([1]).next(5)] == [0, 1, 2, 3, 4]
    assert [p.split for p in mixture([1]).next(1)] == ["train"]


def test_held_out_prompts_are_the_same_every_time_and_do_not_move_training() -> None:
    mixed = mixture([1, 1], [None, 3])
    first = mixed.held_out("eval", 5)
    assert [(p.environment, p.index) for p in first] == [(0, k) for k in range(5)] + [(1, k) for k in range(3)]
    assert {p.split for p in first} == {"eval"}
    mixed.next(7)
    before = mixed.state_dict()
    assert mixed.held_out("eval", 5) == first
    assert mixed.state_dict() == before


@pytest.mark.parametrize("key", ["countdown/train/7"])
def test_a_prompts_key(key: str) -> None:
    assert make_prompt(7, "countdown").key == key


# --- stages -------------------------------------------------------------------------------------------------------------

RULES = (
    st.none()
    | st.builds(AdvanceSection, reward=st.floats(0.2, 0.9), window=st.integers(1, 3))
    | st.builds(AdvanceSection, plateau=st.floats(0, 0.3), window=st.integers(1, 2))
)


@st.composite
def stage_lists(draw: st.DrawFn) -> list[Stage]:
    """Draws up to four stages over three environments, some of them with rules."""
    made = []
    for i in range(draw(st.integers(1, 4))):
        weights = draw(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any))
        shares = tuple(w / sum(weights) for w in weights)
        made.append(Stage(f"s{i}", shares, draw(st.integers(4, 8)), draw(RULES)))
    return made


def staged(stages: list[Stage], sizes: list[int | None], seed: int = 0) -> Curriculum:
    return Curriculum([Numbered(f"e{i}", size) for i, size in enumerate(sizes)], stages, seed)


def walk(curriculum: Curriculum, rewards: list[float], done: int = 0) -> list[tuple[int, list[Prompt]]]:
    """Makes the loop's calls: returns (stage, prompts) of every iteration from `done` on."""
    out = []
    for reward in rewards[done:]:
        if curriculum.finished:
            break
        if curriculum.stage_ended:
            curriculum.advance()
        out.append((curriculum.index, curriculum.next(3)))
        curriculum.observe([make_group([reward])])
    return out


@given(stage_lists(), SIZES, st.lists(st.floats(0, 1), min_size=32, max_size=32), st.integers(0, 32), st.integers(0, 3))
def test_stopped_anywhere_and_resumed_gives_the_same_stages_and_prompts(
    stages: list[Stage], sizes: list[int | None], rewards: list[float], stop: int, seed: int
) -> None:
    sizes = sizes[:3]
    undisturbed = walk(staged(stages, sizes, seed), rewards)
    stop = min(stop, len(undisturbed))
    stopped, resumed = staged(stages, sizes, seed), staged(stages, sizes, seed)
    assert walk(stopped, rewards[:stop]) == undisturbed[:stop]
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert walk(resumed, rewards, stop) == undisturbed[stop:]
    keys = [(p.environment, p.key) for _, prompts in undisturbed for p in prompts]
    assert len(set(keys)) == len(keys), "a prompt's key is unique over the stages"
    assert all(stages[at].shares[p.environment] > 0 for at, prompts in undisturbed for p in prompts)


def ends(stage: Stage, rewards: list[float]) -> int:
    """Returns after how many iterations the stage ends."""
    curriculum = staged([stage], [None])
    for i, reward in enumerate(rewards):
        curriculum.observe([make_group([reward])])
        if curriculum.finished:
            return i + 1
    return -1


def test_a_stage_ends_by_its_rule_or_when_its_iterations_are_used_up() -> None:
    climb = [0.1, 0.3, 0.5, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    assert ends(Stage("plain", (1.0,), 4), climb) == 4
    assert ends(Stage("reward", (1.0,), 9, AdvanceSection(reward=0.6, window=2)), climb) == 4  # (0.5 + 0.7) / 2
    assert ends(Stage("never", (1.0,), 9, AdvanceSection(reward=0.9, window=2)), climb) == 9
    # The means of two: 0.2 0.4 0.6 0.75 0.8 0.8; the first that is at most 0.1 above the one two before is the last but none.
    assert ends(Stage("plateau", (1.0,), 10, AdvanceSection(plateau=0.1, window=2)), climb) == 7
    assert ends(Stage("short", (1.0,), 5, AdvanceSection(plateau=0.1, window=2)), climb) == 5


def test_a_stage_that_has_not_ended_is_not_left() -> None:
    curriculum = staged([Stage("a", (1.0,), 2), Stage("b", (1.0,), 1)], [None])
    curriculum.observe([make_group([0.0])])
    with pytest.raises(ValueError, match=r"stage 0 of 2, 'a', is at iteration 1 of 2 and cannot be left"):
        curriculum.advance()
    curriculum.observe([make_group([0.0])])
    curriculum.advance()
    curriculum.observe([make_group([0.0])])
    with pytest.raises(ValueError, match="cannot be left"):
        curriculum.advance()


def test_a_resumed_run_may_have_more_stages_and_environments() -> None:
    stages = [Stage("a", (1.0, 0.0), 2), Stage("b", (0.0, 1.0), 2)]
    short = staged([Stage("a", (1.0,), 2)], [None])
    walk(short, [0.0, 0.0])
    longer = staged(stages, [None, None])
    longer.load_state_dict(short.state_dict())
    assert not longer.finished
    assert [(p.environment, p.index) for p in walk(longer, [0.0])[0][1]] == [(1, 0), (1, 1), (1, 2)]


def test_the_stages_of_a_configuration() -> None:
    assert [s.shares for s in stages_of(validate(config_data()))] == [(1 / 3, 2 / 3)]
    config = validate(stages_data(overrides={"learner.lr": 0.5}))
    assert [e.name for e in config.all_environments] == ["countdown", "arithmetic"]
    first, second = stages_of(config)
    assert (first.name, first.shares, first.iterations) == ("one", (1.0, 0.0), 3)
    assert (second.name, second.shares, second.iterations) == ("two", (0.25, 0.75), 5)
