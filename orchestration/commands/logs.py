"""Implements `isentrope logs`: the events of a run, and what its actors wrote to stdout and stderr.

Ray keeps the output of an actor on the actor's own node, in a file with the process's id in its name.
"""

from __future__ import annotations

import glob
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.commands.control import folder_of
from orchestration.errors import ConfigError
from orchestration.run import control
from orchestration.telemetry.sinks.status import EVENTS_FILE, read_status

POLL_S = 0.5
TAIL = 16_384  # bytes of a file that are shown
# Where Ray keeps its sessions: of a cluster that was joined, unless RAY_TMPDIR is set; of a run's own, which are kept if it fails.
SESSIONS = ("/tmp/ray", f"{tempfile.gettempdir()}/isentrope-*/r", "/tmp/isentrope-*/r")


def show(run: str, name: str | None, follow: bool, out: Callable[[str], Any] = sys.stdout.write) -> None:
    """Prints the events of a run, or the output of one actor; `follow` goes on until the run ends. Raises ConfigError."""
    folder = folder_of(run)
    try:
        status = read_status(folder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    known = [*(status.get("members") or []), *(status.get("former") or [])]
    if name is None:
        files = [folder / EVENTS_FILE]
        where = [f"{m.get('name')}: {describe(m)}" for m in known]
        out("".join(f"{line}\n" for line in where))
    else:
        files = files_of(_member(name, known))
        if not files:
            raise ConfigError(f"the output of {name} is not on this machine: {describe(_member(name, known))}")
    offsets = dict.fromkeys(files, 0)
    _copy(offsets, out, TAIL)
    while follow and control.alive(folder) == "running":
        time.sleep(POLL_S)  # files of other processes: there is nothing to wait on
        _copy(offsets, out)


def _member(name: str, known: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the actor of that name: "generator 0", or generator-0 for a shell's sake."""
    plain = name.replace("-", " ")
    for member in known:
        if str(member.get("name", "")).replace("-", " ") == plain:
            return member
    names = ", ".join(str(m.get("name")) for m in known) or "none that the run has told of yet"
    raise ConfigError(f"the run has no actor {name[:100]}: there are {names[:500]}")


def describe(member: Mapping[str, Any]) -> str:
    """Says where an actor's output is."""
    files = files_of(member)
    if files:
        return " ".join(map(str, files))
    return f"on {member.get('node')}, {SESSIONS[0]}/session_*/logs/worker-*-{member.get('pid')}.err and .out"


def files_of(member: Mapping[str, Any], sessions: Sequence[str] = SESSIONS) -> list[Path]:
    """Returns the files with an actor's stderr and stdout on this machine; none where it ran on another one."""
    pid = member.get("pid")
    if not isinstance(pid, int):
        return []
    own = [link for number in (2, 1) if (link := _target(pid, number)) is not None]
    return own or (list(_kept(pid, sessions)) if _here(member) else [])


def _target(pid: int, number: int) -> Path | None:
    """Returns the file behind a descriptor of a live worker, which needs no word of where Ray keeps its sessions."""
    try:
        path = Path(f"/proc/{pid}/fd/{number}").readlink()
    except OSError:
        return None
    return path if path.name.startswith("worker-") and path.suffix in (".err", ".out") else None


def _kept(pid: int, sessions: Sequence[str]) -> Iterator[Path]:
    """Yields what a process that has ended left; process ids come again, so the newest session with one counts."""
    paths = {Path(p) for folder in sessions for p in glob.glob(f"{folder}/session_*/logs/worker-*-{pid}.err")}  # noqa: PTH207
    found = sorted(paths, key=lambda p: p.stat().st_mtime)
    if found:
        yield found[-1]
        if (out := found[-1].with_suffix(".out")).exists():
            yield out


def _here(member: Mapping[str, Any]) -> bool:
    node = member.get("node")
    try:
        own = {socket.gethostname(), "127.0.0.1", "localhost", *socket.gethostbyname_ex(socket.gethostname())[2]}
    except OSError:
        own = {socket.gethostname(), "127.0.0.1", "localhost"}
    return node is None or node in own


def _copy(offsets: dict[Path, int], out: Callable[[str], Any], tail: int | None = None) -> None:
    """Prints what was added to files since the last call. tail: at most so many bytes of each."""
    for path, offset in offsets.items():
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(offset, size - tail) if tail is not None else min(offset, size))
                added = file.read()
        except OSError:
            continue
        offsets[path] = size
        if added:
            head = f"--- {path}\n" if len(offsets) > 1 else ""
            out(head + added.decode("utf-8", "replace"))
