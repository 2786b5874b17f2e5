"""The loop at the boundaries of its stages: what happens in which order, and that a run stopped there misses nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from builders import stages_data
from fakes import FakeRun

from envs import catalog
from learner.checkpoint import Checkpoints, read_state
from orchestration.config import RunConfig, validate
from orchestration.curriculum import Curriculum, stages_of
from orchestration.errors import Stopped
from orchestration.loop import Run, StopSignal


def config_of(**second: Any) -> RunConfig:
    data = stages_data(overrides={"sampling.temperature": 0.5}, **second)
    data["stages"][0]["iterations"] = 2
    data["stages"][1]["iterations"] = 2
    data["evaluation"] = {"prompts": 2, "samples": 2, "ks": [1, 2]}
    return validate(data)


def run_of(
    config: RunConfig, fake: FakeRun, folder: Path, stop: StopSignal, state: dict[str, Any] | None = None
) -> Run:
    environments = [catalog.load(e.name, e.params, seed=0) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), 0)
    iteration, owes = 0, True
    if state is not None:
        curriculum.load_state_dict(state["curriculum"])
        iteration, owes = state["iteration"], state["owes_evaluation"]
        fake.version = state["policy_version"]
    anything = cast("Any", fake)
    return Run(config, anything, anything, curriculum, Checkpoints(folder, 9), anything, stop, iteration, owes)


def go(config: RunConfig, folder: Path, stop_at: str = "", state: dict[str, Any] | None = None) -> FakeRun:
    """Until the end, or until the pass named `stop_at` begins (its n-th, after a #)."""
    fake, stop = FakeRun(), StopSignal()
    name, _, nth = stop_at.partition("#")
    seen = 0

    def look(stamp: str) -> None:
        nonlocal seen
        seen += bool(name) and stamp.startswith(name)
        if name and seen == int(nth or 1):
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
        "iteration 1 1.0", "train", "row 1.0",
        "iteration 2 1.0", "train", "eval 1.0", "row 2.0", "save",
        "begin_stage 1", "event stage 2 of 2 begins: two",
        "iteration 3 0.5", "train", "row 3.0",
        "iteration 4 0.5", "train", "eval 1.0", "row 4.0", "save",
    ]  # fmt: skip
    places = [(r["stage/index"], r["stage/iteration"]) for r in fake.rows]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]


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
    assert {"reward/arithmetic", "reply/length/arithmetic", "status/ok/countdown"} <= fake.rows[4].keys()


def test_a_rule_ends_a_stage_and_the_run(tmp_path: Path) -> None:
    data = stages_data(advance={"reward": 0.5, "window": 2})
    data["stages"][0] |= {"advance": {"plateau": 0.0, "window": 1}}
    fake = go(validate(data | {"evaluation": {"prompts": 0}}), tmp_path)
    iterations = [e[0] for e in fake.events if e[0].startswith(("iteration", "save", "begin"))]
    assert iterations == [
        "iteration 1", "iteration 2", "save", "begin_stage", "iteration 3", "iteration 4", "save",
    ]  # fmt: skip


@pytest.mark.parametrize("stop_at", ["iteration 2", "eval#2", "iteration 3", "iteration 4"])
def test_stopped_and_resumed_asks_what_the_undisturbed_run_asks(tmp_path: Path, stop_at: str) -> None:
    """eval#2 is the one at the boundary: the resumed run makes up for it before it goes over."""
    config = config_of()
    whole = go(config, tmp_path / "whole")
    first = go(config, tmp_path / "stopped", stop_at)
    latest = Checkpoints(tmp_path / "stopped", 9).latest()
    assert latest is not None
    second = go(config, tmp_path / "stopped", state=read_state(latest))

    def asked(*fakes: FakeRun) -> list[tuple[Any, ...]]:
        return [e for fake in fakes for e in fake.events if e[0].startswith(("iteration", "eval"))]

    assert asked(first, second) == asked(whole)
    merged: dict[float, dict[str, float]] = {}
    for row in first.rows + second.rows:
        merged.setdefault(row["iteration"], {}).update(row)
    for row in whole.rows:
        kept = {k: v for k, v in row.items() if not k.startswith(("time/", "tokens/per_second"))}
        assert {k: merged[row["iteration"]].get(k) for k in kept} == kept
