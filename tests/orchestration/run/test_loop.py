"""The loop at the boundaries of its stages: what happens in which order, and that a run stopped there misses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.builders import stages_data
from support.fakes import FakeRun

from envs import catalog
from envs.types import Prompt
from learner.checkpoint import Checkpoints, read_state
from learner.settings import RowLayout
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import EnvironmentErrors, ModelRefused, Stopped
from orchestration.run.loop import Run
from orchestration.run.resume import is_over
from orchestration.run.state import RunState
from orchestration.run.stop import StopSignal
from orchestration.sampling.curriculum import Curriculum, stages_of
from orchestration.sampling.producer import SynchronousProducer


def config_of(batch: dict[str, Any] | None = None, objective: dict[str, Any] | None = None, **second: Any) -> RunConfig:
    data = stages_data(overrides={"sampling.temperature": 0.5}, **second)
    data["batch"] |= batch or {}
    data["objective"] = objective or {}
    data["stages"][0]["iterations"] = 2
    data["stages"][1]["iterations"] = 2
    data["evaluation"] = {"prompts": 2, "samples": 2, "ks": [1, 2]}
    return validate(data)


def run_of(
    config: RunConfig, fake: FakeRun, folder: Path, stop: StopSignal, state: dict[str, Any] | None = None
) -> Run:
    environments = [catalog.load(e.name, e.params, seed=0) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), 0, config.batch.adaptive)
    run_state = replace(RunState.fresh(config, curriculum), owes_evaluation=True)
    if state is not None:
        run_state.load_state_dict(state, folder)
        fake.version = run_state.policy_version
    anything = cast("Any", fake)
    producer = SynchronousProducer(config, curriculum, anything)
    return Run(config, anything, producer, anything, run_state, Checkpoints(folder, 9), anything, stop)


def go(
    config: RunConfig,
    folder: Path,
    stop_at: str = "",
    state: dict[str, Any] | None = None,
    reward: Callable[[Prompt, int], float] | None = None,
    turns: int = 1,
) -> FakeRun:
    """Runs to the end, or until the pass named `stop_at` begins (its n-th, after a #)."""
    fake, stop = FakeRun(), StopSignal()
    fake.reward, fake.turns = reward or fake.reward, turns
    name, _, nth = stop_at.partition("#")
    count = 0

    def look(stamp: str) -> None:
        nonlocal count
        count += bool(name) and stamp.startswith(name)
        if name and count == int(nth or 1):
            stop.set(2)

    fake.before_collect = look

    async def main() -> None:
        await run_of(config, fake, folder, stop, state).train()

    if stop_at:
        with pytest.raises(Stopped):
            asyncio.run(main())
    else:
        asyncio.run(main())
    return fake


def brief(fake: FakeRun) -> list[str]:
    return [" ".join(str(x) for x in event if not isinstance(x, tuple)) for event in fake.events]


def test_a_boundary_evaluates_then_reports_then_saves_then_goes_over(tmp_path: Path) -> None:
    fake = go(config_of(), tmp_path)
    assert brief(fake) == [
        "eval 1.0", "row 0.0",
        "before stage 0 1.0", "measure_start",
        "event entropy at the start: 1 nats per token, on 256 responses of version 0",
        "iteration 1 1.0", "train", "row 1.0",
        "iteration 2 1.0", "train", "eval 1.0", "row 2.0", "save",
        "begin_stage 1", "event stage 2 of 2 begins: two",
        "iteration 3 0.5", "train", "row 3.0",
        "iteration 4 0.5", "train", "eval 1.0", "row 4.0", "save",
    ]  # fmt: skip
    positions = [(r["stage/index"], r["stage/iteration"]) for r in fake.rows]
    assert positions == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("more", "measured"),
    [
        ({}, ["before stage 0"]),
        ({"controller": "keep"}, ["before stage 0"]),
        ({"controller": "reset"}, ["before stage 0", "before stage 1"]),
        ({"controller": "reanchor"}, ["before stage 0", "before stage 1"]),
    ],
)
def test_the_start_is_measured_before_the_first_update_that_counts_from_it(
    tmp_path: Path, more: dict[str, Any], measured: list[str]
) -> None:
    data = stages_data()
    data["stages"][1] |= more
    fake = go(validate(data), tmp_path)
    events = [event[0] for event in fake.events if event[0].startswith(("before", "measure", "train", "begin"))]
    assert [e for e in events if e.startswith("before")] == measured
    for stage in measured:
        assert events[events.index(stage) + 1 : events.index(stage) + 3] == ["measure_start", "train"]
    asked = {event[0]: event[1] for event in fake.events if event[0] in ("before stage 0", "iteration 1")}
    n = len(asked["iteration 1"])
    assert asked["before stage 0"][:n] == asked["iteration 1"]  # and training draws the same prompts again


