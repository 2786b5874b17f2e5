"""Tests the killable subprocess: killed in time, reused, restarted, never orphaned."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import envs
from envs.isolation.killable import KillableError, KillableProcess, KillableTimeout


@pytest.fixture
def box() -> Iterator[KillableProcess]:
    process = KillableProcess()
    yield process
    process.close()


def running(pid: int) -> bool:
    """Returns whether a process is alive; False for one that has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not running(pid)


def test_calls_reuse_one_subprocess(box: KillableProcess) -> None:
    assert box.pid is None
    pids = {box.call("os:getpid", [], 5.0) for _ in range(3)}
    assert pids == {box.pid} and os.getpid() not in pids
    assert box.call("operator:add", [[1], ["é\ud800"]], 5.0) == [1, "é\ud800"]


def test_a_stuck_call_is_killed_and_the_next_one_works(box: KillableProcess) -> None:
    first = box.call("os:getpid", [], 5.0)
    started = time.monotonic()
    with pytest.raises(KillableTimeout, match=r"operator:pow took longer than 0\.3 s"):
        box.call("operator:pow", [7, 10**9], 0.3)  # in C, holding the GIL: only a kill ends it
    assert time.monotonic() - started < 3.0
    assert ended_within(first, 2.0) and box.pid is None
    second = box.call("os:getpid", [], 5.0)
    assert second != first and box.call("math:sqrt", [9], 5.0) == 3.0


def test_the_whole_process_group_is_killed(box: KillableProcess, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(KillableTimeout):
        box.call("os:system", [f"sleep 60 & echo $! > {pid_file}; wait"], 1.0)
    assert ended_within(int(pid_file.read_text()), 2.0)


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        ("math:sqrt", [-1], "ValueError: math domain error"),
        ("math:no_such", [], "AttributeError"),
        ("no_such_module:f", [], "ModuleNotFoundError"),
        ("builtins:object", [], "not JSON serializable"),
        ("builtins:print", ["this is no answer"], None),
        ("builtins:input", [], "EOFError"),
        ("os:_exit", [3], "died with exit code 3"),
    ],
)
def test_errors_are_killable_errors_and_the_next_call_works(
    box: KillableProcess, function: str, args: list, words: str
) -> None:
    if words is None:
        assert box.call(function, args, 5.0) is None
    else:
        with pytest.raises(KillableError, match=words):
            box.call(function, args, 5.0)
    assert box.call("math:sqrt", [4], 5.0) == 2.0


def test_a_subprocess_that_died_between_calls_is_replaced(box: KillableProcess) -> None:
    pid = box.call("os:getpid", [], 5.0)
    os.kill(pid, 9)
    assert ended_within(pid, 2.0)
    assert box.call("os:getpid", [], 5.0) != pid


def test_threads_get_their_own_answers_and_may_end(box: KillableProcess) -> None:
    results: dict[int, float] = {}

    def ask(i: int) -> None:
        for _ in range(20):
            results[i] = box.call("operator:mul", [i, 10], 5.0)

    # The first thread starts the subprocess and ends: that must not take the subprocess with it.
    first = threading.Thread(target=ask, args=(0,))
    first.start()
    first.join()
    pid = box.pid
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: i * 10 for i in range(5)} and box.pid == pid


def test_string_hashes_are_the_same_in_every_subprocess(box: KillableProcess) -> None:
    before = box.call("builtins:hash", ["isentrope"], 5.0)
    box.close()
    assert box.call("builtins:hash", ["isentrope"], 5.0) == before


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_the_subprocess_dies_with_its_parent_even_while_it_computes() -> None:
    code = (
        "import threading, time; from envs.isolation.killable import KillableProcess; box = KillableProcess();"
        "box.call('os:getpid', [], 5);"
        "threading.Thread(target=box.call, args=('operator:pow', [7, 10**9], 60), daemon=True).start(); time.sleep(.3);"
        "print(box.pid, flush=True); time.sleep(60)"
    )
    root = Path(envs.__file__).parent.parent
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert running(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert ended_within(pid, 3.0)


def test_a_file_of_the_current_directory_is_not_taken_for_the_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, box: KillableProcess
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert box.call("os:getpid", [], 30.0) != os.getpid()
