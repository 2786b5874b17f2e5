"""The Slurm script with Ray and a run as they are, and stand-ins for Slurm's own commands: stopped, queued again, finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.ray_head import BIN, ROOT, free_ports

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SCRIPT = ROOT / "deploy" / "slurm" / "isentrope.sbatch"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo "$3"
[ "$1" = requeue ] && echo "$2" >> "$SLURM_SUBMIT_DIR/requeued"
exit 0
"""


def job(folder: Path, port: int) -> subprocess.Popen[str]:
    """Starts the script as Slurm would start a job of one node."""
    variables = {
        "PATH": f"{folder}/slurm:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "localhost", "SLURM_CPUS_ON_NODE": "2", "ISENTROPE_BIN": str(BIN), "ISENTROPE_PORT": str(port),
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    words = ["smoke", f"run.dir={folder}/runs", "run.iterations=60", "evaluation.prompts=0", "checkpoint.every=5"]
    environ = {**os.environ, **variables}
    environ.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_job_at_its_time_limit_goes_on_when_it_is_queued_again(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "slurm" / name).write_text(text)
        (tmp_path / "slurm" / name).chmod(0o755)
    init = [sys.executable, "-P", "-m", "orchestration", "init-model", "--recipe", "smoke", "steps=0"]
    subprocess.run(init, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=True)
    run, (port, later) = tmp_path / "runs" / "smoke", free_ports(2)

    first, deadline = job(tmp_path, port), time.monotonic() + 240
    while not (run / "checkpoints" / "step_000005" / "state.json").exists():
        if first.poll() is not None or time.monotonic() > deadline:
            first.kill()
            pytest.fail(f"no checkpoint: {first.communicate()[0][-4000:]}")
        time.sleep(0.05)
    first.send_signal(signal.SIGUSR1)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 143, output[-4000:]
    assert (tmp_path / "requeued").read_text() == "17\n"
    done = len((run / "metrics.jsonl").read_text().splitlines())
    assert 5 <= done < 60

    second = job(tmp_path, later)
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 0, output[-4000:]
    rows = [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 61))
    assert f"resumed after {done}" in (run / "events.log").read_text()
    assert (tmp_path / "requeued").read_text() == "17\n"  # a run that ended is not queued again
