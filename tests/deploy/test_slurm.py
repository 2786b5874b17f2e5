"""The Slurm script with stand-ins for Slurm's commands, Ray and the driver: what it calls, and when it goes back into the queue."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.tools import output_of, tool

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "isentrope.sbatch"

# One program under every name: it notes how it was called, and does what the real one does as far as the script can tell.
STAND_IN = """#!{python}
import itertools, json, os, pathlib, signal, subprocess, sys, time

name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
notes = pathlib.Path(os.environ["NOTES"])
token = os.environ.get("RAY_AUTH_TOKEN_PATH")
note = {{"name": name, "words": words, "address": os.environ.get("RAY_ADDRESS"), "mode": os.environ.get("RAY_AUTH_MODE")}}
if token and os.path.exists(token):
    note |= {{"token": len(open(token).read()), "permissions": oct(os.stat(token).st_mode & 0o777)}}
(notes / f"{{time.time_ns()}}-{{os.getpid()}}").write_text(json.dumps(note))

if name == "scontrol" and words[:2] == ["show", "hostnames"]:
    print("\\n".join(words[2].split(",")))
elif name == "srun":  # runs the command here, and passes signals on
    command = list(itertools.dropwhile(lambda word: word.startswith("--"), words))
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    sys.exit(child.wait())
elif name == "ray":  # `ray start --block`
    (notes / "joined").open("a").write("x")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(120)
elif name == "python" and words[0] == "-c":  # has everybody joined?
    joined = notes / "joined"
    sys.exit(not joined.exists() or len(joined.read_text()) < int(words[2]) or "NEVER" in os.environ)
elif name == "python":  # the driver
    def stop(*_):
        (notes / "checkpoint").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (notes / "driving").touch()
    time.sleep(float(os.environ.get("DRIVES_S", "0")))
    sys.exit(int(os.environ.get("DRIVER_ENDS_WITH", "0")))
