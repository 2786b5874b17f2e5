"""Run a program that is not trusted, as text, and get back what it printed.

    run_python("print(6*7)")  ->  Outcome("ok", "42\\n", "", 0, 0.03)

What it is for: programs that a model wrote. Isolation is the strongest that this machine really gives (`active`): each
level is tried once with a program that checks it from inside. What a level does not stop is in its `gaps`.

How it differs from envs/isolation/killable.py: that one runs OUR code, which may hang, in a subprocess that is reused and has all
rights of its parent. This one runs THEIR code, once, with no rights: no environment, no files but the interpreter's, no
network, no process but its own. It is slower (some 50 ms a program) and nothing but text comes back. Linux on x86-64.
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

from envs.isolation import seccomp as untrusted_filter
from envs.isolation import supervisor as untrusted_child
from envs.isolation.watch import IsolationError, Limits, Outcome, Watch

Name = Literal["namespaces", "bubblewrap", "seccomp", "limits"]

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")  # what an interpreter is linked with


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
        Level("namespaces", f"own namespaces and a system-call filter: {_OWN_VIEW}"),
        # After namespaces: it bounds one thing less, and is for hosts that let bwrap alone make namespaces.
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
    # The supervisor is the first process: bwrap's own would be one more to signal, and bwrap would not wait until it has ended all.
    command.append("--as-pid-1")
    # Root keeps what it needs to become the program's own user; anybody else has a user namespace and no right at all.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.geteuid() == 0 else ["--unshare-user"]
    for path in _shown():
        for folder in reversed(Path(path).parents[:-1]):
            command += ["--dir", str(folder)]  # bwrap would close to others what it makes above a folder in root's home
        link = Path(path).is_symlink()
        command += ["--symlink", str(Path(path).readlink()), path] if link else ["--ro-bind-try", path, path]
    for device in untrusted_child.DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]  # not --dev: its /dev/shm has no bound
    command += ["--proc", "/proc", "--size", str(limits.folder), "--tmpfs", "/tmp"]
    return [*command, "--remount-ro", "/"]


@functools.cache
def _child_source() -> str:
    """Sent as text: the program's side of a file system has no file of ours."""
    return Path(untrusted_child.__file__).read_text("utf-8")
