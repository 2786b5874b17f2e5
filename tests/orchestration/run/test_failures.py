"""What becomes of a run when something fails: what is saved, what goes on, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.builders import config_data, stages_data, stopped_run
from support.fakes import FakeRun

from actors.health.lifeline import LearnerDied
from actors.inference import PoolEmpty
from envs import catalog
from envs.types import Group, Status, Verdict
from learner.checkpoint import Checkpoints, read_state
from learner.types import NonFiniteError
from learner.weights.protocol import WeightSyncError
from orchestration.cluster.weight_sync import Transfer
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import IsentropeError
from orchestration.run import lifecycle
from orchestration.run.loop import Run
from orchestration.run.state import RunState
from orchestration.run.stop import StopSignal
from orchestration.sampling.curriculum import Curriculum, stages_of
from orchestration.sampling.producer import SynchronousProducer


class Failing(FakeRun):
    """Fails at the n-th call of one of its methods."""

    def __init__(self, method: str, nth: int, error: Exception) -> None:
        super().__init__()
        self.method, self.left, self.error = method, nth, error

    def _maybe(self, method: str) -> None:
        if method == self.method:
            self.left -= 1
            if self.left == 0:
                raise self.error

    async def train(self, batches: Any) -> dict[str, float]:
        self._maybe("train")
        return await super().train(batches)

    async def sync(self, version: int, sequences: Sequence[Sequence[int]]) -> Transfer:
        self._maybe("sync")
        return await super().sync(version, sequences)

    async def collect(self, prompts: Any, sampling: Any, **more: Any) -> Any:
        self._maybe("collect")
        return await super().collect(prompts, sampling, **more)

    async def save(self, hf: Any, engine: Any) -> None:
        self._maybe("save")
        await super().save(hf, engine)


def run_of(fake: FakeRun, folder: Path, evaluated: int = 0) -> Run:
    data = stages_data()
    data["stages"][0]["iterations"] = data["stages"][1]["iterations"] = 4
    data["evaluation"] = {"prompts": evaluated, "start": False}
    data["checkpoint"] = {"every": 0}
    config = validate(data)
    environments = [catalog.load(e.name, e.params, seed=0) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), 0, None)
    state = RunState.fresh(config, curriculum)
    anything = cast("Any", fake)
    producer = SynchronousProducer(config, curriculum, anything)
    return Run(config, anything, producer, anything, state, Checkpoints(folder, 9), anything, StopSignal())


def fail(fake: FakeRun, folder: Path, kind: type[Exception]) -> tuple[list[str], dict[str, Any] | None]:
    """Runs into the failure. Returns the events that were said and the state of the checkpoint that was left."""
    with pytest.raises(kind):
        asyncio.run(run_of(fake, folder).train())
    latest = Checkpoints(folder, 9).latest()
    return [e[1] for e in fake.events if e[0] == "event"], None if latest is None else read_state(latest)


def test_a_run_that_cannot_sample_any_more_ends_after_a_checkpoint(tmp_path: Path) -> None:
    fake = Failing("collect", 4, PoolEmpty("no generator is left"))  # 1: the start; 2, 3: iterations 1 and 2
    events, state = fail(fake, tmp_path, PoolEmpty)
    assert state is not None and (state["iteration"], state["policy_version"]) == (2, 2)
    assert events[-1] == "the run ends after a checkpoint of iteration 2"


def test_an_iteration_whose_updates_were_taken_counts_though_its_weights_went_nowhere(tmp_path: Path) -> None:
    fake = Failing("sync", 3, WeightSyncError("generator 0", "bucket 1", "no answer"))
    _, state = fail(fake, tmp_path, WeightSyncError)
    assert state is not None and (state["iteration"], state["policy_version"]) == (3, 3)
    assert [row["iteration"] for row in fake.rows] == [1, 2, 3]  # a resumed run goes on behind the last row
    assert state["curriculum"]["iteration"] == 3


@pytest.mark.parametrize("error", [NonFiniteError("the loss is nan"), LearnerDied("learner rank 0", "killed")])
def test_weights_that_are_between_two_iterations_are_not_saved(tmp_path: Path, error: Exception) -> None:
    assert fail(Failing("train", 3, error), tmp_path, type(error))[1] is None


def test_an_error_of_any_kind_in_the_updates_saves_nothing_and_one_beside_them_does(tmp_path: Path) -> None:
    assert fail(Failing("train", 3, KeyError("x")), tmp_path / "in", KeyError)[1] is None
    assert fail(Failing("collect", 4, KeyError("x")), tmp_path / "beside", KeyError)[1] is not None


@pytest.mark.parametrize("method", ["sync", "collect"])
def test_an_evaluation_that_an_error_kept_from_being_made_is_still_owed(tmp_path: Path, method: str) -> None:
    """At the end of the first stage: by the transfer before it, or within it."""
    fake = Failing(method, 4 if method == "sync" else 6, PoolEmpty("no generator is left"))
    with pytest.raises(PoolEmpty):
        asyncio.run(run_of(fake, tmp_path, evaluated=2).train())
    latest = Checkpoints(tmp_path, 9).latest()
    assert latest is not None
    state = read_state(latest)
    assert state["iteration"] == 4 and state["owes_evaluation"]


def test_a_row_that_cannot_be_written_at_the_end_costs_no_checkpoint(tmp_path: Path) -> None:
    class Full(Failing):
        def sample(self, rows: Any) -> None:
            if self.left <= 0:
                raise OSError("no space left")
            super().sample(rows)

    fake = Full("sync", 3, WeightSyncError("generator 0", "bucket 1", "no answer"))
    events, state = fail(fake, tmp_path, WeightSyncError)
    assert state is not None and state["iteration"] == 3
    assert any("the row of the last iteration could not be written: no space left" in event for event in events)


def test_a_checkpoint_that_fails_as_well_does_not_hide_the_first_error(tmp_path: Path) -> None:
    class Twice(Failing):
        async def save(self, hf: Any, engine: Any) -> None:
            raise OSError("no space left\non device")

    fake = Twice("collect", 4, PoolEmpty("no generator is left"))
    events, state = fail(fake, tmp_path, PoolEmpty)
    assert state is None
    assert events[-1].startswith("no checkpoint could be written at the end: ") and "\n" not in events[-1]


def test_no_update_is_made_from_a_batch_that_nobody_judged(tmp_path: Path) -> None:
    class Unjudged(FakeRun):
        async def collect(self, prompts: Any, sampling: Any, *, stamp: str, **more: Any) -> Any:
            groups, seconds = await super().collect(prompts, sampling, stamp=stamp, **more)
            if stamp != "iteration 2":
                return groups, seconds
            error = Verdict(0.0, status=Status.ERROR, detail="ValueError: no such row")
            return [
                Group(g.prompt, tuple(type(t)(t.prompt, t.turns, t.texts, error) for t in g.trajectories))
                for g in groups
            ], seconds

    fake = Unjudged()
    asyncio.run(run_of(fake, tmp_path).train())
    updates = [bool(batch.updates) for batch in fake.trained]
    assert updates[:3] == [True, False, True]
    said = [e[1] for e in fake.events if e[0] == "event" and "has a verdict" in e[1]]
    assert len(said) == 1 and "ValueError: no such row" in said[0] and said[0].startswith("iteration 2: none of")


# --- the learner is lost --------------------------------------------------------------------------------------------------


def lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deaths: int, restarts: int
) -> tuple[list[Any], list[str], str]:
    """Trains where the learner dies so often. Returns (checkpoint begun from, events, error)."""
    data = config_data(run={"name": "demo", "iterations": 9, "dir": str(tmp_path)})
    data["learner"]["restarts"] = restarts
    config: RunConfig = validate(data)
    begun: list[Any] = []
    events: list[str] = []

    async def train(job: lifecycle.Job, *_: Any) -> None:
        begun.append(job.checkpoint and job.checkpoint.name)
        if len(begun) == 1:  # it got as far as a checkpoint
            stopped_run(config)
        if len(begun) <= deaths:
            raise LearnerDied("learner rank 1", "its process was killed")

    monkeypatch.setattr(lifecycle, "_train", train)
    sink = cast("Any", SimpleNamespace(event=events.append))
    error = ""
    try:
        work = lifecycle._train_through(lifecycle.Job(config), cast("Any", None), sink, cast("Any", None), StopSignal())
        asyncio.run(work)
    except IsentropeError as ended:
        error = str(ended)
    return begun, events, error


def test_a_lost_learner_goes_on_from_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun, events, error = lost(monkeypatch, tmp_path, deaths=2, restarts=3)
    assert (begun, error) == ([None, "step_000001", "step_000001"], "")
    assert events[0] == (
        "learner rank 1 is gone: its process was killed; the learner group is built anew and the run goes on from step_000001, "
        "2 more times at most"
    )


def test_how_often_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun, _, error = lost(monkeypatch, tmp_path, deaths=9, restarts=2)
    assert len(begun) == 3
    assert error.endswith("the learner group was built anew 2 times before (learner.restarts), and the run ends")
    assert len(lost(monkeypatch, tmp_path / "never", deaths=9, restarts=0)[0]) == 1
