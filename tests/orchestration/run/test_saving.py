"""Checkpoints of a run: when they are due, and what a full disk does to them and to the run."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from learner.checkpoint import Checkpoints, read_state, verify
from orchestration.config.sections import CheckpointSection
from orchestration.run.saving import NotSaved, Saver


class FakeState:
    pending = None

    def __init__(self) -> None:
        self.iteration, self.learner = 1, {}

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "learner": self.learner}


class FakeLearner:
    """Writes `size` bytes as a model, as far as the disk takes them."""

    def __init__(self) -> None:
        self.size, self.saves = 1000, 0

    async def state_dict(self) -> dict[str, Any]:
        return {"steps": 1}

    async def save(self, hf: Path, engine: Path) -> None:
        self.saves += 1
        engine.mkdir()
        hf.mkdir()
        (engine / "state").write_bytes(b"e" * 10)
        (hf / "model").write_bytes(b"w" * self.size)


class Setting:
    def __init__(self, folder: Path, section: CheckpointSection) -> None:
        self.events: list[str] = []
        self.state, self.learner, self.time = FakeState(), FakeLearner(), 0.0
        self.checkpoints = Checkpoints(folder / "checkpoints", 2)
        self.saver = Saver(
            section,
            cast("Any", SimpleNamespace(learner=self.learner, learners_turn=self.learners_turn)),
            cast("Any", SimpleNamespace(save_tokenizer=lambda folder: None)),
            cast("Any", self.state),
            self.checkpoints,
            cast("Any", SimpleNamespace(progress=lambda *_: None, event=self.events.append)),
            lambda: self.time,
        )

    async def learners_turn(self) -> None: ...

    def save(self, last: bool = False) -> None:
        asyncio.run(self.saver.save(last=last))


def test_by_number_and_by_time(tmp_path: Path) -> None:
    s = Setting(tmp_path, CheckpointSection(every=3))

    def due(iteration: int, minutes: float) -> bool:
        s.state.iteration, s.time = iteration, 60 * minutes
        return s.saver.due()

    assert [due(i, 0) for i in (1, 2, 3, 4)] == [False, False, True, False]
    assert [due(4, m) for m in (9.9, 10)] == [False, True]
    s.save()  # at 10 minutes
    assert [due(5, m) for m in (19.9, 20)] == [False, True]
    neither = Setting(tmp_path, CheckpointSection(minutes=0))
    neither.time = 1e9
    assert not neither.saver.due()


def test_a_state_that_is_saved_already_is_not_saved_again(tmp_path: Path) -> None:
    """A stop right after a checkpoint: there may be 3 s until the process is killed."""
    s = Setting(tmp_path, CheckpointSection())
    s.save()
    s.save(last=True)
    assert s.learner.saves == 1
    s.state.iteration = 2
    s.save()
    assert s.learner.saves == 2


@contextlib.contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """Mounts a file system of 256 KiB, where that is permitted; else skips."""
    at.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", at], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


def check_a_full_disk(s: Setting) -> None:
    """A save that fails leaves the old one whole and no draft, is an event unless it is the last, and is tried again."""
    s.save()
    s.state.iteration, s.time = 2, 600.0
    s.learner.size = 400_000
    s.save()
    assert len(s.events) == 1
    assert "the checkpoint of iteration 2 was not written, the latest is still step_000001: " in s.events[0]
    assert re.search(
        r"(model|checkpoints): No space left on device; [\d.]+ KiB are needed at least and \S+ \S+ are free: make room$",
        s.events[0],
    )
    assert [p.name for p in s.checkpoints.folder.iterdir()].count("step_000001") == 1
    assert not list(s.checkpoints.folder.glob("*.writing"))
    latest = s.checkpoints.latest()
    assert latest is not None
    verify(latest, read_state(latest))
    assert not s.saver.due()  # not at once
    with pytest.raises(NotSaved, match="No space left") as raised:
        s.save(last=True)
    assert raised.value.exit_code == 1
    s.time, s.learner.size = 1200.0, 1000
    assert s.saver.due()
    s.save()
    newest = s.checkpoints.latest()
    assert newest is not None and newest.name == "step_000002"


def test_a_really_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        check_a_full_disk(Setting(disk, CheckpointSection()))


def test_a_disk_that_says_it_is_full(tmp_path: Path) -> None:
    s = Setting(tmp_path, CheckpointSection())
    save = s.learner.save

    async def limited(hf: Path, engine: Path) -> None:
        await save(hf, engine)
        if s.learner.size > 100_000:
            raise OSError(28, "No space left on device", str(hf / "model"))

    s.learner.save = limited  # type: ignore[method-assign]
    check_a_full_disk(s)


def test_another_failure_removes_the_draft_and_is_not_taken_for_the_disk(tmp_path: Path) -> None:
    s = Setting(tmp_path, CheckpointSection())

    async def broken(hf: Path, engine: Path) -> None:
        hf.mkdir()
        raise ValueError("a rank is gone")

    s.learner.save = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="a rank is gone"):
        s.save()
    assert not list(tmp_path.rglob("*.writing"))


def test_safetensors_on_a_really_full_disk(tmp_path: Path) -> None:
    import torch

    from learner.optimiser.adamw import MOMENTS, StepCount
    from learner.optimiser.moments import Plain
    from learner.training_state import shards
    from learner.training_state.fragments import Fragment

    values = {key: Plain(torch.zeros(100_000)) for key in ("master", *MOMENTS)}
    with small_disk(tmp_path / "disk") as disk, pytest.raises(OSError, match=r"No space left on device: .*rank_0000"):
        shards.write(disk / "engine", [Fragment("p", 100_000, 0, values, StepCount({"step": torch.tensor(1.0)}))], 0, 1)
    shutil.rmtree(tmp_path / "disk", ignore_errors=True)


def test_a_checkpoint_that_is_being_finished_when_the_run_is_cancelled_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that hashes and renames cannot be stopped: what it works on must not be removed under it."""
    setting = Setting(tmp_path, CheckpointSection(every=1))
    entered, go_on, finish = threading.Event(), threading.Event(), setting.checkpoints.finish

    def slowly(draft: Path, state: dict[str, Any]) -> Path:
        entered.set()
        assert go_on.wait(10)
        return finish(draft, state)

    monkeypatch.setattr(setting.checkpoints, "finish", slowly)

    async def cancelled() -> None:
        saving = asyncio.create_task(setting.saver.save(last=True))
        await asyncio.to_thread(entered.wait, 10)
        saving.cancel()
        await asyncio.sleep(0.05)
        assert not saving.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await saving

    asyncio.run(cancelled())
    latest = setting.checkpoints.latest()
    assert latest is not None
    verify(latest, read_state(latest))