"""


class Job:
    """Holds the script while it runs as a job of two nodes."""

    def __init__(self, root: Path, *words: str, nodes: str = "node1,node2", **environ: str) -> None:
        self.root, self.notes = root, root / "notes"
        bin_dir, slurm = root / ".venv" / "bin", root / "slurm"
        for folder in (bin_dir, slurm, self.notes):
            folder.mkdir(parents=True, exist_ok=True)
        for path in (bin_dir / "ray", bin_dir / "python", slurm / "srun", slurm / "scontrol"):
            path.write_text(STAND_IN.format(python=sys.executable))
            path.chmod(0o755)
        variables = {
            "PATH": f"{slurm}:{os.environ['PATH']}", "NOTES": str(self.notes), "SLURM_SUBMIT_DIR": str(root), "SLURM_JOB_ID": "17",
            "SLURM_JOB_NODELIST": nodes, "SLURM_CPUS_ON_NODE": "24", "SLURM_GPUS_ON_NODE": "8", "ISENTROPE_START_S": "30",
        }  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            env={**variables, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, name: str) -> None:
        """Waits for a file that a stand-in makes."""
        deadline = time.monotonic() + 60
        while not (self.notes / name).exists():
            assert self.process.poll() is None, self.process.stdout and self.process.stdout.read()
            assert time.monotonic() < deadline, f"no {name} within 60 s"
            time.sleep(0.02)

    def ends(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output

    @property
    def calls(self) -> list[dict[str, Any]]:
        files = sorted(path for path in self.notes.iterdir() if path.name[0].isdigit())
        return [json.loads(path.read_text()) for path in files]

    def called(self, name: str, *words: str) -> list[dict[str, Any]]:
        """Returns the calls of a program whose words begin with these."""
        return [call for call in self.calls if call["name"] == name and call["words"][: len(words)] == list(words)]


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    made: list[Job] = []
    yield made
    for job in made:
        for process in [*psutil.Process().children(recursive=True)]:
            if str(job.root) in " ".join(process.cmdline()):
                process.kill()
        job.process.kill()
        job.process.wait()


def test_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    assert output_of(tool("shellcheck"), SCRIPT) == (0, "")
    worse = tmp_path / "worse.sbatch"
    worse.write_text(SCRIPT.read_text().replace('"$@" --auto-resume', "$@ --auto-resume"))
    assert "SC2068" in output_of(tool("shellcheck"), worse)[1]


def test_a_run_has_a_head_a_worker_on_each_other_node_and_a_driver(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path, "my recipe.yaml", "run.dir=/shared/runs"))
    code, output = job.ends()
    assert code == 0, output
    head, worker = sorted((call["words"] for call in job.called("srun")), key=lambda words: words[3])
    sizes = ["--num-cpus=24", "--num-gpus=8", "--disable-usage-stats"]
    ray, step = str(tmp_path / ".venv/bin/ray"), ["--nodes=1", "--ntasks=1", "--overlap"]
    assert head == [*step, "--nodelist=node1", ray, "start", "--head", "--block", "--port=6379", *sizes]
    assert worker == [*step, "--nodelist=node2", ray, "start", "--block", "--address=node1:6379", *sizes]
    (driver,) = job.called("python", "-P")
    assert driver["words"][1:] == [
        "-m",
        "orchestration",
        "train",
        "my recipe.yaml",
        "run.dir=/shared/runs",
        "--auto-resume",
    ]
    assert driver["address"] == "node1:6379"
    assert job.calls.index(driver) > max(map(job.calls.index, job.called("ray")))  # when all had joined
    for call in [*job.called("ray"), driver]:
        assert (call["mode"], call["token"], call["permissions"]) == ("token", 64, "0o600")
    assert not job.called("scontrol", "requeue")
    assert not list(tmp_path.glob(".isentrope-*"))  # the token is gone
    assert not [p for p in psutil.Process().children(recursive=True) if ray in " ".join(p.cmdline())]


@pytest.mark.parametrize(("number", "requeues"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_it_stops_after_a_checkpoint_and_goes_back_into_the_queue_unless_it_is_cancelled(
    tmp_path: Path, jobs: list[Job], number: signal.Signals, requeues: int
) -> None:
    jobs.append(job := Job(tmp_path, "smoke", DRIVES_S="100"))
    job.until("driving")
    job.process.send_signal(number)
    code, output = job.ends()
    assert code == 143 and "after a checkpoint" in output
    assert (job.notes / "checkpoint").exists()
    assert [call["words"] for call in job.called("scontrol", "requeue")] == [["requeue", "17"]] * requeues
    assert not list(tmp_path.glob(".isentrope-*"))


def test_a_run_that_ends_by_itself_is_not_queued_again(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path, "smoke", nodes="node1", DRIVER_ENDS_WITH="4"))
    assert job.ends()[0] == 4
    assert not job.called("scontrol", "requeue") and len(job.called("srun")) == 1


def test_nodes_that_do_not_join_are_one_sentence(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path, "smoke", NEVER="1", ISENTROPE_START_S="1"))
    assert job.ends() == (3, "isentrope: 2 nodes did not join within 1 s\n")
    assert not job.called("python", "-P") and not list(tmp_path.glob(".isentrope-*"))


def test_a_signal_while_nodes_join_needs_no_driver(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path, "smoke", NEVER="1"))
    job.until("joined")
    job.process.send_signal(signal.SIGUSR1)
    code, output = job.ends()
    assert code == 143, output
    assert not job.called("python", "-P") and len(job.called("scontrol", "requeue")) == 1


def test_what_is_missing_is_one_sentence(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(job := Job(tmp_path))
    assert job.ends() == (2, "isentrope: give a recipe: sbatch ... isentrope.sbatch RECIPE a.b=c\n")
    jobs.append(job := Job(tmp_path, "smoke", ISENTROPE_BIN=str(tmp_path / "nowhere")))
    code, output = job.ends()
    assert code == 2 and f"isentrope: {tmp_path}/nowhere/ray is not there: make install" in output
    assert output.count("\n") == 1 and not job.calls


def test_slurm_is_asked_for_what_the_script_needs() -> None:
    lines = [line for line in SCRIPT.read_text("utf-8").splitlines() if line.startswith("#SBATCH --")]
    asked: dict[str, str] = {}
    for line in lines:
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        asked[name] = value
    assert {"requeue", "exclusive"} <= set(asked)
    assert asked["signal"] == "B:USR1@600" and asked["open-mode"] == "append" and asked["ntasks-per-node"] == "1"
    assert SCRIPT.stat().st_mode & stat.S_IRUSR
