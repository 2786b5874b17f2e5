"""What a resumed run knows of its past, up to the loop that goes on with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from support.builders import config_data, stopped_run

from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import ConfigError, IsentropeError
from orchestration.run import lifecycle, loop
from orchestration.run.stop import StopSignal
from orchestration.sampling.codec import Codecs
from orchestration.telemetry.alarms import Alarms
from orchestration.telemetry.reward_hacking import RewardHackingMonitor
from orchestration.telemetry.sinks.base import FanOut

FORM, HALF_AS_MUCH = {"format": {"weight": 0.5}}, {"format": {"weight": 0.25}}


def demo(folder: Path, rewards: dict[str, Any]) -> RunConfig:
    return validate(config_data(run={"name": "demo", "iterations": 9, "dir": str(folder)}, rewards=rewards))


def past_states() -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the states of a reward-hacking monitor and of alarms that have already spoken."""
    monitor, alarms = RewardHackingMonitor(), Alarms("none")
    for i in range(30):
        row = {"reward/mean": i / 30, "correct/mean": 0.5, "response/length_mean": 9.0}
        alarms.look(row | monitor.look(row))
    assert alarms.state_dict() != Alarms("none").state_dict()
    return monitor.state_dict(), alarms.state_dict()


def resumed(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> loop.Run:
    """Returns the run at the start of its loop, on actors that do nothing."""
    runs: list[loop.Run] = []

    async def begin(*_: Any) -> None: ...

    async def note(run: loop.Run) -> None:
        runs.append(run)

    def unasked(*_: Any) -> None:
        raise AssertionError("nothing is generated or scored here")

    monkeypatch.setattr(loop.Run, "train", note)
    asked = SimpleNamespace(score=unasked, generate=unasked)
    cluster = cast("Any", SimpleNamespace(begin=begin, generators=asked, verifiers=asked, reward_models=asked))
    job = lifecycle.prepare(config, resume=True)
    asyncio.run(lifecycle._train(job, cluster, FanOut([]), Codecs(cast("Any", None), None), StopSignal()))
    return runs[0]


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        ({}, {}, True),
        (FORM, FORM, True),
        ({}, FORM, False),
        (FORM, {}, False),
        (FORM, HALF_AS_MUCH, False),
        ({}, {"verdict": 2.0}, False),
    ],
)
def test_another_reward_has_a_start_of_its_own_and_alarms_speak_once_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any], now: dict[str, Any], kept: bool
) -> None:
    old, new = demo(tmp_path, before), demo(tmp_path, now)
    monitor, alarms = past_states()
    rest = {
        "rewards": old.rewards.model_dump(mode="json"),
    }
    stopped_run(old, drift=monitor, alarms=alarms, **rest)
    for _ in range(
        2
    ):  # the second time, the first has left its configuration, was killed, and the checkpoint is the same
        run = resumed(new, monkeypatch)
        assert run.state.monitor.state_dict() == (monitor if kept else RewardHackingMonitor().state_dict())
        assert run.state.alarms.state_dict() == alarms
        (new.folder / "config.yaml").write_text(new.to_yaml())


@pytest.mark.parametrize(("now", "kept"), [({}, True), (FORM, False)])
@pytest.mark.parametrize("named", [True, False])
def test_a_checkpoint_that_does_not_say_the_reward_has_that_of_its_run(
    tmp_path: Path, now: dict[str, Any], kept: bool, named: bool
) -> None:
    """A run from before there were reward terms has the environment's reward alone."""
    old = demo(tmp_path, {})
    stopped_run(old, drift=past_states()[0])
    if not named:
        data = yaml.safe_load(old.to_yaml())
        del data["rewards"]
        (old.folder / "config.yaml").write_text(yaml.safe_dump(data))
    state = lifecycle.prepare(demo(tmp_path, now), resume=True).state
    assert state is not None and ("drift" in state) == kept


class EndsBadly:
    """Fails when it is closed, as a log on a full disk does."""

    def close(self, status: str) -> None:
        raise OSError(28, "No space left on device")


def test_what_fails_at_the_end_does_not_hide_why_the_run_failed(tmp_path: Path) -> None:
    sink = FanOut([cast("Any", EndsBadly())])
    lifecycle._end(sink, "failed", tmp_path)
    with pytest.raises(IsentropeError, match=r"the run is finished, and its report .*: .*No space left on device"):
        lifecycle._end(sink, "finished", tmp_path)


def test_a_report_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1.0, "reward/mean": 0.5}\n')
    (tmp_path / "config.yaml").write_text("run: {name: demo}\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("learner.checkpoint.os.fsync", full)
    with pytest.raises(IsentropeError, match=r"report\.html"):
        lifecycle._end(FanOut([]), "finished", tmp_path)
    assert not list(tmp_path.glob("report.html*"))
    monkeypatch.undo()
    lifecycle._end(FanOut([]), "finished", tmp_path)
    assert "</html>" in (tmp_path / "report.html").read_text()


def test_checkpoints_that_another_process_made_meanwhile_are_not_removed(tmp_path: Path) -> None:
    """A laboratory prepares its runs long before the last of them begins."""
    config = demo(tmp_path, {})
    job = lifecycle.Job(config)
    checkpoints = stopped_run(config)
    with pytest.raises(ConfigError, match="has got checkpoints meanwhile"):
        lifecycle._clear(job)
    assert checkpoints.latest() is not None
    lifecycle._clear(lifecycle.Job(config, overwrite=True))
    assert not checkpoints.folder.exists() and not list(config.folder.glob("checkpoints*"))
    assert lifecycle.prepare(config, overwrite=True).overwrite
