"""The asynchronous producer: how many groups are begun, which make a batch, how old they are, and what a resume finds."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import make_group, stages_data
from support.fakes import FakeRun, Numbered

from envs import catalog
from envs.types import Group, Prompt
from orchestration.config.run_config import RunConfig, validate
from orchestration.run.state import RunState
from orchestration.sampling.asynchronous import AsynchronousProducer
from orchestration.sampling.curriculum import Curriculum, Stage, stages_of
from orchestration.sampling.dynamic_sampling import Sampled
from orchestration.sampling.pending import Pending, write_groups
from orchestration.sampling.producer import SynchronousProducer

PROMPTS = 4


def config_of(staleness: int, iterations: int = 50, **batch: Any) -> RunConfig:
    data = stages_data()
    data["environments"] = data["stages"][0]["environments"]
    del data["stages"]
    data["batch"] = {"prompts": PROMPTS, "responses": 2, "staleness": staleness, **batch}
    data["run"]["iterations"] = iterations
    data["learner"]["updates"] = 1
    return validate(data)


class Scene:
    """Plays groups that end when a test says so, by the index of their prompts; `version` is that of the generators' weights."""

    def __init__(self, config: RunConfig, pending: Pending | None = None) -> None:
        self.config, self.version = config, 0
        self.began: list[tuple[int, str]] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.rewards: Callable[[int], Sequence[float]] = lambda index: [0.0, 1.0]
        self.curriculum = Curriculum([Numbered("n", None)], [Stage("s", (1.0,), config.iterations)], 0)
        self.pending = pending or Pending()
        self.producer = AsynchronousProducer(config, self.curriculum, cast("Any", self), self.pending)

    def continuous(self) -> Any:
        return SimpleNamespace(seconds={"generate": 0.0, "verify": 0.0})

    def player(self, measured: Any, sampling: Any, **more: Any) -> Any:
        return self.play

    async def play(self, prompt: Prompt, *, stamp: str) -> Group:
        self.began.append((prompt.index, stamp))
        version = self.version
        await self.gates.setdefault(prompt.index, asyncio.Event()).wait()
        return make_group(self.rewards(prompt.index), index=prompt.index, version=version)

    def end(self, *indices: int) -> None:
        for index in indices:
            self.gates.setdefault(index, asyncio.Event()).set()

    async def batch(self, iteration: int) -> Sampled:
        sampled = await asyncio.wait_for(self.producer.next_batch(iteration, self.config), 5)
        self.curriculum.observe(sampled.groups)
        self.version = iteration
        return sampled


def indices(sampled: Sampled) -> list[int]:
    return [g.prompt.index for g in sampled.groups]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("staleness", "ahead"), [(0, 1), (1, 1), (4, 1), (3, 3)])
def test_the_gate_lets_as_many_batches_begin_as_generators_may_work_ahead(staleness: int, ahead: int) -> None:
    async def main() -> None:
        scene = Scene(config_of(staleness, ahead=ahead))
        begun = (1 + min(staleness, ahead)) * PROMPTS
        scene.end(*range(PROMPTS))
        assert indices(await scene.batch(1)) == list(range(PROMPTS))
        assert [i for i, _ in scene.began] == list(range(begun))
        scene.end(*range(PROMPTS, 2 * PROMPTS))
        assert indices(await scene.batch(2)) == list(range(PROMPTS, 2 * PROMPTS))
        assert len(scene.began) == begun + PROMPTS
        await scene.producer.close()

    asyncio.run(main())


