"""Adaptive difficulty: prompts that are solved sometimes come again, the mixture stays, and a resumed run draws the same."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import config_data, make_trajectory
from support.fakes import Numbered

from envs.types import Group, Prompt, Status
from orchestration.config.run_config import validate
from orchestration.config.sections import AdaptiveSection
from orchestration.errors import ConfigError
from orchestration.sampling.curriculum import Curriculum, Stage
from orchestration.sampling.prompt_pool import PromptPool

Rate = Callable[[int, int], float]  # environment, task -> probability that a response is right


def group_of(prompt: Prompt, rate: float, iteration: int, responses: int = 4) -> Group:
    rng = random.Random(f"{prompt.key}/{iteration}")
    rewards = [float(rng.random() < rate) for _ in range(responses)]
    status = Status.ERROR if rng.random() < 0.1 else Status.OK  # some cannot be scored
    made = [make_trajectory(reward=r, index=prompt.index, status=status) for r in rewards]
    return Group(prompt, tuple(made))


def uneven(env: int, task: int) -> float:
    """Makes most prompts hopeless or solved; one in five is neither."""
    return 0.5 if task % 5 == 0 else float(task % 2)


def walk(curriculum: Curriculum, iterations: range, rate: Rate = uneven) -> list[list[Prompt]]:
    """Makes the loop's calls: prompts of every iteration, in two rounds, the second of varying size."""
    out = []
    for k in iterations:
        if curriculum.stage_ended:
            curriculum.advance()
        drawn = curriculum.next(4) + curriculum.next(k % 3)
        groups = [group_of(p, rate(p.environment, p.task["task"]), k) for p in drawn]
        metrics = curriculum.observe(groups)
        assert all(0 <= v <= 1 for key, v in metrics.items() if key != "adaptive/known")
        out.append(drawn)
    return out


@st.composite
def curricula(draw: st.DrawFn) -> Callable[[bool], Curriculum]:
    """Draws a builder of one curriculum, adaptive or not: two stages of up to three environments."""
    sizes = draw(st.lists(st.none() | st.integers(1, 12), min_size=3, max_size=3))
    weights = st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any)
    shares = [tuple(w / sum(ws) for w in ws) for ws in (draw(weights), draw(weights))]
    length, seed = draw(st.integers(1, 6)), draw(st.integers(0, 3))
    settings = AdaptiveSection(
        revisit=draw(st.floats(0.05, 0.95)), pool=draw(st.integers(1, 20)), floor=0.01, decay=draw(st.floats(0.5, 1.0))
    )

    def build(adaptive: bool = True) -> Curriculum:
        environments = [Numbered(f"e{i}", size) for i, size in enumerate(sizes)]
        stages = [Stage("a", shares[0], length), Stage("b", shares[1], 100)]
        return Curriculum(environments, stages, seed, settings if adaptive else None)

    return build


@given(curricula(), st.integers(1, 12), st.integers(0, 12))
def test_stopped_anywhere_and_resumed_draws_the_same(build: Callable[[], Curriculum], count: int, stop: int) -> None:
    stop = min(stop, count)
    undisturbed, stopped, resumed = build(), build(), build()
    expected = walk(undisturbed, range(count))
    assert walk(stopped, range(stop)) == expected[:stop]
    state = json.loads(json.dumps(stopped.state_dict()))
    walk(stopped, range(stop, stop + 1))  # the state is a copy
    stopped.next(3)
    for curriculum in (resumed, stopped):  # what a resumed run does, and a loop that is stopped within an iteration
        curriculum.load_state_dict(state)
        assert json.loads(json.dumps(curriculum.state_dict())) == state
        assert walk(curriculum, range(stop, count)) == expected[stop:]
        assert curriculum.state_dict() == undisturbed.state_dict()


@given(curricula(), st.integers(1, 14))
def test_the_mixture_is_as_configured_and_what_is_new_comes_in_its_order(
    build: Callable[[bool], Curriculum], count: int
) -> None:
    adaptive = build(True)
    adaptive_prompts, plain = walk(adaptive, range(count)), walk(build(False), range(count))
    assert [[p.environment for p in drawn] for drawn in adaptive_prompts] == [
        [p.environment for p in drawn] for drawn in plain
    ]
    again = Counter[int]()
    drawn_before: list[tuple[int, str]] = []
    for drawn in adaptive_prompts:
        keys = [(p.environment, p.key) for p in drawn]
        assert len(set(keys)) == len(keys), "ids and seeds are of the iteration and the key"
        again.update(i for i, key in keys if (i, key) in drawn_before)
        drawn_before += keys
    assert [again[i] for i in range(3)] == adaptive.revisits
    new = list(dict.fromkeys(drawn_before))
    everything = [(p.environment, p.key) for drawn in plain for p in drawn]
    for k in range(3):
        keys_of_environment = [key for i, key in new if i == k]
        assert keys_of_environment == [key for i, key in everything if i == k][: len(keys_of_environment)]
        assert len(adaptive.pools[k].counts) <= adaptive.pools[k].settings.pool


