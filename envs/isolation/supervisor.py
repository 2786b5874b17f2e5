"""Isolates and supervises one untrusted program; the far side of envs/isolation/sandbox.py.

Runs as `python -I -S -c <this text>`, so it imports the standard library only. Three processes, each started by the one before:

    entrance    makes the namespaces (only at level "namespaces") and waits
    supervisor  process 1 of the new process namespace, where there is one: builds the file system, starts the program, ends
                it at the time limit or when the driver is gone, and reports; when it ends, every process inside ends with it
    program     drops all rights, sets the limits and the filter, and replaces itself with a new interpreter

The request is 8 bytes of length and JSON on stdin, which the driver then keeps open: the end of the stream means "stop". The
report is one line of JSON on the descriptor named by the first argument, which the program does not inherit.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DEVICES = ("null", "zero", "full", "random", "urandom")
_libc = ctypes.CDLL(None, use_errno=True)
_PROGRAM_FD = 3
_START = (
    f"import os; exec(compile(os.fdopen({_PROGRAM_FD}, encoding='utf-8').read(), 'program', 'exec'),"
    "{'__name__': '__main__', '__builtins__': __builtins__})"
)
_TICK_S = 0.05  # how often orphans are reaped; until then they count against the process limit
_INSIDE_ID = 1000  # user and group of the program in a user namespace; not 0, which would regain rights by exec
_CLEAN_UP_S = 2.0

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _PIVOT_ROOT = 442, 155
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38


def main() -> None:
    """Reads the request, isolates, runs the program and reports."""
    report = _move_up(int(sys.argv[1]))
    with open(0, "rb", buffering=0, closefd=False) as requests:
        request = json.loads(_read(requests, int.from_bytes(_read(requests, 8), "big")))
    try:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel kills this first when memory runs out
        uid = _unprivileged_uid(request["number"]) if os.geteuid() == 0 else None
        if request["level"] == "namespaces":
            _enter_namespaces()
            supervisor = os.fork()
            if supervisor:
                os.waitpid(supervisor, 0)
                return
            _build_root(request["shown"], request["limits"])
        _prctl(_PR_SET_DUMPABLE, 0)  # keeps the program from reading this process, which has the report's descriptor
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _report(report, _supervise(request, report, uid))
    except OSError as error:
        _report(report, {"error": str(error)})
    os._exit(0)


def _read(file: Any, size: int) -> bytes:
    """Reads exactly `size` bytes; exits when the stream ends early."""
    data = b""
    while len(data) < size:
        chunk = file.read(size - len(data))
        if not chunk:
            sys.exit("the driver is gone")
        data += chunk
    return data


def _move_up(descriptor: int) -> int:
    """Moves a descriptor out of the numbers that the program's own descriptors get, and marks it to be closed by exec."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


def _report(report: int, answer: dict[str, Any]) -> None:
    os.write(report, json.dumps(answer).encode() + b"\n")


# --- the supervisor -----------------------------------------------------------------------------------------------------


def _supervise(request: dict[str, Any], report: int, uid: int | None) -> dict[str, Any]:
    """Starts the program and waits for its end, the time limit or the driver's end. At weak levels, cleans up after it."""
    limits, level = request["limits"], request["level"]
    folder = None
    if level == "limits":
        if uid is not None and not _can_run(uid):
            raise OSError("the driver runs as root and no other user can read its Python")
        folder = tempfile.mkdtemp(prefix="untrusted-")
        if uid is not None:
            os.chown(folder, uid, uid)
    elif level == "seccomp" and uid is not None and not _can_run(uid):
        uid = None  # stays root without capabilities; the filter isolates it
    program, standard_input = (_memory_file(request[key]) for key in ("code", "stdin"))
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(folder or ("/" if level == "seccomp" else "/tmp"))
            _become_program(request, program, standard_input, uid)
        except BaseException as error:  # noqa: BLE001 - the child must not continue with the parent's code
            _report(report, {"error": f"{type(error).__name__}: {error}"})
            os._exit(1)
    os.close(program)
    os.close(standard_input)
    cut_off = _wait(pid, started + limits["wall_s"])
    seconds = time.monotonic() - started
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    if level in ("seccomp", "limits"):
        _end_all(pid, uid)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)  # follows no link, and no process is left that could make one
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"status": status, "cut_off": cut_off, "seconds": seconds, "cpu_s": cpu_s}


def _wait(pid: int, deadline: float) -> bool:
    """Waits until the program ended (returns False) or has to be ended (True); reaps adopted orphans meanwhile."""
    poller = select.poll()
    poller.register(os.pidfd_open(pid), select.POLLIN)
    poller.register(0, 0)  # only POLLHUP: the driver closed its end, or died
    while (left := deadline - time.monotonic()) > 0:
        events = poller.poll(1000 * min(left, _TICK_S))
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == pid:
                return False
            os.waitpid(ended.si_pid, 0)
        if events:
            return True
    return True


