"""The mixture: shares kept at every moment, and a position that is all there is to resume."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from builders import make_prompt
from hypothesis import given
from hypothesis import strategies as st

from envs.base import Session
from envs.types import Prompt, Split
from orchestration.curriculum import Mixture


class Numbered:
    """Prompts that are their index; a split of `size` wraps around, as the protocol says."""

    def __init__(self, name: str, size: int | None) -> None:
        self.name, self._size = name, size

    def size(self, split: Split) -> int | None:
        return self._size

    def prompt(self, split: Split, index: int) -> Prompt:
        task = index if self._size is None else index % self._size
        return Prompt(self.name, split, index, (), {"task": task})

    def open(self, prompt: Prompt) -> Session:
        raise NotImplementedError


def mixture(weights: list[float], sizes: list[int | None] | None = None, seed: int = 0) -> Mixture:
    return Mixture([Numbered(f"e{i}", sizes[i] if sizes else None) for i in range(len(weights))], weights, seed)


WEIGHTS = st.lists(st.integers(1, 20).map(float), min_size=1, max_size=5)
SIZES = st.lists(st.none() | st.integers(1, 7), min_size=5, max_size=5)


@given(WEIGHTS, st.integers(1, 80))
def test_shares_are_kept_at_every_moment(weights: list[float], count: int) -> None:
    mixed, given_so_far, n = mixture(weights), Counter[int](), len(weights)
    for k in range(1, count + 1):
        given_so_far.update(i for i, _ in mixed.next(1))
        for i, w in enumerate(weights):
            ahead = given_so_far[i] - k * w / sum(weights)
            assert -max(1, n - 1) < ahead < 1 + 1e-9


def test_equal_weights_take_turns_and_a_weight_is_a_ratio() -> None:
    assert [i for i, _ in mixture([1, 1, 1]).next(6)] == [0, 1, 2, 0, 1, 2]
    assert Counter(i for i, _ in mixture([3, 1]).next(400)) == {0: 300, 1: 100}
    assert Counter(i for i, _ in mixture([0.3, 0.1]).next(400)) == {0: 300, 1: 100}


@given(WEIGHTS, SIZES, st.integers(0, 40), st.integers(1, 20), st.integers(0, 3))
def test_the_state_after_n_prompts_is_a_fresh_run_without_its_first_n(
    weights: list[float], sizes: list[int | None], n: int, more: int, seed: int
) -> None:
    sizes = sizes[: len(weights)]
    whole = mixture(weights, sizes, seed).next(n + more)
    stopped, resumed = mixture(weights, sizes, seed), mixture(weights, sizes, seed)
    stopped.next(n)
    state = json.loads(json.dumps(stopped.state_dict()))
    stopped.next(3)  # the state is a copy, not a view
    resumed.load_state_dict(state)
    assert resumed.next(more) == whole[n:]


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_a_finite_split_is_walked_once_a_pass(size: int, passes: int, seed: int) -> None:
    prompts = [p for _, p in mixture([1], [size], seed).next(size * passes)]
    for k in range(passes):
        assert sorted(p.task["task"] for p in prompts[k * size : (k + 1) * size]) == list(range(size))
    assert len({p.key for p in prompts}) == size * passes, "the key of a prompt is unique over a run"


def test_every_pass_has_its_own_order_which_follows_from_the_seed() -> None:
    def orders(seed: int) -> list[list[int]]:
        tasks = [p.task["task"] for _, p in mixture([1], [30], seed).next(90)]
        return [tasks[i : i + 30] for i in (0, 30, 60)]

    a, b, c = orders(1)
    assert a != b != c != a
    assert orders(1) == [a, b, c]
    assert orders(2)[0] != a


def test_generated_environments_are_walked_by_index() -> None:
    assert [p.index for _, p in mixture([1]).next(5)] == [0, 1, 2, 3, 4]
    assert [p.split for _, p in mixture([1]).next(1)] == ["train"]


def test_held_out_prompts_are_the_same_every_time_and_do_not_move_training() -> None:
    mixed = mixture([1, 1], [None, 3])
    first = mixed.held_out("eval", 5)
    assert [(i, p.index) for i, p in first] == [(0, k) for k in range(5)] + [(1, k) for k in range(3)]
    assert {p.split for _, p in first} == {"eval"}
    mixed.next(7)
    before = mixed.state_dict()
    assert mixed.held_out("eval", 5) == first
    assert mixed.state_dict() == before


@pytest.mark.parametrize("key", ["countdown/train/7"])
def test_a_prompts_key(key: str) -> None:
    assert make_prompt(7, "countdown").key == key
