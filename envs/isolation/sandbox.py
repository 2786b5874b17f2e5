"""Runs an untrusted Python program, given as text, and returns what it printed.

    run_python("print(6*7)")  ->  Outcome("ok", "42\\n", "", 0, 0.03)

Use it for programs that a model wrote. The isolation is the strongest that this machine really provides (`active`): each
level is tried once with a program that checks it from inside. `Level.gaps` lists what a level does not stop.

The difference to envs/isolation/killable.py: that module runs OUR code, which may hang, in a reused subprocess with all
rights of its parent. This one runs a program of unknown intent, once, with no rights: an empty environment, no files except
the interpreter's, no network, no other processes. It is slower (about 50 ms a program) and returns only text. Linux on x86-64.

sandbox.py starts the run, watch.py is the driver's end of it, supervisor.py runs at the far end and applies seccomp.py's filter.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from envs.isolation import seccomp, supervisor
from envs.isolation.watch import IsolationError, Limits, Outcome, Watch

LevelName = Literal["namespaces", "bubblewrap", "seccomp", "limits"]

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")  # what an interpreter is linked with


@dataclass(frozen=True, slots=True)
class Level:
    """Describes a way to isolate.

    stops  one sentence on what the program can and cannot do
    gaps   what is not stopped: kind -> phrase
    """

    name: LevelName
    stops: str
    gaps: Mapping[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """Returns one sentence for a person: what the level stops and what it does not."""
        not_stopped = "; ".join(self.gaps.values()) or "holes in the kernel itself"
        return f"{self.stops}. Not stopped: {not_stopped}."


_OWN_VIEW = (
    "the program sees Python and system libraries, read-only, a small folder of its own, no network, no other process, "
    "and a kernel without its rarely used calls; it ends with all it started"
)
LEVELS: dict[LevelName, Level] = {
    level.name: level  # strongest first
    for level in (
        Level("namespaces", f"own namespaces and a system-call filter: {_OWN_VIEW}"),
        # Weaker by one gap; for hosts that allow only bwrap to make namespaces.
        Level(
            "bubblewrap",
            f"bubblewrap and a system-call filter: {_OWN_VIEW}",
            {"many": "many small files in the program's own folder, in memory until it ends"},
        ),
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
                "writing": "writing what that user may write, shared memory",
                "many": "many files in the program's own folder, on the disk until it ends",
                "network": "network and sockets",
                "signals": "signals to that user's processes, and tracing them",
                "processes": "processes that leave the session and race the clean-up",
                "kernel": "the kernel's rarely used calls",
            },
        ),
    )
}


def run_python(code: str, stdin: str = "", limits: Limits | None = None, level: LevelName | None = None) -> Outcome:
    """Runs a program and returns its outcome; never raises because of what the program does.

    level: the way to isolate, for tests; by default `active()`. Thread-safe. Raises IsolationError if the program was not run.
    """
    limits = limits or Limits()
    name = level or active().name
    request = {
        "level": name,
        "code": code,
        "stdin": stdin,
        "limits": asdict(limits),
        "shown": _readable_paths(),
        "filter": _filter(name).hex(),
        "number": 64 * os.getpid() + next(_runs) % 64,
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
    with process, contextlib.closing(Watch(process, report, limits)) as watch:
        watch.send(json.dumps(request).encode())
        return watch.outcome()


_runs = itertools.count()


@functools.cache
def active() -> Level:
    """Returns the strongest level that works on this machine, tried once in each process. Raises IsolationError if none works."""
    reasons = []
    for name, level in LEVELS.items():
        reason = why_unavailable(name)
        if reason is None:
            return level
        reasons.append(f"{name}: {reason}")
    raise IsolationError("no isolation for untrusted code works here. " + "; ".join(reasons))


@functools.cache
def why_unavailable(name: LevelName) -> str | None:
    """Returns None if the level works here, else the reason as a phrase; runs a program that checks the isolation from inside."""
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


def _filter(name: LevelName) -> bytes:
    if name == "limits":
        return b""
    if (platform.machine(), sys.maxsize) != ("x86_64", 2**63 - 1):
        raise IsolationError(f"the system-call filter is for x86-64, this is {platform.machine()}")
    return seccomp.alone() if name == "seccomp" else seccomp.in_namespaces()


def _readable_paths() -> list[str]:
    """Returns the paths the program may read: the interpreter's folder and system libraries, none inside another."""
    prefix, executable = os.path.realpath(sys.base_prefix), os.path.realpath(sys.executable)
    paths = [prefix, *_SYSTEM] if executable.startswith(f"{prefix}/") else [prefix, executable, *_SYSTEM]
    if prefix == "/":
        raise IsolationError("Python is installed in /, so showing its folder to the program would show everything")
    return [x for x in paths if not any(x != y and x.startswith(f"{y}/") for y in paths)]


def _command(name: LevelName, report: int, limits: Limits) -> list[str]:
    """Returns the command of the supervisor.

    It uses the interpreter behind the virtual environment, without site: the program must not see our installed packages.
    """
    python = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8", "-c", _child_source(), str(report)]
    return [*_bubblewrap(limits), *python] if name == "bubblewrap" else python


def _bubblewrap(limits: Limits) -> list[str]:
    bwrap = shutil.which("bwrap")
    if not bwrap:
        raise IsolationError("bwrap is not on the PATH")
    command = [bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--die-with-parent"]
    # Makes the supervisor process 1: with bwrap's own in between, bwrap would not wait until everything inside has ended.
    command.append("--as-pid-1")
    # Root keeps the capabilities to switch to the program's user; any other user gets a user namespace without rights.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.geteuid() == 0 else ["--unshare-user"]
    for path in _readable_paths():
        for folder in reversed(Path(path).parents[:-1]):
            command += ["--dir", str(folder)]  # folders that bwrap makes itself would be closed to other users
        link = Path(path).is_symlink()
        command += ["--symlink", str(Path(path).readlink()), path] if link else ["--ro-bind-try", path, path]
    for device in supervisor.DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]  # not --dev: its /dev/shm has no size limit
    command += ["--proc", "/proc", "--size", str(limits.folder), "--tmpfs", "/tmp"]
    return [*command, "--remount-ro", "/"]


@functools.cache
def _child_source() -> str:
    """Returns the supervisor's source, sent as text because the program's view of the file system has none of our files."""
    return Path(supervisor.__file__).read_text("utf-8")
