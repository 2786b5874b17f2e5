# ruff: noqa: PTH114, PTH115
# The kernel's own calls, by name: what is mounted, linked and listed here is what the isolation is made of.
"""Run a program that is not trusted, as text, and get back what it printed.

    run_python("print(6*7)")  ->  Outcome("ok", "42\\n", "", 0, 0.03)

What it is for: programs that a model wrote. Isolation is the strongest that this machine really gives (`active`): each
level is tried once with a program that checks it from inside. What a level does not stop is in its `gaps`.

How it differs from envs/sandbox.py: that one runs OUR code, which may hang, in a subprocess that is reused and has all
rights of its parent. This one runs THEIR code, once, with no rights: no environment, no files but the interpreter's, no
network, no process but its own. It is slower (some 50 ms a program) and nothing but text comes back. Linux on x86-64.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from envs import untrusted_child, untrusted_filter

Status = Literal["ok", "exit", "timeout", "memory", "output", "killed"]
Name = Literal["bubblewrap", "namespaces", "seccomp", "limits"]

_GRACE_S = 5.0  # beyond the wall limit: start-up, and the supervisor's own clean-up
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")  # what an interpreter is linked with


class IsolationError(Exception):
    """The program was not run: the isolation asked for cannot be had here. The message says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. Memory is of each process: all of them together have processes * memory at most.

    wall_s, cpu_s  seconds; the CPU time (whole seconds) is of each process
    memory         bytes of address space
    output         bytes of stdout, and of stderr; a program that prints more is ended
    processes      processes and threads at one time
    file           bytes of the largest file; folder, files: bytes and number of all files in the private folder
    """

    wall_s: float = 10.0  # on a busy machine a program waits for its CPU time
    cpu_s: int = 2
    memory: int = 256 * 2**20
    output: int = 64 * 2**10
    processes: int = 8
    file: int = 8 * 2**20
    folder: int = 16 * 2**20
    files: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"limits: {name} is {value}, it must be more than 0")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    ok       exit code 0
    exit     another exit code: an uncaught exception is 1
    timeout  it took longer than wall_s, or used more than cpu_s
    memory   it ended with a MemoryError (a program can claim that; it is for the reader, nothing follows from it)
    output   it printed more than `output` bytes and was ended
    killed   a signal ended it; exit_code is minus its number, or None when it took its supervisor along

    stdout, stderr: at most Limits.output bytes each, what is not UTF-8 replaced. seconds: of the program, wall time.
    """

    status: Status
    stdout: str
    stderr: str
    exit_code: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Level:
    """A way to isolate. stops: one sentence; gaps: what it does not stop, by kind, each as a phrase."""

    name: Name
    stops: str
    gaps: Mapping[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """What it stops and what it does not, for a person."""
        left = "; ".join(self.gaps.values()) or "holes in the kernel itself"
        return f"{self.stops}. Not stopped: {left}."


_OWN_VIEW = (
    "the program sees Python and system libraries, read-only, a small folder of its own, no network, no other process, "
    "and a kernel without its rarely used calls; it ends with all it started"
)
LEVELS: dict[Name, Level] = {
    level.name: level  # strongest first
    for level in (
        Level("bubblewrap", f"bubblewrap and a system-call filter: {_OWN_VIEW}"),
        Level("namespaces", f"namespaces and a system-call filter: {_OWN_VIEW}"),
        Level(
            "seccomp",
            "a system-call filter: the program can compute, read and print, but not write a file, start a process, "
            "signal one, or open a socket",
            {
                "reading": "reading what the program's user may read (this user's files and its processes' environments, "
                "unless the driver is root and the program another user)",
            },
        ),
        Level(
            "limits",
            "limits on time, memory, output and processes, an empty environment and no inherited descriptor: enough "
            "against mistakes, not against intent",
            {
                "reading": "reading what the program's user may read",
                "writing": "writing what that user may write, many files, shared memory",
                "network": "network and sockets",
                "signals": "signals to that user's processes, and tracing them",
                "processes": "processes that leave the session and race the clean-up",
                "kernel": "the kernel's rarely used calls",
            },
        ),
    )
}


def run_python(code: str, stdin: str = "", limits: Limits | None = None, level: Name | None = None) -> Outcome:
    """Run the program. Never raises for what the program does.

    level: the way to isolate, for tests; by default `active()`. Thread-safe. Raises IsolationError if it was not run.
    """
    limits = limits or Limits()
    name = level or active().name
    request = {
        "level": name,
        "code": code,
        "stdin": stdin,
        "limits": asdict(limits),
        "shown": _shown(),
        "filter": _filter(name).hex(),
    }
    report, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            _command(name, write_end, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(write_end,),
            env={},
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(report)
        raise
    finally:
        os.close(write_end)
    with process, contextlib.closing(_Watch(process, report, limits)) as watch:
        watch.send(json.dumps(request).encode())
        return watch.outcome()


@functools.cache
def active() -> Level:
    """The strongest level that this machine gives, found by trying, once in a process. IsolationError: there is none."""
    reasons = []
    for name, level in LEVELS.items():
        reason = why_not(name)
        if reason is None:
            return level
        reasons.append(f"{name}: {reason}")
    raise IsolationError("no isolation for untrusted code here. " + "; ".join(reasons))


@functools.cache
def why_not(name: Name) -> str | None:
    """None if the level works here, else the reason in a phrase. Tries it, with a program that looks around."""
    try:
        outcome = run_python(_PROBE, stdin=json.dumps([name, __file__]), level=name)
    except (IsolationError, OSError) as error:
        return str(error)
    return None if outcome.stdout == "isolated\n" else (outcome.stderr.strip().rpartition("\n")[2] or outcome.status)


_PROBE = """
import json, os, socket, sys
level, file = json.load(sys.stdin)
assert set(os.environ) <= {"LC_CTYPE"}, "the environment is not empty"  # Python sets that one itself
if level in ("bubblewrap", "namespaces"):
    assert not os.path.exists(file), "files outside can be seen"
    assert os.getpid() < 100, "the process ids are not its own"
if level != "limits":
    try:
        socket.socket()
    except OSError:
        pass
    else:
        sys.exit("sockets can be made")
print("isolated")
"""


class _Watch:
    """The driver's end of one run: sends the request, collects what is printed, stops what goes on too long."""

    def __init__(self, process: subprocess.Popen[bytes], report: int, limits: Limits) -> None:
        assert process.stdin and process.stdout and process.stderr
        self._process, self._limits = process, limits
        self._requests = process.stdin
        self._pipes = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray(), report: bytearray()}
        self._out, self._err, self._report = self._pipes
        for descriptor in self._pipes:
            os.set_blocking(descriptor, False)

    def send(self, request: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it could not start: there will be no report, and stderr says why
            self._requests.write(len(request).to_bytes(8, "big") + request)
            self._requests.flush()

    def outcome(self) -> Outcome:
        started = time.monotonic()
        too_much = self._collect(started + self._limits.wall_s + _GRACE_S)
        if self._process.poll() is None:
            self._stop()
        self._drain()
        seconds = time.monotonic() - started
        stdout, stderr = (
            self._pipes[x][: self._limits.output].decode("utf-8", "replace") for x in (self._out, self._err)
        )
        line = self._pipes[self._report].partition(b"\n")[0]
        report = json.loads(line) if line else {}
        if "error" in report:
            raise IsolationError(report["error"])
        if not report and self._process.returncode and not too_much and seconds < self._limits.wall_s:
            raise IsolationError(stderr.strip().rpartition("\n")[2] or f"exit code {self._process.returncode}")
        code = os.waitstatus_to_exitcode(report["status"]) if report else None
        seconds = report.get("seconds", seconds)
        if too_much:
            return Outcome("output", stdout, stderr, code, seconds)
        if report.get("cut_off") or (code == -signal.SIGKILL and report["cpu_s"] > self._limits.cpu_s - 0.5):
            return Outcome("timeout", stdout, stderr, code, seconds)
        if code == 1 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
            return Outcome("memory", stdout, stderr, code, seconds)
        status: Status = "killed" if code is None or code < 0 else "exit" if code else "ok"
        return Outcome(status, stdout, stderr, code, seconds)

    def close(self) -> None:
        """Also after an interrupt: nothing may be left running."""
        if self._process.poll() is None:
            self._stop()
        os.close(self._report)

    def _collect(self, deadline: float) -> bool:
        """Read until the supervisor ended, the deadline passed (False) or one stream has too much (True)."""
        ended = os.pidfd_open(self._process.pid)
        poller = select.poll()
        for descriptor in (ended, *self._pipes):
            poller.register(descriptor, select.POLLIN)
        try:
            while (left := deadline - time.monotonic()) > 0:
                ready = [descriptor for descriptor, _ in poller.poll(1000 * left)]
                for descriptor in ready:
                    if descriptor != ended and not self._take(descriptor):
                        poller.unregister(descriptor)
                if max(len(self._pipes[self._out]), len(self._pipes[self._err])) > self._limits.output:
                    return True
                if ended in ready:
                    return False
            return False
        finally:
            os.close(ended)

    def _take(self, descriptor: int) -> bool:
        """Read what is there; False at the end of the stream."""
        try:
            chunk = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        self._pipes[descriptor] += chunk
        return bool(chunk)

    def _drain(self) -> None:
        """What was printed before the end and not read yet. A pipe holds little, so this ends whoever still writes."""
        for descriptor in self._pipes:
            for _ in range(16):
                before = len(self._pipes[descriptor])
                if not self._take(descriptor) or len(self._pipes[descriptor]) == before:
                    break

    def _stop(self) -> None:
        """Ask the supervisor to end all (it waits for this end of its stdin), then make sure."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _filter(name: Name) -> bytes:
    if name == "limits":
        return b""
    if (platform.machine(), sys.maxsize) != ("x86_64", 2**63 - 1):
        raise IsolationError(f"the system-call filter is for x86-64, this is {platform.machine()}")
    return untrusted_filter.alone() if name == "seccomp" else untrusted_filter.sandboxed()


def _shown() -> list[str]:
    """What the program may read: the interpreter's own folder and the system's libraries, none inside another."""
    prefix, executable = os.path.realpath(sys.base_prefix), os.path.realpath(sys.executable)
    wanted = [prefix, *_SYSTEM] if executable.startswith(f"{prefix}/") else [prefix, executable, *_SYSTEM]
    if prefix == "/":
        raise IsolationError("Python is installed in /: there is no folder to show that is not everything")
    return [x for x in wanted if not any(x != y and x.startswith(f"{y}/") for y in wanted)]


def _command(name: Name, report: int, limits: Limits) -> list[str]:
    """The venv's packages are not the program's, so the interpreter is the one behind it, without site."""
    python = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8", "-c", _child_source(), str(report)]
    return [*_bubblewrap(limits), *python] if name == "bubblewrap" else python


def _bubblewrap(limits: Limits) -> list[str]:
    found = shutil.which("bwrap")
    if not found:
        raise IsolationError("there is no bwrap on the PATH")
    command = [found, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--die-with-parent"]
    # Root keeps what it needs to become the program's own user; anybody else has a user namespace and no right at all.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.geteuid() == 0 else ["--unshare-user"]
    for path in _shown():
        command += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind-try", path, path]
    return [*command, "--proc", "/proc", "--dev", "/dev", "--size", str(limits.folder), "--tmpfs", "/tmp"]


@functools.cache
def _child_source() -> str:
    """Sent as text: the program's side of a file system has no file of ours."""
    return Path(untrusted_child.__file__).read_text("utf-8")
