"""`isentrope status`, `stop`, `scale` and `logs` as a person uses them, on folders of runs that never were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.commands import control, logs
from orchestration.errors import ConfigError
from orchestration.telemetry.sinks.base import RunInfo
from orchestration.telemetry.sinks.status import StatusSink

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "sums"
    sink = StatusSink(folder, 60)
    sink.start(RunInfo("sums", folder, 6))
    sink.iteration({"iteration": 3.0, "policy_version": 3.0})
    sink.progress("generate", 12, 64)
    sink.members(
        [
            {"name": "generator 0", "kind": "generator", "state": "suspect", "pid": os.getpid(), "node": "here"},
            {"name": "learner rank 0", "kind": "learner rank", "state": "healthy", "pid": 2**22 + 1, "node": "far"},
        ],
        {"replacements": 2, "learner_restarts": 0},
    )
    sink.event("generator 1 was replaced by generator 2")
    sink.write()
    return folder


def test_a_person_reads_which_phase_waits_for_whom(run: Path) -> None:
    text = control.status("sums", False)
    assert text.startswith("sums: running, iteration 3 of 6, policy version 3\ngenerate: 12 of 64 for ")
    assert "not healthy: generator 0 (suspect)" in text
    assert "replacements: 2" in text and "learner restarts" not in text
    assert "last checkpoint: none yet" in text and "was replaced by generator 2" in text
    found = json.loads(control.status(str(run), True))
    assert (found["state"], found["iteration"]) == ("running", 3)


def test_a_dead_driver_is_said_to_be(run: Path) -> None:
    text = control.describe({"heartbeat": 100.0, "name": "sums"}, "dead", 190.0)
    assert text.splitlines()[:2] == ["sums: dead, iteration 0 of ?", "last heartbeat 1 min 30 s ago"]


@pytest.mark.parametrize(
    "to", [["generators=0"], ["generators=x"], ["verifiers=2"], [], ["generators=1", "x"], ["generators=²"]]
)
def test_scale_takes_one_number(run: Path, to: list[str]) -> None:
    with pytest.raises(ConfigError, match="generators=N"):
        control.scale("sums", to)


def test_a_run_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestration", "stop", "nowhere"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("isentrope: neither nowhere nor") and done.stderr.count("\n") == 1


def test_events_and_where_the_output_of_each_actor_is(run: Path) -> None:
    said: list[str] = []
    logs.show("sums", None, False, said.append)
    text = "".join(said)
    assert "generator 1 was replaced by generator 2\n" in text
    assert f"learner rank 0: on far, /tmp/ray/session_*/logs/worker-*-{2**22 + 1}.err" in text
    with pytest.raises(ConfigError, match="no actor judge-0: there are generator 0, learner rank 0"):
        logs.show("sums", "judge-0", False, said.append)
    with pytest.raises(ConfigError, match="not on this machine"):
        logs.show("sums", "learner-rank-0", False, said.append)


def test_the_output_of_a_live_worker_is_found_by_its_descriptors(tmp_path: Path) -> None:
    err, out = tmp_path / "worker-abc-01000000-77.err", tmp_path / "worker-abc-01000000-77.out"
    with err.open("wb") as e, out.open("wb") as o:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=o, stderr=e)
    try:
        assert logs.files_of({"pid": child.pid, "node": "anywhere"}) == [err, out]
    finally:
        child.kill()
        child.wait()


def test_the_output_of_a_worker_that_ended_is_found_in_the_newest_session(tmp_path: Path) -> None:
    pid = 2**22 + 3
    for number, session in enumerate(("session_1", "session_2")):
        folder = tmp_path / session / "logs"
        folder.mkdir(parents=True)
        for suffix in ("err", "out"):
            (folder / f"worker-x-01-{pid}.{suffix}").write_text("")
        os.utime(folder / f"worker-x-01-{pid}.err", (number, number))
    found = logs.files_of({"pid": pid, "node": "127.0.0.1"}, [str(tmp_path / "none"), str(tmp_path)])
    assert [p.suffix for p in found] == [".err", ".out"] and all("session_2" in str(p) for p in found)
    assert logs.files_of({"pid": pid, "node": "far"}, str(tmp_path)) == []
    assert logs.files_of({"pid": None}) == []


def test_following_prints_what_is_added_until_the_run_ends(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.01)
    sink, said = StatusSink(run, 60), []
    looks = iter(["running", "running", "finished"])

    def alive(folder: Path) -> str:
        state = next(looks)
        sink.event(f"still {state}")
        return state

    monkeypatch.setattr(logs.control, "alive", alive)
    began = time.monotonic()
    logs.show("sums", None, True, said.append)
    text = "".join(said)
    assert text.count("still running\n") == 2 and text.count("was replaced by") == 1
    assert time.monotonic() - began < 5
