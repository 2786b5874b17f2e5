"""Tests that programs cannot escape: at every level that works here, each attack that the level claims to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.attacks import ATTACKS, PREAMBLE, Attack

from envs.isolation import sandbox
from envs.isolation.killable import KillableProcess, KillableTimeout
from envs.isolation.sandbox import LEVELS, IsolationError, LevelName, Limits, run_python

WORKING: list[LevelName] = [name for name in LEVELS if sandbox.why_unavailable(name) is None]
FEW = Limits(wall_s=20.0, cpu_s=1)
MARK = f"program-{uuid.uuid4().hex}"  # in the command lines of what these tests run, and of nobody else's programs


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    source = sandbox._child_source().replace("'program', 'exec'", f"'{MARK}', 'exec'")
    monkeypatch.setattr(sandbox, "_child_source", lambda: source)


def left_running() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and MARK.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def left_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("untrusted-*"))


class World:
    """Holds the files and processes outside the sandbox, and reports whether they were touched."""

    def __init__(self, folder: Path) -> None:
        name = f"escaped-{uuid.uuid4().hex}"
        self.secret = f"secret-{uuid.uuid4().hex}"
        self.folder = folder
        self.key, self.victim = folder / "id_ed25519", folder / "victim"
        self.key.write_text(self.secret)
        self.key.chmod(0o600)
        self.victim.write_text("whole")
        folders = {"tmp": Path("/tmp"), "etc": Path("/etc"), "home": Path.home(), "cwd": Path.cwd()}
        folders |= {"repo": Path(sandbox.__file__).parent, "shm": Path("/dev/shm"), "out": folder}
        self.forbidden = {key: path / name for key, path in folders.items()}
        environ = {"TOKEN": self.secret}
        self.process = subprocess.Popen(["sleep", "600"], env=environ, start_new_session=True)
        self.descriptor = os.open(self.key, os.O_RDONLY)
        os.set_inheritable(self.descriptor, True)
        self.sockets = {kind: socket.socket(*what) for kind, what in self._kinds().items()}
        self.sockets["tcp"].bind(("127.0.0.1", 0))
        self.sockets["udp"].bind(("127.0.0.1", 0))
        self.sockets["unix"].bind(str(folder / "s"))
        self.sockets["abstract"].bind("\0" + name)
        for kind, listener in self.sockets.items():
            listener.setblocking(False)
            if kind != "udp":
                listener.listen()
        self.facts: dict[str, Any] = {key: str(path) for key, path in self.forbidden.items()} | {
            "secret": self.secret,
            "key": str(self.key),
            "victim": str(self.victim),
            "outside": str(folder),
            "source": sandbox.__file__,
            "pid": self.process.pid,
            "tcp": self.sockets["tcp"].getsockname()[1],
            "udp": self.sockets["udp"].getsockname()[1],
            "unix": str(folder / "s"),
            "abstract": name,
        }

    @staticmethod
    def _kinds() -> dict[str, tuple[int, int]]:
        stream, packet = socket.SOCK_STREAM, socket.SOCK_DGRAM
        ip, local = socket.AF_INET, socket.AF_UNIX
        return {"tcp": (ip, stream), "udp": (ip, packet), "unix": (local, stream), "abstract": (local, stream)}

    def touched(self) -> list[str]:
        """Lists the forbidden effects that happened outside."""
        found = [f"wrote {path}" for path in self.forbidden.values() if path.exists()]
        if self.process.poll() is not None:
            found.append("killed a process")
        if not self.victim.exists() or self.victim.read_text() != "whole" or self.victim.stat().st_mode & 0o22:
            found.append("changed a file")
        if self.key.read_text() != self.secret:
            found.append("changed the key")
        for kind, listener in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                _ = listener.recv(10) if kind == "udp" else listener.accept()
                found.append(f"reached {kind}")
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)
        for listener in self.sockets.values():
            listener.close()
        for path in self.forbidden.values():
            path.unlink(missing_ok=True)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("level", WORKING)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_no_way_out(attack: Attack, level: LevelName, world: World) -> None:
    gaps = LEVELS[level].gaps
    if attack.kind in gaps:
        pytest.skip(f"{level} does not stop {gaps[attack.kind]}")
    limits = dataclasses.replace(FEW, wall_s=attack.wall_s)
    before = left_folders()
    started = time.monotonic()
    outcome = run_python(PREAMBLE + attack.code, json.dumps(world.facts), limits, level)
    assert time.monotonic() - started < attack.wall_s + 15
    assert "ESCAPED" not in outcome.stdout, outcome
    assert world.secret not in outcome.stdout + outcome.stderr
    assert len(outcome.stdout) <= limits.output and len(outcome.stderr) <= limits.output
    assert world.touched() == []
    assert left_running() == []
    assert left_folders() <= before
    if attack.status:
        assert outcome.status == attack.status, outcome


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.control], ids=lambda attack: attack.name)
def test_the_attacks_get_through_where_nothing_stops_them(attack: Attack, world: World) -> None:
    """Runs each attack without isolation: an attack that always fails would make the test above pass."""
    if attack.key and not os.access(world.forbidden[attack.key].parent, os.W_OK):
        pytest.skip("this user may not write there anyway")
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + attack.code],
        input=json.dumps(world.facts),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=world.folder,
    )
    assert "ESCAPED" in done.stdout or world.touched(), done


def test_attacks_have_names_of_their_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert {attack.kind for attack in ATTACKS} - {""} <= set(LEVELS["limits"].gaps)


@pytest.mark.parametrize("level", WORKING)
@pytest.mark.parametrize(
    ("code", "status", "exit_code", "stdout"),
    [
        ("print(6 * 7)", "ok", 0, "42\n"),
        ("import sys; print(sys.stdin.read()[::-1])", "ok", 0, "\u00e9ba\n"),
        ("raise SystemExit(3)", "exit", 3, ""),
        ("print('a'); 1 / 0", "exit", 1, "a\n"),
        ("def f(:", "exit", 1, ""),
        ("\ud800", "exit", 1, ""),
        ("import os; os.write(1, b'\\xff')", "ok", 0, "\ufffd"),
        ("print(__name__, end='')", "ok", 0, "__main__"),
        ("import json, random, math, itertools, collections, re, string; print('ok')", "ok", 0, "ok\n"),
    ],
)
def test_what_a_program_gives_back(code: str, status: str, exit_code: int, stdout: str, level: LevelName) -> None:
    outcome = run_python(code, "ab\u00e9", FEW, level)
    assert (outcome.status, outcome.exit_code, outcome.stdout) == (status, exit_code, stdout), outcome
    assert 0 < outcome.seconds < 20
    assert ("Error" in outcome.stderr) == (exit_code == 1)


def test_a_program_that_dies_by_a_signal() -> None:
    outcome = run_python("import ctypes; ctypes.string_at(0)", limits=FEW)
    assert (outcome.status, outcome.exit_code) == ("killed", -signal.SIGSEGV)


def test_programs_side_by_side_do_not_mix() -> None:
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = run_python(f"import time; time.sleep(.2); print({i})", limits=FEW).stdout

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: f"{i}\n" for i in range(6)}


def test_nothing_goes_on_when_the_driver_is_killed() -> None:
    """A verifier that takes too long is killed in the same way, in the subprocess of envs/isolation/killable.py."""
    box = KillableProcess()
    try:
        box.call("builtins:exec", [_IN_SUBPROCESS.replace("MARK", MARK)], 60.0)
        with pytest.raises(KillableTimeout):
            box.call("envs.isolation.sandbox:run_python", ["import time; time.sleep(600)"], 3.0)
        deadline = time.monotonic() + 10
        while left_running() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left_running() == []
    finally:
        box.close()


_IN_SUBPROCESS = """
from envs.isolation import sandbox
source = sandbox._child_source().replace("'program', 'exec'", "'MARK', 'exec'")
sandbox._child_source = lambda source=source: source
assert sandbox.run_python("print(1)").stdout == "1\\n"
"""


@pytest.mark.parametrize("level", [name for name in WORKING if name in ("seccomp", "limits")])
def test_a_program_dies_with_its_supervisor_where_no_namespace_ends_it(level: LevelName) -> None:
    before = left_folders()
    done: list[sandbox.Outcome] = []
    thread = threading.Thread(target=lambda: done.append(run_python("import time; time.sleep(600)", "", FEW, level)))
    thread.start()
    deadline = time.monotonic() + 20
    while len(left_running()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    supervisor, program = sorted(left_running())
    os.kill(supervisor, signal.SIGKILL)
    thread.join(30)
    assert [outcome.status for outcome in done] == ["killed"]
    while left_running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left_running() == [], (supervisor, program)
    for folder in left_folders() - before:  # what a supervisor that was killed outright cannot clean
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["wall_s", "memory", "output", "processes"])
def test_limits_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match=f"limits: {name} is 0, it must be more than 0"):
        Limits(**{name: 0})


def test_a_level_that_cannot_be_had_is_an_error_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(IsolationError, match="bwrap is not on the PATH"):
        run_python("print(1)", level="bubblewrap")


def test_the_active_level_is_the_strongest_that_works() -> None:
    assert sandbox.active().name == WORKING[0]
    for level in LEVELS.values():
        assert level.sentence.endswith(".") and "Not stopped: " in level.sentence
