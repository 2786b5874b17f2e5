"""Checkpoint folders: whole or not there, the newest named, the oldest gone, damage noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.checkpoint import CheckpointError, Checkpoints, read_state


def write(checkpoints: Checkpoints, iteration: int, text: str = "weights") -> None:
    with checkpoints.writing(iteration) as draft:
        (draft / "hf").mkdir()
        (draft / "hf" / "model").write_text(text)
        checkpoints.commit(draft, {"iteration": iteration})


def test_the_newest_is_latest_and_the_oldest_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for i in (2, 4, 10):
        write(checkpoints, i)
    assert [p.name for p in checkpoints.steps()] == ["step_000004", "step_000010"]
    latest = checkpoints.latest()
    assert latest is not None
    assert read_state(latest)["iteration"] == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_000004", "step_000010"]


def test_an_error_while_writing_leaves_the_last_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1)
    with pytest.raises(OSError, match="disk full"), checkpoints.writing(2):
        raise OSError("disk full")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.name == "step_000001"
    write(checkpoints, 2)  # what was left half-written is in nobody's way
    assert not list(tmp_path.glob("*.writing"))


def test_a_draft_without_its_state_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(CheckpointError, match=r"state\.json"), checkpoints.writing(1):
        pass
    assert checkpoints.latest() is None


def test_the_same_iteration_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 3, "old")
    write(checkpoints, 3, "new and longer")
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest / "hf" / "model").read_text() == "new and longer"
    assert read_state(latest)["files"] == {"hf/model": 14}


@pytest.mark.parametrize("damage", ["shorter", "gone", "state", "format"])
def test_damage_is_a_sentence(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1)
    folder = tmp_path / "step_000001"
    if damage == "shorter":
        (folder / "hf" / "model").write_text("w")
    elif damage == "gone":
        (folder / "hf" / "model").unlink()
    elif damage == "state":
        (folder / "state.json").write_text("{")
    else:
        text = (folder / "state.json").read_text()
        (folder / "state.json").write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="step_000001"):
        read_state(folder)


def test_a_pointer_to_nothing_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1)
    (tmp_path / "latest").write_text("step_000099")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.name == "step_000001"
