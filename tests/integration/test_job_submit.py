"""`ray job submit` against a local head with token authentication: the way a cluster's users start a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ray_head import BIN, ray_head
from support.readme import write_own_environment

from learner.checkpoint import Checkpoints, read_state

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    with ray_head(tmp_path) as started:
        yield started


def test_a_job_trains(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environ = head
    model = tmp_path / "model"
    init = [sys.executable, "-m", "orchestration", "init-model", "--recipe", "smoke", "--out", str(model), "steps=0"]
    subprocess.run([*init, "--cache", str(tmp_path / "cache")], cwd=ROOT, env=environ, timeout=120, check=True)
    submit = [
        BIN / "ray", "job", "submit", f"--address={address}", "--working-dir", ".", "--",
        sys.executable, "-m", "orchestration", "train", "smoke", f"model.path={model}", f"run.dir={tmp_path}/runs",
        "run.iterations=2", "evaluation.prompts=0",
    ]  # fmt: skip
    result = subprocess.run(submit, cwd=ROOT, env=environ, timeout=240, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert (tmp_path / "runs" / "smoke" / "checkpoints" / "step_000002" / "hf" / "model.safetensors").exists()

    refused = subprocess.run(
        submit,
        cwd=ROOT,
        env={**environ, "RAY_AUTH_MODE": "disabled"},
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0  # without the token nobody gets in


def test_an_environment_travels_with_the_working_directory(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """A folder of the user's with the recipe and its module in a folder below: what is run is Ray's copy of it."""
    address, environ = head
    project, model = tmp_path / "project", tmp_path / "model"
    recipe = write_own_environment(project / "games")
    init = [
        sys.executable,
        "-m",
        "orchestration",
        "init-model",
        "--recipe",
        str(recipe),
        "--out",
        str(model),
        "steps=0",
    ]
    subprocess.run([*init, "--cache", str(tmp_path / "cache")], cwd=tmp_path, env=environ, timeout=120, check=True)
    submit = [
        BIN / "ray", "job", "submit", f"--address={address}", "--working-dir", ".", "--",
        sys.executable, "-P", "-m", "orchestration", "train", "games/swaps.yaml", f"model.path={model}",
        f"run.dir={tmp_path}/runs", "run.iterations=1", "batch.prompts=4", "evaluation.prompts=0",
    ]  # fmt: skip
    result = subprocess.run(submit, cwd=project, env=environ, timeout=240, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (row,) = map(json.loads, (tmp_path / "runs" / "swaps" / "metrics.jsonl").read_text().splitlines())
    assert row["status/error"] == row["status/timeout"] == 0


@pytest.mark.skipif(not os.environ.get("ISENTROPE_CHAOS"), reason="takes minutes: `make chaos` plays it")
@pytest.mark.parametrize("patience", [None, 60], ids=["Ray's own 3 s", "60 s"])
def test_a_job_that_is_stopped_can_be_gone_on_with(
    head: tuple[str, dict[str, str]], tmp_path: Path, patience: int | None
) -> None:
    """Ray sends SIGTERM and kills what is left after RAY_JOB_STOP_WAIT_TIME_S of the job: a whole checkpoint is there either way,
    and with patience enough it is that of the last iteration."""
    address, environ = head
    model = tmp_path / "model"
    init = [sys.executable, "-m", "orchestration", "init-model", "--recipe", "smoke", "--out", str(model), "steps=0"]
    subprocess.run([*init, "--cache", str(tmp_path / "cache")], cwd=ROOT, env=environ, timeout=120, check=True)
    variables = {} if patience is None else {"RAY_JOB_STOP_WAIT_TIME_S": str(patience)}
    subprocess.run(
        [
            BIN / "ray", "job", "submit", f"--address={address}", "--working-dir", ".", "--no-wait",
            "--submission-id", "stopped", "--runtime-env-json", json.dumps({"env_vars": variables}), "--",
            sys.executable, "-m", "orchestration", "train", "smoke", f"model.path={model}", f"run.dir={tmp_path}/runs",
            "run.iterations=100000", "evaluation.prompts=0", "checkpoint.every=2", "checkpoint.minutes=0",
        ],
        cwd=ROOT, env=environ, timeout=120, check=True, capture_output=True,
    )  # fmt: skip
    run, deadline = tmp_path / "runs" / "smoke", time.monotonic() + 240
    while not (run / "checkpoints" / "step_000002" / "state.json").exists():
        assert time.monotonic() < deadline, "no checkpoint within 240 s"
        time.sleep(0.2)
    began = time.monotonic()
    stop = [BIN / "ray", "job", "stop", f"--address={address}", "stopped"]
    subprocess.run(stop, cwd=ROOT, env=environ, timeout=120, check=True, capture_output=True)
    seconds = time.monotonic() - began
    saved = Checkpoints(run / "checkpoints", 2).latest()
    assert saved is not None
    rows = (run / "metrics.jsonl").read_text().splitlines()
    lost = len(rows) - read_state(saved)["iteration"]
    print(f"stopped within {seconds:.1f} s, {lost} of {len(rows)} iterations are in no checkpoint")
    assert lost <= (2 if patience is None else 0)