def test_slow_groups_are_passed_by_until_they_would_be_too_old() -> None:
    async def main() -> None:
        scene = Scene(config_of(2))
        scene.end(1, 2, 4, 6, 7)  # 0, 3 and 5 are slow
        assert indices(await scene.batch(1)) == [1, 2, 4, 6]
        assert [i for i, _ in scene.began] == list(range(8))
        scene.end(8, 9, 11, 12, 13, 14, 15)
        assert indices(await scene.batch(2)) == [7, 8, 9, 11]
        third = asyncio.ensure_future(scene.batch(3))
        await settle()
        assert (
            not third.done()
        )  # 12 to 15 are finished, but with the fourth batch 0, 3 and 5 would be three versions old
        scene.end(0, 3)
        await settle()
        assert not third.done()
        scene.end(5)
        assert indices(await third) == [0, 3, 5, 12]
        await scene.producer.close()

    asyncio.run(main())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 4).flatmap(lambda s: st.tuples(st.just(s), st.integers(1, max(1, s)))),
    st.integers(0, 2**32),
    st.sampled_from(["none", "filter", "refill"]),
    st.integers(1, 3),
)
def test_no_group_is_too_old_lost_or_there_twice(bound: tuple[int, int], seed: int, kind: str, rounds: int) -> None:
    """Groups end in a random order, at random moments; with refill a third of them teach nothing."""
    (staleness, ahead), iterations, rng = bound, 12, random.Random(seed)
    dynamic = {"kind": kind} | ({"max_rounds": rounds} if kind == "refill" else {})

    async def main() -> None:
        scene = Scene(config_of(staleness, iterations, dynamic=dynamic, ahead=ahead))
        scene.rewards = lambda index: [0.0, 1.0] if index % 3 else [0.0, 0.0]
        used: list[int] = []
        for iteration in range(1, iterations + 1):
            version = scene.version
            waiting = asyncio.ensure_future(scene.batch(iteration))
            for _ in range(10_000):
                await asyncio.sleep(0)
                if waiting.done():
                    break
                live = [b.prompt.index for b in scene.pending.running.values()]
                assert len(live) <= (min(staleness, ahead) + 1) * PROMPTS
                if live:
                    scene.end(rng.choice(live))
            sampled = waiting.result()
            used += indices(sampled)
            ages = [version - turn.version_min for g in sampled.groups for t in g.trajectories for turn in t.turns]
            assert max(ages) <= staleness
            teaching = [g for g in sampled.trained if g.prompt.index % 3]
            if kind == "none":
                assert len(sampled.groups) == len(sampled.trained) == PROMPTS
            elif kind == "filter":
                assert len(sampled.groups) == PROMPTS and sampled.trained == teaching
            else:
                assert sampled.trained == teaching and len(teaching) <= PROMPTS
                assert len(teaching) == PROMPTS or len(sampled.groups) >= rounds * PROMPTS
        assert len(used) == len(set(used))
        if kind != "refill":  # every group that was begun was trained on: none is begun that no iteration would use
            assert sorted(used) == list(range(iterations * PROMPTS)) and not scene.pending.running
        await scene.producer.close()

    asyncio.run(main())


def test_at_staleness_zero_it_asks_for_what_the_synchronous_one_does() -> None:
    """Prompts, stamps and the order in which groups are begun: seeds, engine batches and the batch that is trained on follow."""

    def produced(synchronous: bool) -> tuple[list[Any], list[Any], list[list[int]]]:
        config = config_of(0)
        environments = [catalog.load(e.name, e.params, seed=0) for e in config.all_environments]
        curriculum, fake = Curriculum(environments, stages_of(config), 0), FakeRun()
        anything = cast("Any", fake)
        producer = (
            SynchronousProducer(config, curriculum, anything)
            if synchronous
            else AsynchronousProducer(config, curriculum, anything, Pending())
        )
        batches = []

        async def main() -> None:
            for iteration in (1, 2, 3):
                sampled = await producer.next_batch(iteration, config)
                curriculum.observe(sampled.groups)
                batches.append(indices(sampled))

        asyncio.run(main())
        return [e[0] for e in fake.events for _ in e[1]], [k for e in fake.events for k in e[1]], batches

    assert produced(True) == produced(False)


