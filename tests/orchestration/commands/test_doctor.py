"""Tests what `doctor` reports of a machine, and the sentence and exit code where something required is missing."""

from __future__ import annotations

import importlib.metadata
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from envs.isolation import sandbox
from orchestration.cli import app
from orchestration.commands import doctor
from orchestration.errors import PlacementError

run = CliRunner()


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def check_named(name: str) -> doctor.Check:
    return next(check for check in doctor.checks() if check.name == name)


def test_it_reports_what_is_installed() -> None:
    result = run.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for words in ("torch         " + importlib.metadata.version("torch"), "GiB memory", "a run starts its own"):
        assert words in result.output
    assert sandbox.active().sentence in result.output


def test_a_missing_package_is_a_sentence_and_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no-such-package-anywhere"))
    monkeypatch.setattr(doctor, "ENGINES", ())
    result = run.invoke(app, ["doctor"])
    assert isinstance(result.exception, PlacementError) and result.exception.exit_code == 3
    assert str(result.exception).startswith("no-such-package-anywhere is not installed: make install. 0 engines")
    assert "! no-such-package-anywhere" in result.output


def test_a_cluster_that_is_named_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert check_named("ray cluster") == doctor.Check("ray cluster", f"{address} answers")
    assert f"RAY_ADDRESS={address} does not answer" in check_named("ray cluster").missing
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    assert "does not answer" in check_named("ray cluster").missing


def test_graphics_cards_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H100\nIRQ: 5\n")
    monkeypatch.setattr(doctor, "_NVIDIA", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert check_named("cuda").value == "NVIDIA H100; CUDA_VISIBLE_DEVICES=''"


def test_a_missing_sandbox_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise sandbox.IsolationError("no isolation here")

    monkeypatch.setattr(sandbox, "active", none)
    assert check_named("sandbox").value == "none, python_program cannot be used: no isolation here"


def test_it_imports_no_big_library() -> None:
    code = (
        "import sys; from orchestration.commands import doctor; doctor.checks();"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout == "[]\n"
