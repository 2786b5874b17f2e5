"""The status of a run: whole whenever it is read, current without a word from the loop, harmless where it cannot be written."""

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from orchestration.telemetry.sinks.base import RunInfo
from orchestration.telemetry.sinks.status import EVENTS_FILE, FORMER, STATUS_FILE, StatusSink, read_status


def started(folder: Path, beat_s: float = 60.0, resumed_at: int | None = None) -> StatusSink:
    sink = StatusSink(folder, beat_s)
    stages = {"stages": [{"name": "easy"}, {"name": "hard"}]}
    sink.start(RunInfo("sums", folder, 6, resumed_at, stages))
    return sink


def test_it_says_where_the_run_stands(tmp_path: Path) -> None:
    now = [1000.0]
    sink = StatusSink(tmp_path, 60.0, lambda: now[0])
    sink.start(RunInfo("sums", tmp_path, 6, 2, {"stages": [{"name": "easy"}, {"name": "hard"}]}))
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["iteration"]) == ("running", 2)
    sink.iteration({"iteration": 3.0, "policy_version": 3.0, "stage/index": 1.0})
    sink.progress("generate", 0, 64)
    now[0] += 5
    sink.progress("generate", 12, 64)
    now[0] += 7
    sink.progress("generate", 12, 64)
    sink.members([{"name": "generator 0", "state": "healthy", "pid": 7}], {"replacements": 1})
    sink.write()
    found = read_status(tmp_path)
    assert found["phase"] == {"name": "generate", "done": 12, "total": 64, "since": 1000.0, "moved": 1005.0}
    assert (found["stage"], found["policy_version"], found["of"]) == ("hard", 3, 6)
    assert (found["heartbeat"], found["counters"]) == (1012.0, {"replacements": 1})
    sink.progress("generate", 0, 64)  # the next iteration's
    sink.close("finished")
    found = read_status(tmp_path)
    assert (found["state"], found["phase"], found["ended"]) == ("finished", None, 1012.0)


def test_a_phase_that_begins_again_counts_anew(tmp_path: Path) -> None:
    now = [0.0]
    sink = StatusSink(tmp_path, 60.0, lambda: now[0])
    sink.progress("train", 1, 1)
    now[0] = 9.0
    sink.progress("train", 0, 1)
    sink.write()
    assert read_status(tmp_path)["phase"]["since"] == 9.0


def test_the_heart_beats_while_the_loop_says_nothing(tmp_path: Path) -> None:
    sink = started(tmp_path, beat_s=0.02)
    first = read_status(tmp_path)["beats"]
    deadline = time.monotonic() + 5
    while read_status(tmp_path)["beats"] < first + 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sink.close("stopped")
    assert sink._thread is not None and not sink._thread.is_alive()


def test_members_that_left_are_still_known(tmp_path: Path) -> None:
    sink = started(tmp_path)
    sink.members([{"name": "generator 0", "pid": 7}], {})
    for number in range(1, FORMER + 5):
        sink.members([{"name": f"generator {number}", "pid": number}], {})
    sink.close("finished")
    former = [m["name"] for m in read_status(tmp_path)["former"]]
    assert len(former) == FORMER and former[-1] == f"generator {FORMER + 3}"


def test_events_are_appended_across_resumes_and_one_line_each(tmp_path: Path) -> None:
    started(tmp_path).close("failed")
    sink = started(tmp_path, resumed_at=0)
    sink.event("generator 0 is gone:\n  killed \udc80")
    lines = (tmp_path / EVENTS_FILE).read_text().splitlines()
    assert lines[1].endswith(" failed") and lines[2].endswith(
        f"resumed after 0, driver {os.getpid()} on {socket.gethostname()}"
    )
    assert lines[-1].endswith("generator 0 is gone: killed \\udc80")
    assert read_status(tmp_path)["state"] == "running"
    sink.close("finished")


def test_what_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sink = StatusSink(tmp_path / "file" / "run")
    sink.start(RunInfo("sums", tmp_path, 6))
    sink.event("x")
    sink.close("finished")


def test_the_last_checkpoint_is_named(tmp_path: Path) -> None:
    sink = started(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step_000004\n")
    sink.progress("checkpoint", 1, 1)
    sink.write()
    assert read_status(tmp_path)["checkpoint"] == "step_000004"
    (tmp_path / "checkpoints" / "latest").write_bytes(b"\xff\xfe")
    sink.close("finished")
    assert read_status(tmp_path)["checkpoint"] is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 9}', "[" * 100_000, '{"format": 1, "beats": 1}'])
def test_a_broken_status_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS_FILE).write_text(text)
    with pytest.raises(ValueError, match=STATUS_FILE) as caught:
        read_status(tmp_path)
    assert len(str(caught.value)) < 2000
    (tmp_path / STATUS_FILE).write_bytes(b"\xff")
    with pytest.raises(ValueError, match="cannot be read"):
        read_status(tmp_path)


def test_a_reader_never_sees_half_a_status(tmp_path: Path) -> None:
    sink = started(tmp_path, beat_s=0.0)
    for _ in range(200):
        assert json.loads((tmp_path / STATUS_FILE).read_text())["beats"] > 0
    sink.close("finished")


def test_a_run_that_begins_anew_in_the_process_has_one_writer_and_its_end_stays(tmp_path: Path) -> None:
    before = threading.active_count()
    sink = StatusSink(tmp_path, beat_s=0.01)
    for resumed_at in (None, 2, 4):
        sink.start(RunInfo("sums", tmp_path, 6, resumed_at))
    assert threading.active_count() == before + 1
    sink.close("finished")
    assert threading.active_count() == before
    time.sleep(0.05)
    assert read_status(tmp_path)["state"] == "finished"
