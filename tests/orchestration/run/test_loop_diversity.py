"""The loop with solution diversity: what is trained on, reported and saved, and that a resumed run is the undisturbed one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.builders import stages_data
from support.fakes import FakeRun

from envs import catalog
from envs.types import Prompt
from learner.checkpoint import Checkpoints, read_state
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import Stopped
from orchestration.run.loop import Run
from orchestration.run.state import RunState
from orchestration.run.stop import StopSignal
from orchestration.sampling.asynchronous import AsynchronousProducer
from orchestration.sampling.curriculum import Curriculum, stages_of
from orchestration.sampling.producer import SynchronousProducer

STEPS = {"kind": "additive", "step": 0.1, "start": 0.5}


def config_of(diversity: dict[str, Any] | None, batch: dict[str, Any] | None = None, **second: Any) -> RunConfig:
    data = stages_data(**second)
    data["batch"] |= batch or {}
    data |= {"objective": {"advantage": "rloo"}, "entropy": {"method": {"kind": "none"}}, "evaluation": {"prompts": 0}}
    for stage in data["stages"]:
        stage["iterations"] = 2
    return validate(data if diversity is None else data | {"diversity": diversity})


def go(config: RunConfig, folder: Path, stop_at: str = "", saved: Path | None = None, solved: bool = False) -> FakeRun:
    """Runs to the end, or until the pass named `stop_at` begins. `solved`: every response is correct."""
    fake, stop = FakeRun(), StopSignal()

    def look(stamp: str) -> None:
        if stop_at and stamp.startswith(stop_at):
            stop.set(2)

    def solution(prompt: Prompt, i: int) -> str | None:
        """Gives more different solutions the later the prompt and the policy."""
        return str(i % (1 + (prompt.index + fake.version) % 5))

    fake.before_collect, fake.solution = look, solution
    fake.reward = lambda prompt, i: 1.0 if solved else float(i != prompt.index % 4)
    environments = [catalog.load(e.name, e.params, seed=0) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), 0, config.batch.adaptive)
    state = RunState.fresh(config, curriculum)
    if saved is not None:
        state.load_state_dict(read_state(saved), saved)
        fake.version = state.policy_version
    anything = cast("Any", fake)
    if state.pending is None:
        producer = SynchronousProducer(config, curriculum, anything)
    else:
        producer = AsynchronousProducer(config, curriculum, anything, state.pending)
    run = Run(config, anything, producer, anything, state, Checkpoints(folder, 9), anything, stop)

    async def main() -> None:
        try:
            await run.train()
        finally:
            await producer.close()

    if stop_at:
        with pytest.raises(Stopped):
            asyncio.run(main())
    else:
        asyncio.run(main())
    return fake


def advantages(fake: FakeRun) -> list[list[float]]:
    """Returns the advantages of every iteration's responses, in order."""
    found = []
    for batch in fake.trained:
        of = {
            int(i): float(a) for u in batch.updates for m in u for i, a in zip(m.trajectory, m.advantages, strict=True)
        }
        found.append([of[i] for i in sorted(of)])
    return found


def test_rewards_are_reported_as_given_and_trained_on_as_diversity_has_them(tmp_path: Path) -> None:
    fake = go(config_of({}), tmp_path, solved=True)
    first = np.array(advantages(fake)[0]).reshape(4, 4)
    # Prompts 0 to 3: solutions aaaa, abab, abca and abcd. Shares of the third: 1/3, 0, 0, 1/3.
    assert not first[[0, 1, 3]].any()
    factor = np.array([1 - 0.8 / 3, 1, 1, 1 - 0.8 / 3])
    expected = factor / factor.mean() - 1
    assert first[2] == pytest.approx(expected * 4 / 3)
    row = fake.rows[0]
    assert row["reward/mean"] == 1.0 and row["groups/no_signal"] == row["groups/no_signal/countdown"] == 3.0
    collisions = (1 + 1 / 3 + 1 / 6 + 0) / 4
    assert row["diversity/solutions"] == pytest.approx(1 / collisions)
    assert row["diversity/shared"] == pytest.approx(10 / 16)
    assert (row["diversity/coefficient"], row["diversity/saturated"]) == (0.8, 0.0)


