"""Checkpoint folders: whole or not there, the newest named, the oldest gone, damage named, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from learner import checkpoint
from learner.checkpoint import CheckpointError, Checkpoints, read_state, verify, write_whole


def write(checkpoints: Checkpoints, iteration: int, text: str = "weights") -> Path:
    draft = checkpoints.begin(iteration)
    (draft / "hf").mkdir()
    (draft / "hf" / "model").write_text(text)
    return checkpoints.finish(draft, {"iteration": iteration, "text": text})


def names(checkpoints: Checkpoints) -> list[str]:
    return [p.name for p in checkpoints.steps()]


def test_the_newest_is_latest_and_the_oldest_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for i in (2, 4, 10):
        write(checkpoints, i)
    assert names(checkpoints) == ["step_000004", "step_000010"]
    latest = checkpoints.latest()
    assert latest is not None
    assert read_state(latest)["iteration"] == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_000004", "step_000010"]
    assert checkpoints.at(4) == tmp_path / "step_000004"
    assert checkpoints.at(2) is None


def test_a_draft_that_is_not_finished_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1)
    (checkpoints.begin(2) / "half").write_text("h")
    assert names(checkpoints) == ["step_000001"]
    checkpoints.discard(checkpoints.begin(2))
    assert not list(tmp_path.glob("*.writing"))
    (checkpoints.begin(2) / "half").write_text("h")  # by a process that is killed here
    write(checkpoints, 3)
    assert not list(tmp_path.glob("*.writing"))


def test_at_every_moment_of_a_second_save_of_an_iteration_there_is_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before and after each change of a name or removal, which is where a kill can leave the folder."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 3, "old")
    seen: list[str] = []

    def look() -> None:
        latest = Checkpoints(tmp_path, keep=1).latest()
        assert latest is not None
        state = read_state(latest)
        verify(latest, state)
        seen.append(state["text"])

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            look()
            result = function(*args, **kwargs)
            look()
            return result

        return call

    for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    write(checkpoints, 3, "new and longer")
    assert seen[0] == "old"
    assert seen[-1] == "new and longer"
    assert names(checkpoints) == ["step_000003.1"]
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest / "hf" / "model").read_text() == "new and longer"
    assert checkpoints.at(3) == latest


def test_what_is_saved_already_need_not_be_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert not checkpoints.holds({"iteration": 3, "text": "weights"})
    path = write(checkpoints, 3)
    assert checkpoints.holds({"iteration": 3, "text": "weights"})
    assert not checkpoints.holds({"iteration": 3, "text": "weights", "owes_evaluation": True})
    assert not checkpoints.holds({"iteration": 4, "text": "weights"})
    (path / "state.json").write_text("{")
    assert not checkpoints.holds({"iteration": 3, "text": "weights"})


def test_going_back_makes_an_older_one_the_latest_and_the_next_one_replaces_later_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for i in (1, 2, 3):
        write(checkpoints, i)
    checkpoints.point_at(tmp_path / "step_000002")
    assert [p.name for p in checkpoints.candidates()] == ["step_000002", "step_000001", "step_000003"]
    write(checkpoints, 2, "another course")
    assert names(checkpoints) == ["step_000001", "step_000002.1"]


DAMAGES = {
    "shorter": "should have 7 bytes and has 1",
    "gone": "should have 7 bytes and is missing",
    "flipped": "has other bytes than were written",
    "state": "is not JSON",
    "binary state": "is not JSON",
    "list": "holds a list and should hold an object",
    "deep": "is not JSON",
    "nothing but a format": "no list of the checkpoint's files",
    "format": "has format 99 and this version reads 1 and 2",
    "outside": "no list of the checkpoint's files",
    "no iteration": "does not say which iteration",
    "other state": "state.json has other contents than were written",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_sentence(tmp_path: Path, damage: str) -> None:
    folder = write(Checkpoints(tmp_path, keep=2), 1)
    model, state = folder / "hf" / "model", folder / "state.json"
    whole = state.read_text()
    {
        "shorter": lambda: model.write_text("w"),
        "gone": model.unlink,
        "flipped": lambda: model.write_text("Weights"),
        "state": lambda: state.write_text("{"),
        "binary state": lambda: state.write_bytes(b"\xff\xfe\x00\x80"),
        "list": lambda: state.write_text("[]"),
        "deep": lambda: state.write_text("[" * 100_000),
        "nothing but a format": lambda: state.write_text('{"format": 1}'),
        "format": lambda: state.write_text(whole.replace('"format": 2', '"format": 99')),
        "outside": lambda: state.write_text(whole.replace("hf/model", "../../model")),
        "no iteration": lambda: state.write_text(whole.replace('"iteration": 1', '"iteration": "x"')),
        "other state": lambda: state.write_text(whole.replace('"iteration": 1', '"iteration": 2')),
    }[damage]()
    with pytest.raises(CheckpointError, match=DAMAGES[damage]) as raised:
        verify(folder, read_state(folder))
    assert "step_000001" in str(raised.value)
    assert len(str(raised.value)) < 600


def test_a_checkpoint_of_the_first_format_is_read_by_its_sizes(tmp_path: Path) -> None:
    folder = write(Checkpoints(tmp_path, keep=2), 1)
    old = {"format": 1, "iteration": 1, "files": {"hf/model": 7}}
    (folder / "state.json").write_text(json.dumps(old))
    verify(folder, read_state(folder))


@pytest.mark.parametrize(
    "pointer", [b"step_000099", b"\xff\xfe\x80", b"x" * 5000, b"../other/checkpoints/step_000009", b""]
)
def test_a_pointer_to_nothing_of_its_own_is_ignored(tmp_path: Path, pointer: bytes) -> None:
    write(Checkpoints(tmp_path / "other" / "checkpoints", keep=2), 9)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    write(checkpoints, 1)
    (tmp_path / "checkpoints" / "latest").write_bytes(pointer)
    assert checkpoints.latest() == tmp_path / "checkpoints" / "step_000001"


def test_a_link_to_another_runs_checkpoint_is_none(tmp_path: Path) -> None:
    other = write(Checkpoints(tmp_path / "other", keep=2), 9)
    checkpoints = Checkpoints(tmp_path / "own", keep=2)
    write(checkpoints, 1)
    (tmp_path / "own" / "step_000009").symlink_to(other)
    (tmp_path / "own" / "latest").write_text("step_000009")
    assert checkpoints.latest() == tmp_path / "own" / "step_000001"


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("name", ["engine/state/zero_pp_rank_0_mp_rank_00_optim_states.pt", "hf/pytorch_model.bin"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    proof = tmp_path / "ran"
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    draft = checkpoints.begin(1)
    (draft / name).parent.mkdir(parents=True)
    (draft / name).write_bytes(pickle.dumps(Command(proof)))
    folder = checkpoints.finish(draft, {"iteration": 1})
    with pytest.raises(CheckpointError, match="is a pickle"):
        verify(folder, read_state(folder))
    assert not proof.exists()


def test_a_broken_header_of_tensors_is_found_before_anything_starts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    draft = checkpoints.begin(1)
    (draft / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    folder = checkpoints.finish(draft, {"iteration": 1})
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        verify(folder, read_state(folder))


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "file", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*file"):
        write_whole(tmp_path / "file", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_tensors_on_a_full_disk_are_an_error_of_the_disk(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(OSError, match="No space left on device") as raised, checkpoint.disk_errors(tmp_path / "model"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert raised.value.errno == 28
    with pytest.raises(SafetensorError), checkpoint.disk_errors(tmp_path):
        raise SafetensorError("header too large")