def test_prompts_that_teach_come_again_and_the_share_is_as_asked_for() -> None:
    settings = AdaptiveSection(revisit=0.5, pool=64)
    curriculum = Curriculum([Numbered("e", None)], [Stage("only", (1.0,), 10**6)], 3, settings)
    rows, again = [], Counter[bool]()
    for k in range(120):
        drawn = curriculum.next(16)
        for prompt in drawn:
            if prompt.index in curriculum.pools[0].counts:
                again[prompt.index % 5 == 0] += 1
        groups = [group_of(p, uneven(0, p.index), k, responses=8) for p in drawn]
        rows.append(curriculum.observe(groups))
    late = rows[40:]

    def mean(key: str) -> float:
        return sum(r[key] for r in late) / len(late)

    assert mean("adaptive/revisited") == pytest.approx(0.5, abs=0.03)
    assert again[True] > 0.7 * again.total()  # a fifth of all prompts are solved sometimes
    assert mean("adaptive/informative_again") > 0.6
    assert mean("adaptive/informative") > 0.4  # 0.2 without
    assert {r["adaptive/known"] for r in late} == {64.0}
    assert 0.3 < mean("adaptive/solved") < 0.7


def test_an_estimate_is_the_mean_of_a_beta_distribution_and_what_is_old_fades() -> None:
    pool = PromptPool(AdaptiveSection(floor=0.05, decay=0.5, pool=3))
    pool.learn(7, right=6, wrong=0)
    assert pool.solve_rate(7) == 7 / 8
    assert pool.weight(7) == pytest.approx(7 / 64 + 0.05)
    pool.decay()
    assert pool.solve_rate(7) == 4 / 5
    pool.learn(7, right=1, wrong=2)
    assert pool.solve_rate(7) == 5 / 8
    for _ in range(60):
        pool.decay()
    assert pool.solve_rate(7) == pytest.approx(0.5)
    pool.learn(8, right=0, wrong=0)  # nothing was scored
    assert 8 not in pool.counts
    for task in (9, 10, 11):  # hopeless, solved, and both
        pool.learn(task, right=3 * (task > 9), wrong=3 * (task != 10))
    assert list(pool.counts) == [7, 10, 11]  # of two that say as little, the older one is forgotten
    pool.learn(12, right=0, wrong=50)
    assert list(pool.counts) == [7, 10, 11]


def test_only_scored_responses_say_how_difficult_a_prompt_is() -> None:
    curriculum = Curriculum([Numbered("e", 5)], [Stage("only", (1.0,), 9)], 0, AdaptiveSection())
    prompt, other = curriculum.next(2)
    members = [(1.0, Status.OK), (0.0, Status.TURNS), (0.0, Status.ERROR), (0.0, Status.TIMEOUT)]
    group = Group(prompt, tuple(make_trajectory(reward=r, status=s) for r, s in members))
    lost = Group(other, tuple(make_trajectory(status=s) for _, s in members[2:]))
    metrics = curriculum.observe([group, lost])
    assert curriculum.pools[0].counts == {prompt.task["task"]: [1.0, 1.0]}
    assert metrics == {
        "adaptive/known": 1.0, "adaptive/solved": 0.5, "adaptive/revisited": 0.0, "adaptive/informative": 0.5
    }  # fmt: skip


def test_what_was_drawn_in_the_iteration_does_not_come_twice() -> None:
    pool = PromptPool(AdaptiveSection(revisit=0.99, pool=9))
    for task in range(3):
        pool.learn(task, 1, 1)
    rng = random.Random(0)
    adaptive_prompts = [pool.draw(rng, {0, 2}) for _ in range(200)]
    assert set(adaptive_prompts) == {1, None}
    assert adaptive_prompts.count(1) > 180
    assert pool.draw(rng, {0, 1, 2}) is None
    assert {pool.draw(rng, ()) for _ in range(200)} == {0, 1, 2, None}


@pytest.mark.parametrize(("key", "value"), [("revisit", 1.0), ("pool", 0), ("floor", -0.1), ("decay", 0.0)])
def test_settings_that_cannot_be_are_refused(key: str, value: float) -> None:
    assert validate(config_data(batch={"adaptive": {}})).batch.adaptive == AdaptiveSection()
    with pytest.raises(ConfigError, match=f"batch.adaptive.{key} is {value}"):
        validate(config_data(batch={"adaptive": {key: value}}))


def test_a_finite_split_gives_no_prompt_twice_in_an_iteration_and_counts_what_came_again() -> None:
    """In the second pass over 12 prompts one can be drawn again and be the next new one at once."""
    settings = AdaptiveSection(revisit=0.5)
    curriculum = Curriculum([Numbered("a", 12)], [Stage("a", (1.0,), 99)], 0, settings)
    for k in range(12):
        drawn = curriculum.next(6)
        came_again = sum(curriculum._drawn.values())
        assert len(curriculum._drawn) == len(drawn) == 6, "every prompt is remembered by its own index"
        row = curriculum.observe([group_of(p, 0.5, k) for p in drawn])
        assert row["adaptive/revisited"] == pytest.approx(came_again / 6)