def test_a_run_that_is_stopped_while_it_measures_a_start_measures_it_when_it_goes_on(tmp_path: Path) -> None:
    data = stages_data()
    data["stages"][1] |= {"controller": "reanchor"}
    first = go(validate(data), tmp_path, "before stage 1")
    assert "measure_start" not in [event[0] for event in first.events][-3:]
    latest = Checkpoints(tmp_path, 9).latest()
    assert latest is not None
    second = go(validate(data), tmp_path, state=read_state(latest))
    events = [event[0] for event in second.events if event[0].startswith(("before", "measure", "train", "begin"))]
    assert events[:3] == ["before stage 1", "measure_start", "train"]


@pytest.mark.parametrize(
    "entropy",
    [
        {"method": {"kind": "none"}},
        {"target": {"nats": 0.5}},
        {"target": {"fraction": 0.7, "start_responses": 4}},
    ],
)
def test_a_start_that_nothing_counts_from_or_that_the_first_batch_shows_is_not_measured_by_itself(
    tmp_path: Path, entropy: dict[str, Any]
) -> None:
    fake = go(validate(stages_data() | {"entropy": entropy}), tmp_path)
    assert not [event for event in fake.events if event[0].startswith(("before", "measure"))]


def test_before_anything_else_a_fresh_and_a_resumed_run_check_what_they_begin_with(tmp_path: Path) -> None:
    """With the version that the learner holds, on 16 prompts or more, before an evaluation or an update."""
    config = config_of()
    first = go(config, tmp_path, "iteration 3")
    assert first.checked == [(0, 16)]
    assert first.before_check == []
    latest = Checkpoints(tmp_path, 9).latest()
    assert latest is not None
    second = go(config, tmp_path, state=read_state(latest))
    assert second.checked == [(2, 16)]
    assert second.before_check == []
    many = validate({**config.model_dump(), "weights": {"probe_responses": 21}})
    assert go(many, tmp_path / "many").checked == [(0, 22)]  # as many of each of two environments


def sharing(config: RunConfig) -> RunConfig:
    data = config.model_dump()
    return validate(data | {"learner": data["learner"] | {"prefix_sharing": True}})


def layouts_of(config: RunConfig, layout: RowLayout, tmp_path: Path, prompt: int = 2) -> tuple[set[int], bool]:
    """Returns how many rows the micro-batches of a run had, and whether any had a prompt once for several responses."""
    fake = FakeRun()
    fake.layout, fake.prompt, fake.turns = layout, tuple(range(1, prompt + 1)), 3
    asyncio.run(run_of(config, fake, tmp_path, StopSignal()).train())
    micros = [micro for batch in fake.trained for update in batch.updates for micro in update]
    goes_on = [at[1:][np.diff(at) != 1].any() for micro in micros for at in micro.positions]
    return {len(micro.tokens) for micro in micros}, any(goes_on)


def test_batches_are_laid_out_as_the_check_of_the_start_says(tmp_path: Path) -> None:
    rows, shared = layouts_of(config_of(), "padded", tmp_path / "padded")
    assert rows != {1} and not shared
    assert layouts_of(config_of(), "packed", tmp_path / "packed") == ({1}, False)
    assert layouts_of(sharing(config_of()), "packed", tmp_path / "not") == ({1}, False)


@pytest.mark.parametrize(("prompt", "shared"), [(2, False), (40, True)])
def test_prompts_are_shared_where_that_saves_a_fifth(prompt: int, shared: bool, tmp_path: Path) -> None:
    assert layouts_of(config_of(), "shared", tmp_path / "open", prompt) == ({1}, shared)
    assert layouts_of(sharing(config_of()), "shared", tmp_path / "asked", prompt) == ({1}, True)


def test_a_refusal_at_the_start_writes_nothing(tmp_path: Path) -> None:
    fake = FakeRun()
    fake.refuse = ModelRefused("packing borders: ...")
    with pytest.raises(ModelRefused):
        asyncio.run(run_of(config_of(), fake, tmp_path, StopSignal()).train())
    assert fake.events == [] and fake.rows == []
    assert Checkpoints(tmp_path, 9).latest() is None


