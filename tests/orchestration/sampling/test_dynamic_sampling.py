"""Dynamic sampling: what is kept, what is asked for again, and that it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import config_data, make_group, make_prompt, make_trajectory
from support.fakes import FakeRun

from envs import catalog
from envs.types import Group, Prompt, Status, Verdict
from learner.batching import informative
from orchestration.config.run_config import validate
from orchestration.config.sections import BatchSection
from orchestration.errors import ConfigError
from orchestration.sampling.curriculum import Curriculum, stages_of
from orchestration.sampling.dynamic_sampling import Sampled, dropped_because, sample
from orchestration.sampling.producer import SynchronousProducer

REWARDS = st.sampled_from([(1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (0.5, 1.0)])


def go(batch: BatchSection, rewards: list[tuple[float, ...]]) -> tuple[Sampled, list[int]]:
    """Samples with the k-th rewards for the prompt of index k, cyclically. Returns the result and what each round asked for."""
    drawn, asked = iter(range(10**6)), []

    def draw(count: int) -> list[Prompt]:
        asked.append(count)
        return [make_prompt(k) for k in (next(drawn) for _ in range(count))]

    async def collect(prompts: list[Prompt]) -> tuple[list[Group], dict[str, float]]:
        return [make_group(rewards[p.index % len(rewards)], index=p.index) for p in prompts], {"generate": 1.5}

    return asyncio.run(sample(batch, draw, collect)), asked


@given(
    st.sampled_from(["none", "filter", "refill"]), st.integers(1, 6), st.integers(1, 5), st.lists(REWARDS, min_size=1)
)
def test_rounds_are_bounded_and_nothing_that_teaches_is_thrown_away(
    kind: str, prompts: int, most: int, rewards: list[tuple[float, ...]]
) -> None:
    batch = BatchSection.model_validate(
        {"prompts": prompts, "responses": 2, "dynamic": {"kind": kind, "max_rounds": most}}
    )
    sampled, asked = go(batch, rewards)
    assert [g.prompt.index for g in sampled.groups] == list(range(sum(asked)))
    assert sampled.rounds == len(asked) <= (most if kind == "refill" else 1)
    assert sampled.seconds == {"generate": 1.5 * sampled.rounds}
    teaching = [g for g in sampled.groups if informative(g)]
    assert sampled.trained == (sampled.groups if kind == "none" else teaching)
    assert len(sampled.trained) <= prompts
    assert len(sampled.measured) == 2 * (len(sampled.groups) - len(sampled.trained))
    if (
        kind == "refill"
    ):  # each round asks for what the ones before it left missing; it ends when nothing is, or at the bound
        at = 0
        for count in asked:
            assert count == prompts - sum(informative(g) for g in sampled.groups[:at]) > 0
            at += count
        assert len(teaching) == prompts or sampled.rounds == most
    m = sampled.metrics()
    dropped = m["dynamic/all_right"] + m["dynamic/all_wrong"] + m["dynamic/other"]
    assert m["dynamic/generated"] == m["dynamic/trained"] + dropped
    assert m["dynamic/skipped"] == (not sampled.trained)


def test_dropped_groups_are_told_apart() -> None:
    def group(*members: tuple[float, Status]) -> Group:
        made = [make_trajectory(reward=r, status=s, seed=i) for i, (r, s) in enumerate(members)]
        return Group(made[0].prompt, tuple(made))

    right, wrong, lost = (1.0, Status.OK), (0.0, Status.OK), (0.0, Status.ERROR)
    assert dropped_because(group(right, right, lost)) == "all right"
    assert dropped_because(group(wrong, wrong, lost)) == "all wrong"
    assert dropped_because(group(wrong, (0.0, Status.TURNS))) == "all wrong"
    assert dropped_because(group(right, lost, lost)) == "other"
    assert dropped_because(group(lost, lost)) == "other"


def test_a_baseline_over_the_batch_learns_from_what_would_be_dropped() -> None:
    data = config_data(objective={"advantage": "reinforce_pp"}, batch={"dynamic": {"kind": "filter"}})
    with pytest.raises(
        ConfigError, match=r"batch\.dynamic filter drops groups of equal rewards, and objective\.advantage"
    ):
        validate(data)
    data = config_data(objective={"credit": {"kind": "turn"}}, batch={"dynamic": {"kind": "refill"}})
    with pytest.raises(ConfigError, match=r"drops groups of equal verdicts, and objective\.credit turn learns from"):
        validate(data)
    validate(config_data(objective={"advantage": "reinforce_pp_baseline"}, batch={"dynamic": {"kind": "refill"}}))


LENGTH = {"length": {"weight": 0.5}}


@pytest.mark.parametrize(
    ("rewards", "dynamic", "by"),
    [
        ({}, {}, "reward"),
        (LENGTH, {}, "verdict"),
        (LENGTH, {"by": "reward"}, "reward"),
        (LENGTH, {"by": "correct"}, "correct"),
        ({"length": {"weight": 0.0}}, {}, "reward"),  # measured alone
        (LENGTH | {"verdict": 0.0}, {}, "reward"),  # the environment has no say in the reward
        ({"verdict": 2.0}, {}, "reward"),
    ],
)
def test_where_terms_shape_the_reward_the_verdict_says_what_differs(
    rewards: dict[str, Any], dynamic: dict[str, Any], by: str
) -> None:
    data = config_data(batch={"dynamic": {"kind": "filter", **dynamic}}, rewards=rewards)
    assert validate(data).dynamic_by == by


def test_groups_that_are_all_right_are_dropped_whatever_their_lengths_earn() -> None:
    """Through configuration and producer; the second prompt's responses are all right and each of another length."""
    config = validate(config_data(batch={"prompts": 2, "dynamic": {"kind": "filter"}}, rewards=LENGTH))

    class Shaped(FakeRun):
        async def collect(self, prompts: Sequence[Prompt], *args: Any, **more: Any) -> Any:
            groups, seconds = await super().collect(prompts, *args, **more)
            return [self.shape(g, all_right=k == 1) for k, g in enumerate(groups)], seconds

        def shape(self, group: Group, all_right: bool) -> Group:
            made = []
            for i, t in enumerate(group.trajectories):
                own = 1.0 if all_right else t.verdict.reward
                terms = {"verdict": own, "length": -0.1 * i}
                made.append(replace(t, verdict=Verdict(own - 0.05 * i, own > 0, terms=terms)))
            return Group(group.prompt, tuple(made))

    environments = [catalog.load(e.name, e.params, seed=0) for e in config.all_environments]
    fake: Any = Shaped()
    producer = SynchronousProducer(config, Curriculum(environments, stages_of(config), 0), fake)
    sampled = asyncio.run(producer.next_batch(1, config))
    assert sampled.kept == [True, False]
    assert sampled.metrics()["dynamic/all_right"] == 1
    assert "responses of different verdict (1 all right" in sampled.nothing_left()