def test_without_it_nothing_is_changed_reported_or_saved(tmp_path: Path) -> None:
    fake = go(config_of(None), tmp_path, solved=True)
    assert not np.array(advantages(fake)).any()
    assert not [key for row in fake.rows for key in row if key.startswith("diversity/")]
    latest = Checkpoints(tmp_path, 9).latest()
    assert latest is not None and "diversity" not in read_state(latest)


def test_filtering_keeps_groups_that_diversity_alone_tells_apart(tmp_path: Path) -> None:
    batch = {"dynamic": {"kind": "filter", "by": "correct"}}
    fake = go(config_of({}, batch), tmp_path, solved=True)
    assert [row["dynamic/trained"] for row in fake.rows[:2]] == [1.0, 1.0]  # one of abca
    assert [row["dynamic/all_right"] for row in fake.rows[:2]] == [3.0, 3.0]  # aaaa, abab, abcd
    everything = go(config_of({}), tmp_path / "all", solved=True)  # what is observed is of all groups
    for key in ("diversity/solutions", "diversity/shared"):
        assert fake.rows[0][key] == everything.rows[0][key]
    without = go(config_of(None, batch), tmp_path / "without", solved=True)
    assert [row["dynamic/trained"] for row in without.rows[:2]] == [0.0, 0.0]


@pytest.mark.parametrize("staleness", [0, 1])
def test_refilling_counts_groups_that_diversity_alone_tells_apart(tmp_path: Path, staleness: int) -> None:
    batch = {"staleness": staleness, "dynamic": {"kind": "refill", "max_rounds": 5}}
    fake = go(config_of({}, batch), tmp_path, solved=True)
    assert all(0 < row["dynamic/trained"] < row["dynamic/generated"] for row in fake.rows)
    assert all(np.array(a).any() for a in advantages(fake))


def test_a_target_is_a_fraction_of_what_is_measured_before_the_first_update(tmp_path: Path) -> None:
    """Of the first batch where it has responses enough, else of others; entropy is not measured for it."""
    small = go(config_of({"controller": STEPS, "target": {"fraction": 0.5, "start_responses": 16}}), tmp_path / "a")
    row = small.rows[0]
    assert row["diversity/target"] == pytest.approx(0.5 * row["diversity/solutions"])
    large = go(config_of({"controller": STEPS, "target": {"fraction": 0.5, "start_responses": 40}}), tmp_path / "b")
    events = [event[0] for event in large.events]
    assert "before stage 0" in events and "measure_start" not in events
    assert large.rows[0]["diversity/target"] != row["diversity/target"]
    assert large.rows[0]["diversity/target"] == large.rows[1]["diversity/target"]


@pytest.mark.parametrize("controller", ["keep", "reset", "reanchor"])
@pytest.mark.parametrize("stop_at", ["iteration 2", "iteration 3", "iteration 4"])
def test_stopped_and_resumed_trains_as_the_undisturbed_run(tmp_path: Path, stop_at: str, controller: str) -> None:
    held = {"controller": STEPS, "target": {"fraction": 1.2, "start_responses": 16}}
    config = config_of(held, controller=controller)
    undisturbed = go(config, tmp_path / "whole")
    first = go(config, tmp_path / "stopped", stop_at)
    latest = Checkpoints(tmp_path / "stopped", 9).latest()
    assert latest is not None
    second = go(config, tmp_path / "stopped", saved=latest)
    assert advantages(first) + advantages(second) == advantages(undisturbed)

    def reported(*fakes: FakeRun) -> list[dict[str, float]]:
        return [{k: v for k, v in r.items() if k.startswith("diversity/")} for fake in fakes for r in fake.rows]

    assert reported(first, second) == reported(undisturbed)
    coefficients = [r["diversity/coefficient"] for r in reported(undisturbed)]
    assert len(set(coefficients)) > 1
    targets = [r["diversity/target"] for r in reported(undisturbed)]
    assert targets[0] == targets[1] and (targets[1] == targets[2]) == (controller == "keep")


def test_a_checkpoint_without_it_can_go_on_with_it(tmp_path: Path) -> None:
    go(config_of(None), tmp_path, "iteration 3")
    latest = Checkpoints(tmp_path, 9).latest()
    assert latest is not None
    fake = go(config_of({"controller": STEPS, "target": {"solutions": 9.0}}), tmp_path, saved=latest)
    assert [row["diversity/coefficient"] for row in fake.rows] == pytest.approx([0.6, 0.7])