def test_every_evaluation_asks_the_same_of_every_environment_of_every_stage(tmp_path: Path) -> None:
    fake = go(config_of(), tmp_path)
    evaluations = [event[1] for event in fake.events if event[0] == "eval"]
    assert len(evaluations) == 3
    assert set(evaluations) == {
        ("0:countdown/eval/0", "0:countdown/eval/1", "1:arithmetic/eval/0", "1:arithmetic/eval/1")
    }
    for row in (fake.rows[0], fake.rows[2], fake.rows[4]):
        assert {"eval/countdown/pass@1", "eval/arithmetic/pass@2"} <= row.keys()
    assert "reward/arithmetic" not in fake.rows[2]
    assert {"reward/arithmetic", "response/length/arithmetic", "status/ok/countdown"} <= fake.rows[4].keys()


def test_a_rule_ends_a_stage_and_the_run(tmp_path: Path) -> None:
    data = stages_data(advance={"reward": 0.5, "window": 2})
    data["stages"][0] |= {"advance": {"plateau": 0.0, "window": 1}}
    fake = go(validate(data | {"evaluation": {"prompts": 0}}), tmp_path)
    iterations = [e[0] for e in fake.events if e[0].startswith(("iteration", "save", "begin"))]
    assert iterations == [
        "iteration 1", "iteration 2", "save", "begin_stage", "iteration 3", "iteration 4", "save",
    ]  # fmt: skip


def every_third(prompt: Prompt, i: int) -> float:
    """Rewards groups in turn: all correct, all wrong, mixed."""
    return [1.0, 0.0, float(i % 2)][prompt.index % 3]


REFILL = {"dynamic": {"kind": "refill", "max_rounds": 3}}
ADAPTIVE = {"adaptive": {"revisit": 0.7, "pool": 5}}
STOPS = [
    *(({}, stop) for stop in ("iteration 2", "eval#2", "iteration 3", "iteration 4")),
    *((REFILL, stop) for stop in ("iteration 2#1", "iteration 2#3", "eval#2", "iteration 3#2", "iteration 4#3")),
    *((REFILL | ADAPTIVE, stop) for stop in ("iteration 2#2", "eval#2", "iteration 4#2")),
]


@pytest.mark.parametrize(("batch", "stop_at"), STOPS)
def test_stopped_and_resumed_asks_what_the_undisturbed_run_asks(
    tmp_path: Path, batch: dict[str, Any], stop_at: str
) -> None:
    """eval#2 is the evaluation at the boundary, which the resumed run does before it enters the next stage.

    iteration 2#3 is the third round of iteration 2: the first two rounds are drawn again.
    """
    config, reward = config_of(batch), every_third if batch else None
    undisturbed = go(config, tmp_path / "whole", reward=reward)
    first = go(config, tmp_path / "stopped", stop_at, reward=reward)
    latest = Checkpoints(tmp_path / "stopped", 9).latest()
    assert latest is not None
    second = go(config, tmp_path / "stopped", state=read_state(latest), reward=reward)

    def asked(*fakes: FakeRun) -> list[tuple[Any, ...]]:
        return [e for fake in fakes for e in fake.events if e[0].startswith(("iteration", "eval"))]

    again = (
        int(stop_at.rpartition("#")[2]) - 1 if batch and "iteration" in stop_at else 0
    )  # rounds of the one abandoned
    before = asked(first)[: len(asked(first)) - again]
    assert before + asked(second) == asked(undisturbed)
    merged: dict[float, dict[str, float]] = {}
    for row in first.rows + second.rows:
        merged.setdefault(row["iteration"], {}).update(row)
    for row in undisturbed.rows:
        kept = {k: v for k, v in row.items() if not k.startswith(("time/", "tokens/per_second"))}
        assert {k: merged[row["iteration"]].get(k) for k in kept} == kept


def test_the_last_evaluation_is_made_up_for_once_where_a_stop_interrupted_it(tmp_path: Path) -> None:
    config, checkpoints = config_of(), Checkpoints(tmp_path, 9)

    def state() -> dict[str, Any]:
        latest = checkpoints.latest()
        assert latest is not None
        return read_state(latest)

    go(config, tmp_path, "eval#3")
    assert state()["owes_evaluation"] and not is_over(config, state())
    assert is_over(validate({**config.model_dump(), "evaluation": {"prompts": 0}}), state())
    again = go(config, tmp_path, state=state())
    assert [row["iteration"] for row in again.rows] == [4.0] and not again.trained
    assert is_over(config, state())


