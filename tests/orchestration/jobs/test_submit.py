"""The command and the runtime environment of a job, and what is refused before anything is sent."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestration.cli import app
from orchestration.errors import ConfigError
from orchestration.jobs import submit, variables
from orchestration.jobs.packing import Item, Package
from orchestration.jobs.submit import Submission


def test_the_command_begins_the_run_or_goes_on_with_it() -> None:
    package = Package("my runs/x.yaml", (), {})
    line = submit.command(Submission("x", ["a.b=[1, 2]", "c.d=$HOME"]), package, "/opt/a b/python")
    first, *words = shlex.split(line)
    assert first == "exec"  # a signal reaches the driver itself
    assert words[:5] == ["/opt/a b/python", "-P", "-m", "orchestration", "train"]
    assert words[5:] == ["my runs/x.yaml", "--auto-resume", "a.b=[1, 2]", "c.d=$HOME"]
    assert "--overwrite" in submit.command(Submission("x", [], overwrite=True), package, "python")


def test_values_of_variables_are_in_no_part_that_ray_shows(tmp_path: Path) -> None:
    found = submit.runtime_env(tmp_path, True, None)
    assert found["env_vars"][variables.WHERE] == variables.FILE
    assert found["worker_process_setup_hook"] == "orchestration.jobs.variables.load"
    assert submit.runtime_env(None, False, None) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}
    assert submit.runtime_env(None, False, "/x/python")["py_executable"] == "/x/python"


def test_the_hook_is_the_function_that_loads_them() -> None:
    module, _, name = variables.HOOK.rpartition(".")
    assert module == variables.__name__ and name == variables.load.__name__


def test_what_is_too_large_for_ray_is_named(tmp_path: Path) -> None:
    for name, size in (("w", 5000), ("d", 10)):
        (tmp_path / name).write_bytes(b"x" * size)
    files = {"w": tmp_path / "w", "d": tmp_path / "d"}
    package = Package("r", (Item("data", "d", ("d",)), Item("model.path", "models/x", ("w",))), files)
    submit.check_size(package, 6000)
    with pytest.raises(ConfigError, match=r"4\.9 KiB would be uploaded, 4\.9 KiB of it for model\.path=models/x"):
        submit.check_size(package, 5000)


def test_a_dry_run_says_what_would_be_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_KEY", "hidden-value")
    monkeypatch.chdir(tmp_path)
    words = ["submit", "smoke", "--dry-run", "--env", "MY_KEY", "run.dir=/shared", "model.path=/shared/m"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "by path: every node has to see it" in done.output and "MY_KEY" in done.output
    assert "hidden-value" not in done.output
    assert not list(tmp_path.iterdir())


def test_going_on_and_beginning_anew_exclude_each_other() -> None:
    for option in ("--auto-resume", "--resume"):
        done = CliRunner().invoke(app, ["train", "smoke", option, "--overwrite"])
        assert isinstance(done.exception, ConfigError) and "give one of them" in str(done.exception)
