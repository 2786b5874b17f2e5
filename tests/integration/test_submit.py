"""`isentrope submit` against a local head with token authentication: README's block as it stands, and a driver that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.compare_runs import differences, rows
from support.ray_head import BIN, ROOT, ray_head
from support.readme import block

from orchestration.config.run_config import RECIPES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SECRET = "a-value-that-nobody-may-read"
KEYED = """\
import os

from envs.builtin.arithmetic import Arithmetic


class Keyed(Arithmetic):
    def open(self, prompt):
        os.environ["MY_KEY"]  # raises where the variable did not come along
        return super().open(prompt)
"""
SETTINGS = ["run.iterations=40", "evaluation.prompts=0", "checkpoint.every=5", "checkpoint.minutes=0"]


def isentrope(*arguments: str, cwd: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "orchestration", *arguments]
    return subprocess.run(command, cwd=cwd, env=environ, timeout=300, capture_output=True, text=True, check=False)


@pytest.fixture
def marked() -> Iterator[dict[str, str]]:
    """Yields an environment by which every process that is started with it is found, and ended."""
    mark = uuid.uuid4().hex
    environ = {**os.environ, "ISENTROPE_TEST_MARK": mark, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        environ.pop(name, None)
    yield environ
    for process in psutil.process_iter():
        try:
            if process.environ().get("ISENTROPE_TEST_MARK") == mark:
                process.kill()
        except psutil.Error:
            continue


def own_network() -> list[str]:
    """Returns what gives a command a network of its own, where this user may have one: Ray's own ports are then free."""
    words = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--net", "--map-root-user"]
    if (
        shutil.which("unshare")
        and subprocess.run([*words, "ip", "link"], capture_output=True, check=False).returncode == 0
    ):
        return words
    return []


def test_the_block_of_the_readme_works_at_the_first_try(marked: dict[str, str], tmp_path: Path) -> None:
    """From `ray start` to the report, from a clean folder that has the install and nothing else, in a home that never saw Ray."""
    home, folder = tmp_path / "home", tmp_path / "clean"
    home.mkdir()
    folder.mkdir()
    (folder / ".venv").symlink_to(BIN.parent)
    commands = block("", "On a cluster")
    assert "isentrope submit" in commands and "ray start --head" in commands
    script = f"set -e\n{commands}"
    network = own_network()
    if network:
        script = f"ip link set lo up\n{script}"
    environ = {**marked, "HOME": str(home), "RAY_TMPDIR": f"/tmp/i{os.getpid()}"}  # short: for the paths of sockets
    try:
        done = subprocess.run(
            [*network, "bash", "-c", script],
            cwd=folder,
            env=environ,
            timeout=500,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(environ["RAY_TMPDIR"], ignore_errors=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "uploaded, " in done.stderr and "succeeded, exit code 0" in done.stderr
    assert (folder / "runs" / "smoke" / "report.html").stat().st_size > 10_000
    token = (home / ".ray" / "auth_token").read_text()
    assert token not in done.stdout + done.stderr


def test_a_job_whose_driver_is_killed_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "keyed.py").write_text(KEYED)
    recipe = (RECIPES / "smoke.yaml").read_text("utf-8")
    (folder / "keyed.yaml").write_text(
        recipe.replace("name: smoke", "name: keyed").replace("- name: arithmetic", "- name: keyed:Keyed")
    )
    with ray_head(tmp_path) as (address, environ):
        environ = {**environ, "MY_KEY": SECRET}
        made = isentrope("init-model", "--recipe", "smoke", "steps=0", cwd=folder, environ=environ)
        assert made.returncode == 0, made.stderr
        job = ["submit", "keyed.yaml", *SETTINGS, f"--address={address}", "--env", "MY_KEY"]
        whole = isentrope(*job, f"run.dir={tmp_path}/whole", f"--python={sys.executable}", cwd=folder, environ=environ)
        assert whole.returncode == 0, whole.stdout[-3000:] + whole.stderr[-3000:]

        again = [*job, f"run.dir={tmp_path}/killed"]
        run = tmp_path / "killed" / "keyed"
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestration", *again],
            cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as following:  # fmt: skip
            kill_after(run, "step_000005")
            output, _ = following.communicate(timeout=120)
        assert following.returncode == 128 + signal.SIGKILL, output[-3000:]
        assert "Traceback" not in output and SECRET not in output

        resumed = isentrope(*again, cwd=folder, environ=environ)
        assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
        finished = isentrope(*again, cwd=folder, environ=environ)
        assert finished.returncode == 0 and "is finished: nothing to do" in finished.stdout

        jobs = subprocess.run(
            [BIN / "ray", "job", "list", f"--address={address}"],
            env=environ,
            timeout=60,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "keyed-" in jobs.stdout + jobs.stderr and SECRET not in jobs.stdout + jobs.stderr
    undisturbed = rows(tmp_path / "whole" / "keyed" / "metrics.jsonl")
    assert len(undisturbed) == 40 and all(row["status/error"] == 0 for row in undisturbed)
    assert differences(undisturbed, rows(run / "metrics.jsonl")) == []
    assert "resumed after" in (run / "events.log").read_text()


def kill_after(run: Path, checkpoint: str) -> None:
    """Kills the driver of a run, and nothing else, once this checkpoint is whole."""
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / checkpoint / "state.json").exists():
        assert time.monotonic() < deadline, f"no {checkpoint} within 240 s"
        time.sleep(0.05)
    os.kill(json.loads((run / "status.json").read_text())["pid"], signal.SIGKILL)
