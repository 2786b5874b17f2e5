"""Tests the last line of defence: an error that nobody expected is one sentence, and its traceback a file."""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path

import pytest
import typer

from orchestration import cli
from orchestration.config import run_config
from orchestration.defects import MARK, Defect, defects
from orchestration.errors import ConfigError


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["isentrope", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(recipe: str, overrides: object) -> None:
        raise KeyError("inner detail " * 1000)

    monkeypatch.setattr(run_config, "load_config", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("broken")
def test_an_unexpected_error_is_a_sentence_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(monkeypatch, "train", "smoke") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"isentrope: {MARK}: KeyError: 'inner detail") and len(said) < 2000
    assert "Traceback" not in said and said.count("\n") == 1
    found = re.search(r"the traceback is in (\S+): please", said)
    assert found is not None
    kept = Path(found[1])
    assert kept.parent == tmp_path and stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_text().startswith("Traceback") and "load_config" in kept.read_text()


@pytest.mark.usefixtures("broken")
def test_the_traceback_can_be_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ISENTROPE_TRACEBACK", "1")
    assert main(monkeypatch, "train", "smoke") == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said and MARK in said


def test_a_runs_defect_is_kept_in_its_folder_where_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(Defect, match=rf"RuntimeError: odd; the traceback is in {tmp_path}/"), defects(tmp_path):
        raise RuntimeError("odd")
    with pytest.raises(Defect, match=r"odd; the traceback is in /"), defects(tmp_path / "gone"):
        raise RuntimeError("odd")
    with pytest.raises(ConfigError, match=r"^said$"), defects(tmp_path):
        raise ConfigError("said")


def test_no_message_is_over_two_kilobytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("x" * 10**6, "ü" * 1500, "\ud800" * 1500):

        def fail(recipe: str, overrides: object, text: str = text) -> None:
            raise ConfigError(f"begins {text} ends")

        monkeypatch.setattr(run_config, "load_config", fail)
        assert main(monkeypatch, "train", "smoke") == 2
        said = capsys.readouterr().err
        assert len(said.encode("utf-8", "backslashreplace")) < 2000
        assert said.startswith("isentrope: begins") and said.endswith("ends\n")


def test_typers_own_endings_stay_theirs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "nonsense") == 2
    assert main(monkeypatch, "--help") == 0

    def leave(recipe: str, overrides: object) -> None:
        raise typer.Exit(3)

    monkeypatch.setattr(run_config, "load_config", leave)
    assert main(monkeypatch, "train", "smoke") == 3
    assert MARK not in capsys.readouterr().err