def test_a_checkpoint_says_what_responses_were_paid(tmp_path: Path) -> None:
    """A resumed run may have another reward, and the configuration in its folder may be newer than the checkpoint."""
    config = validate(stages_data() | {"evaluation": {"prompts": 0}, "rewards": {"verdict": 2.0}})
    go(config, tmp_path)
    latest = Checkpoints(tmp_path, 9).latest()
    assert latest is not None
    assert read_state(latest)["rewards"] == json.loads(config.model_dump_json())["rewards"]


# --- dynamic sampling ---------------------------------------------------------------------------------------------------


def trained_on(fake: FakeRun) -> list[tuple[int, int]]:
    """Returns (updates, responses that were only measured) of every iteration."""
    return [(len(b.updates), len({int(i) for m in b.measured for i in m.trajectory})) for b in fake.trained]


@pytest.mark.parametrize("kind", ["none", "filter"])
def test_filtered_groups_are_measured_and_reported_and_not_trained_on(tmp_path: Path, kind: str) -> None:
    fake = go(config_of({"prompts": 6, "dynamic": {"kind": kind}}), tmp_path, reward=every_third)
    rows = fake.rows[1:]
    assert [r["groups/no_signal"] for r in rows[:2]] == [4.0, 4.0]
    assert [r["reward/mean"] for r in rows[:2]] == [0.5, 0.5]  # of all of them, whatever is trained on
    if kind == "none":
        assert trained_on(fake)[:2] == [(1, 0)] * 2
        assert not any(key.startswith("dynamic/") for r in rows for key in r)
        return
    assert trained_on(fake)[:2] == [(1, 16)] * 2
    keys = ("rounds", "generated", "trained", "all_right", "all_wrong", "other", "skipped")
    assert [rows[0][f"dynamic/{key}"] for key in keys] == [1, 6, 2, 2, 2, 0, 0]
    assert rows[0]["tokens/generated"] == 6 * 4 * 2


def test_an_iteration_without_signal_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    def solved(prompt: Prompt, i: int) -> float:
        return 1.0 if prompt.index < 16 else float(i % 2)

    fake = go(config_of({"dynamic": {"kind": "refill", "max_rounds": 3}}), tmp_path, reward=solved)
    assert trained_on(fake)[:2] == [
        (0, 12 * 4),
        (1, 4 * 4),
    ]  # 12 prompts that are solved, then 4 more beside 4 that teach
    assert [r["dynamic/skipped"] for r in fake.rows[1:3]] == [1.0, 0.0]
    assert [r["policy_version"] for r in fake.rows] == [0, 1, 2, 3, 4]
    events = [e[1] for e in fake.events if e[0] == "event" and "none of" in e[1]]
    assert events == [
        "iteration 1: none of 12 groups in 3 rounds has responses of different reward (12 all right, 0 all wrong, 0 other): "
        "entropy was measured, the weights stay as they are"
    ]


@pytest.mark.parametrize(("kind", "expected"), [("trajectory", [-1.0, 1.0]), ("turn", [-0.5, 0.5])])
def test_credit_is_what_the_objective_says(tmp_path: Path, kind: str, expected: list[float]) -> None:
    """Two turns a response and a verdict of 0 or 1 in turn: half of it reaches the first turn with a discount of 1/2."""
    objective = {"advantage": "rloo", "credit": {"kind": kind, "discount": 0.5}}
    fake = go(config_of(objective=objective), tmp_path, turns=2)
    (micro,) = fake.trained[0].updates[0]
    first = micro.advantages[micro.action_index == 0]
    assert (
        sorted(set((first * 1.5).round(5).tolist())) == expected
    )  # 4 responses, half of them right: +-2/3 of leave-one-out
    assert set((micro.advantages[micro.last] * 1.5).round(5).tolist()) == {-1.0, 1.0}


def test_a_run_whose_environments_only_raise_says_so_at_once_and_ends_after_a_checkpoint(tmp_path: Path) -> None:
    fake = FakeRun()
    fake.broken = "mine.py, line 3: KeyError: 7\n  File"

    async def main() -> None:
        await run_of(config_of(), fake, tmp_path, StopSignal()).train()

    with pytest.raises(
        EnvironmentErrors, match=r"100% of the responses .* in 3 iterations in a row.*line 3: KeyError: 7$"
    ):
        asyncio.run(main())
    (told,) = [event for event in brief(fake) if "scoring failed" in event]
    assert told.startswith("event scoring failed for 16 of 16 responses of iteration 1") and told.endswith(fake.broken)
    assert brief(fake)[-3:-1] == ["row 3.0", "save"]
    assert brief(fake)[-1] == "event the run ends after a checkpoint of iteration 3"
    latest = Checkpoints(tmp_path, 9).latest()
    assert latest is not None and read_state(latest)["iteration"] == 3
