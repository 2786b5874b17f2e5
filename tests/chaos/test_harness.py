"""The parts of the harness that need no run: what a check refuses, how a row that breaks is named."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos import checks, faults, table
from chaos.harness import MARKER, Failed, Lab, Run
from chaos.scenarios import Scenario
from orchestration.telemetry.sinks.base import RunInfo
from orchestration.telemetry.sinks.status import StatusSink


def left(folder: Path, rows: list[dict[str, Any]], samples: list[dict[str, Any]] | None = None) -> Run:
    """Returns a run that has ended, with these rows."""
    run = Run(folder, subprocess.Popen([sys.executable, "-c", ""]), "marker", "chaos")
    run.process.wait()
    run.run.mkdir(parents=True)
    for name, lines in (("metrics.jsonl", rows), ("samples.jsonl", samples or [])):
        (run.run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


ROWS = [{"iteration": float(i), "loss": 0.1 * i, "time/train": 1.0 * i, "gap": None} for i in range(1, 4)]


def test_equal_rows_are_equal_whatever_a_clock_says(tmp_path: Path) -> None:
    disturbed = [{**row, "time/train": 9.0, "faults/replaced": 1.0} for row in ROWS]
    assert checks.same_rows(left(tmp_path / "a", disturbed), left(tmp_path / "b", ROWS)) == 3


@pytest.mark.parametrize(
    "rows",
    [ROWS[:2], [*ROWS, ROWS[2]], [*ROWS[:2], {**ROWS[2], "loss": 0.31}], [*ROWS[:2], {**ROWS[2], "gap": 0.0}],
     [*ROWS[:2], {"iteration": 3.0, "gap": None}]],
    ids=["one lost", "one twice", "another number", "a number for null", "a value missing"],
)  # fmt: skip
def test_other_rows_are_refused(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(Failed, match="iteration"):
        checks.same_rows(left(tmp_path / "a", rows), left(tmp_path / "b", ROWS))


def test_a_response_lost_or_twice_is_refused(tmp_path: Path) -> None:
    sample = {"iteration": 1, "env": "sums", "prompt": "1+1=", "response": "2", "status": "ok"}
    reference = left(tmp_path / "a", [], [sample, sample])
    checks.same_samples(left(tmp_path / "b", [], [sample, sample]), reference)
    for name, samples in (("c", [sample]), ("d", [sample] * 3), ("e", [sample, {**sample, "prompt": "1+2="}])):
        with pytest.raises(Failed, match="lost"):
            checks.same_samples(left(tmp_path / name, [], samples), reference)


@pytest.mark.parametrize(
    ("code", "said"),
    [(1, "Traceback (most recent call last):\nisentrope: x"), (1, ""), (1, "isentrope: a\nisentrope: b"), (2, "x" * 3000),
     (0, "x" * 3000), (1, "something else")],
)  # fmt: skip
def test_an_ending_that_is_no_sentence_is_refused(code: int, said: str) -> None:
    with pytest.raises(Failed):
        checks.one_sentence(code, said)


def test_an_ending_in_one_sentence_is_one() -> None:
    checks.one_sentence(1, "isentrope: generator 0 is gone: resume with isentrope resume runs/x\n")
    checks.one_sentence(0, "")


def test_processes_are_found_by_their_marker_and_ended(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    code = "import os, sys, time; [os.fork() for _ in range(2)]; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], env={MARKER: "abc"}, start_new_session=True)
    run = Run(tmp_path, process, "abc", "chaos")
    lab.runs.append(run)
    run.until("four processes", lambda: len(run.processes()) == 4, 10)
    faults.freeze(run.processes()[0])
    with pytest.raises(Failed, match="no process of generator 0"):
        run.named("generator 0")
    lab.close(keep=True)
    assert not run.processes() and process.returncode is not None


def test_a_run_that_stands_is_known_from_one_that_moves(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run = Run(tmp_path, process, "marker", "chaos")
    sink = StatusSink(run.run, 0.05)
    sink.start(RunInfo("chaos", run.run, 6))
    try:
        with pytest.raises(Failed, match="it stands still: not within"):  # it has not begun
            run.until_standing(0.5)
        for phase, done, name in (
            ("generate", 3, "generate"),
            ("train", 0, "train"),
            ("sync", 0, "sync"),
            ("sync", 1, "probe"),
        ):
            sink.progress(phase, done, 1 if phase != "generate" else 64)
            assert run.until_standing(10) == name
        moving, ended = [0], threading.Event()

        def move() -> None:
            while not ended.wait(0.02):
                moving[0] += 1
                sink.progress("generate", moving[0], 10**6)

        thread = threading.Thread(target=move)
        thread.start()
        with pytest.raises(Failed, match="it stands still"):
            run.until_standing(1)
        ended.set()
        thread.join()
        assert run.until_standing(10) == "generate"
    finally:
        sink.close("finished")
        process.kill()
        process.wait()
    (tmp_path / "marker.err").write_text("isentrope: killed")
    with pytest.raises(Failed, match="the run ended with -9 before never: isentrope: killed"):
        run.until("never", lambda: False, 1)


def test_a_slowed_process_goes_on_afterwards() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        faults.slow(psutil.Process(process.pid), 0.5, running=0.02, stopped=0.05).join(10)
        assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
    finally:
        process.kill()
        process.wait()


def test_a_row_that_breaks_is_a_line_of_the_table(tmp_path: Path) -> None:
    def breaks(lab: Lab) -> str:
        raise KeyError("x")

    def fails(lab: Lab) -> str:
        raise Failed("not within 3 s")

    lab = Lab(tmp_path)
    lines = [
        table.play(Scenario("row", "a fault", "once", "survived", p), lab)
        for p in (breaks, fails, lambda lab: "exit 0")
    ]
    assert [line["ok"] for line in lines] == [False, False, True]
    assert "itself broke: KeyError" in lines[0]["happened"] and lines[1]["happened"] == "not within 3 s"


def test_every_row_has_a_name_of_its_own() -> None:
    names = [row.name for row in table.ROWS]
    assert len(set(names)) == len(names) > 25
    with pytest.raises(SystemExit, match="there is no row nonsense"):
        table.chosen(["nonsense"])


def test_flipping_and_cutting_change_the_largest_file(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "small").write_bytes(b"x" * 10)
    (tmp_path / "hf" / "large").write_bytes(b"\0" * 1000)
    assert faults.flip(tmp_path, "hf").name == "large"
    data = (tmp_path / "hf" / "large").read_bytes()
    assert data.count(0xFF) == 64 and not any(data[:500])
    faults.cut(tmp_path, "hf")
    assert (tmp_path / "hf" / "large").stat().st_size == 500