def test_a_failed_group_is_raised_to_the_loop() -> None:
    async def main() -> None:
        scene = Scene(config_of(1))

        def refuse(index: int) -> Sequence[float]:
            raise RuntimeError("no verdict")

        scene.rewards = refuse
        scene.end(3)
        with pytest.raises(RuntimeError, match="no verdict"):
            await scene.batch(1)
        await scene.producer.close()

    asyncio.run(main())


def test_an_interrupted_wait_leaves_everything_as_it_was() -> None:
    async def main() -> None:
        scene = Scene(config_of(2, ahead=2))
        scene.end(0, 5)
        waiting = asyncio.ensure_future(scene.batch(1))
        await settle()
        waiting.cancel()
        await asyncio.wait({waiting})
        scene.producer.abandon()
        assert sorted(scene.pending.finished) == [0, 5]
        scene.end(1, 2)
        assert indices(await scene.batch(1)) == [0, 1, 2, 5]
        assert Counter(i for i, _ in scene.began) == Counter(range(3 * PROMPTS))
        await scene.producer.close()

    asyncio.run(main())


def test_a_stage_that_ends_early_leaves_nothing_behind() -> None:
    async def main() -> None:
        scene = Scene(config_of(1))
        scene.end(0, 1, 2, 3, 5)
        await scene.batch(1)
        said = await scene.producer.end_stage()
        assert said == "3 groups of the stage were still under way and 1 waited: they are not trained on"
        assert not scene.pending.running and not scene.pending.finished
        assert await scene.producer.end_stage() == ""
        scene.end(8, 9, 10, 11)
        assert indices(await scene.batch(2)) == [8, 9, 10, 11]
        await scene.producer.close()

    asyncio.run(main())


def test_a_resumed_run_begins_again_what_was_under_way_and_takes_what_waited(tmp_path: Path) -> None:
    async def before() -> dict[str, Any]:
        scene = Scene(config_of(1))
        scene.end(0, 1, 2, 4, 6)
        await scene.batch(1)
        await settle()
        state = {"curriculum": scene.curriculum.state_dict(), "pending": scene.pending.state_dict()}
        write_groups(tmp_path, scene.pending.waiting())
        await scene.producer.close()
        return state

    async def after(state: dict[str, Any]) -> None:
        scene = Scene(config_of(1))
        scene.curriculum.load_state_dict(state["curriculum"])
        scene.version = 1
        scene.pending.load(state["pending"], tmp_path, scene.curriculum.redraw, 2)
        scene.end(3, 5, 7)
        assert indices(await scene.batch(2)) == [3, 5, 6, 7]
        assert scene.began[:3] == [(3, "iteration 1"), (5, "iteration 2"), (7, "iteration 2")]
        assert [i for i, _ in scene.began[3:]] == [8, 9, 10, 11]
        await scene.producer.close()

    state = asyncio.run(before())
    assert state["pending"] == {
        "next": 8,
        "running": [[3, 0, 3, False], [5, 0, 5, False], [7, 0, 7, False]],
        "finished": [6],
    }
    asyncio.run(after(state))


def resumed(before: Scene, config: RunConfig, folder: Path) -> Scene:
    """Returns the scene after a resume with another configuration: iteration 2 comes next."""
    scene = Scene(config)
    scene.curriculum.next(before.pending.next)
    scene.version = 1
    write_groups(folder, before.pending.waiting())
    scene.pending.load(before.pending.state_dict(), folder, scene.curriculum.redraw, 2)
    return scene


def test_what_waited_goes_before_what_was_begun_again_since_it_is_older(tmp_path: Path) -> None:
    async def main() -> None:
        before = Scene(config_of(2, ahead=2))
        before.end(0, 1, 2, 4, 8, 9, 10)
        assert indices(await before.batch(1)) == [0, 1, 2, 4]
        await before.producer.close()
        scene = resumed(before, config_of(2, ahead=2), tmp_path)
        scene.end(3, 5, 6, 7, 11)  # all at once
        assert indices(await scene.batch(2)) == [3, 8, 9, 10]
        assert indices(await scene.batch(3)) == [5, 6, 7, 11]
        await scene.producer.close()

    asyncio.run(main())