def _end_all(pid: int, uid: int | None) -> None:
    """Ends what the program left behind where no process namespace does it: its group, its user's processes, all orphans."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if uid is not None:
        killer = os.fork()
        if killer == 0:
            os.setresuid(uid, uid, uid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # everything this user may signal, which is what is left of this run
            os._exit(0)
        os.waitpid(killer, 0)
    deadline = time.monotonic() + _CLEAN_UP_S
    while time.monotonic() < deadline:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _processes() -> list[tuple[int, list[str]]]:
    """Returns (process id, fields of its stat line from the state on) of every visible process."""
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process ended meanwhile
            processes.append((int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()))
    return processes


def _children() -> list[int]:
    return [pid for pid, fields in _processes() if int(fields[1]) == os.getpid()]


def _tasks_of(uid: int) -> int:
    """Returns the number of processes and threads of a user, as the kernel counts them for RLIMIT_NPROC."""
    count = 0
    for pid, fields in _processes():
        with contextlib.suppress(OSError):
            count += int(fields[17]) if Path(f"/proc/{pid}").stat().st_uid == uid else 0
    return count


def _memory_file(text: str) -> int:
    """Returns a sealed, nameless file with the text: it can serve as stdin, and no program can write to it."""
    descriptor = os.memfd_create("text", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(
        descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    )
    return _move_up(descriptor)


# --- rights --------------------------------------------------------------------------------------------------------------


def _unprivileged_uid(number: int) -> int:
    """Returns a user id for this run alone, so that per-user limits and `kill(-1)` apply to this run only.

    It is near the end of the available ids. number: what to choose it by where this process is process 1.
    """
    if os.getpid() > 1:
        number = os.getpid()
    first, _, count = (int(x) for x in Path("/proc/self/uid_map").read_text().splitlines()[-1].split())
    if count < 2**15:
        raise OSError(f"the driver runs as root among {count} user ids: too few for one of the program's own")
    return first + count - 3 - number % (count // 8)  # skips the last ones: -1 is not an id, and nobody is shared


def _can_run(uid: int) -> bool:
    """Returns whether a user without rights can read this interpreter and its library (not when they are in root's home)."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        needed = ((sys.executable, os.X_OK), (os.__file__, os.R_OK))
        return all(os.access(path, mode, effective_ids=True) for path, mode in needed)
    finally:
        os.seteuid(0)
        os.setegid(0)


def _become_program(request: dict[str, Any], program: int, standard_input: int, uid: int | None) -> None:
    """Replaces this process with the program's interpreter; does not return.

    Rights first, limits next, the filter last: each step would be refused after the one that follows it.
    """
    os.setsid()
    os.umask(0o077)
    if os.geteuid() == 0:
        for capability in range(64):
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for capabilities that this kernel does not know
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # so that a killed supervisor takes the program with it at any level
    os.dup2(standard_input, 0)
    os.dup2(program, _PROGRAM_FD)
    for descriptor in range(_PROGRAM_FD + 1, 256):
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)
    _limit(request["limits"], request["level"], uid)
    _install_filter(bytes.fromhex(request["filter"]))
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _START], {})


def _limit(limits: dict[str, Any], level: str, uid: int | None) -> None:
    tasks = limits["processes"]
    if uid is None:  # the kernel counts all of the user's: in this namespace, or on the whole machine
        tasks += _tasks_of(os.geteuid()) if level in ("seccomp", "limits") else 4
    soft_limits = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_FSIZE: limits["file"],
        resource.RLIMIT_NPROC: tasks,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in soft_limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _install_filter(program: bytes) -> None:
    if not program:
        return

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    _prctl(_PR_SET_SECCOMP, 2, ctypes.byref(Program(len(program) // 8, program)))


# --- namespaces ----------------------------------------------------------------------------------------------------------


def _enter_namespaces() -> None:
    """Enters new namespaces. Root needs no user namespace (it drops its user later); any other user does."""
    uid, gid = os.geteuid(), os.getegid()
    own = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
    _check(_libc.unshare(own if uid == 0 else own | _NEWUSER), "unshare")
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{_INSIDE_ID} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{_INSIDE_ID} {gid} 1")


def _build_root(shown: list[str], limits: dict[str, Any]) -> None:
    """Builds a root with `shown` read-only, a few devices, /proc of the new process namespace, and a /tmp of its own."""
    os.umask(0o022)
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m")
    Path("/tmp/old").mkdir()
    _check(_libc.syscall(_PIVOT_ROOT, b"/tmp", b"/tmp/old"), "pivot_root")
    os.chdir("/")
    for path in shown:
        _show(path)
    Path("/dev").mkdir()
    for device in DEVICES:
        Path(f"/dev/{device}").touch()
        _mount(f"/old/dev/{device}", f"/dev/{device}", None, _BIND)
    Path("/proc").mkdir()
    with contextlib.suppress(
        OSError
    ):  # refused in a container that hides parts of its /proc: the program then has none
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC | _RDONLY)
    Path("/tmp").mkdir()
    size = f"mode=1777,size={limits['folder']},nr_inodes={limits['files']}"
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, size)
    _check(_libc.umount2(b"/old", 2), "umount")  # MNT_DETACH
    Path("/old").rmdir()
    _mount(None, "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)


def _show(path: str) -> None:
    source = Path("/old" + path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        Path(path).symlink_to(source.readlink())
        return
    if not source.exists():
        return
    if stat.S_ISDIR(source.stat().st_mode):
        Path(path).mkdir()
    else:
        Path(path).touch()
    _mount(str(source), path, None, _BIND | _REC)
    attributes = (ctypes.c_uint64 * 4)(
        _RDONLY | _NOSUID | _NODEV, 0, 0, 0
    )  # the bits of these three are the same as in mount(2)
    recursive = 0x8000
    _check(_libc.syscall(_MOUNT_SETATTR, -100, path.encode(), recursive, attributes, 32), f"mount_setattr {path}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = (x.encode() if x else None for x in (source, target, kind))
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def _prctl(option: int, value: int, third: Any = 0) -> None:
    _check(_libc.prctl(option, value, third, 0, 0), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