def test_a_resume_with_a_lower_bound_goes_on_with_more_groups_than_it_would_begin(tmp_path: Path) -> None:
    """It once waited for groups that had all come, with none under way, and ended in an error of asyncio's."""

    async def main() -> None:
        before = Scene(config_of(5, ahead=5))
        before.end(*range(24))
        assert indices(await before.batch(1)) == [0, 1, 2, 3]
        await settle()
        await before.producer.close()
        scene = resumed(before, config_of(2), tmp_path)
        scene.end(*range(24, 60))
        assert indices(await scene.batch(2)) == [4, 5, 6, 7]
        assert indices(await scene.batch(3)) == list(
            range(8, 24)
        )  # begun for version 0: with the fourth they would be too old
        assert indices(await scene.batch(4)) == [24, 25, 26, 27]
        await scene.producer.close()

    asyncio.run(main())


def test_no_group_is_begun_that_no_iteration_of_the_stage_trains_on() -> None:
    async def main() -> None:
        scene = Scene(config_of(2, ahead=2))
        stages = [Stage("first", (1.0,), 2), Stage("second", (1.0,), 48)]
        scene.curriculum = Curriculum([Numbered("n", None)], stages, 0)
        scene.producer = AsynchronousProducer(scene.config, scene.curriculum, cast("Any", scene), scene.pending)
        scene.end(*range(40))
        await scene.batch(1)
        await scene.batch(2)
        assert len(scene.began) == 2 * PROMPTS
        assert await scene.producer.end_stage() == ""
        scene.curriculum.advance()
        await scene.batch(3)
        assert len(scene.began) == 5 * PROMPTS
        await scene.producer.close()

    asyncio.run(main())


@pytest.mark.parametrize(("ahead", "rounds"), [(1, 1), (1, 3), (2, 2)])
def test_refill_asks_for_so_many_rounds_of_groups_and_no_more(ahead: int, rounds: int) -> None:
    async def main() -> None:
        scene = Scene(config_of(ahead, dynamic={"kind": "refill", "max_rounds": rounds}, ahead=ahead))
        scene.rewards = lambda index: [0.0, 0.0]  # nothing is learned from any of them
        most = (ahead + rounds) * PROMPTS
        waiting = asyncio.ensure_future(scene.batch(1))
        for _ in range(200):
            await settle()
            if waiting.done():
                break
            scene.end(*(b.prompt.index for b in list(scene.pending.running.values())[:1]))
        sampled = waiting.result()
        assert rounds * PROMPTS <= len(sampled.groups) <= len(scene.began) <= most
        assert not sampled.trained
        await scene.producer.close()

    asyncio.run(main())


def test_a_synchronous_run_that_becomes_asynchronous_goes_on_behind_its_ordinals(tmp_path: Path) -> None:
    config = config_of(1)
    environments = [catalog.load(e.name, e.params, seed=0) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), 0)
    curriculum.next(3 * PROMPTS)
    state = RunState.fresh(config, curriculum)
    saved = {k: v for k, v in state.state_dict().items() if k != "pending"} | {"iteration": 3, "policy_version": 3}
    state.load_state_dict(saved, tmp_path)
    assert state.pending is not None and state.pending.next == 3 * PROMPTS


def test_groups_that_are_overdue_after_a_resume_with_a_lower_bound_are_all_in_the_next_batch(tmp_path: Path) -> None:
    async def main() -> None:
        before = Scene(config_of(3, ahead=3))
        before.end(*range(12))
        await before.batch(1)
        await settle()
        await before.producer.close()
        scene = Scene(config_of(1))
        scene.curriculum.next(4 * PROMPTS)
        write_groups(tmp_path, before.pending.waiting())
        scene.pending.load(before.pending.state_dict(), tmp_path, scene.curriculum.redraw, 2)
        assert indices(await scene.batch(2)) == list(range(4, 12))
        await scene.producer.close()

    asyncio.run(main())
