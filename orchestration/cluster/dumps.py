"""Writes the stacks of every actor, and of the driver, into RUN/dumps when a wait has passed its limit.

A member is asked first. One that does not answer is looked at from outside, where it is on this machine: the kernel says whether
it is frozen, and a process that registered `actors.health.stacks.answer_signal` writes its stacks to its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from actors.health.stacks import SIGNAL, stacks

ASK_S = 5.0  # for a member to give its stacks
SIGNAL_S = 0.5  # for a process to have written them to its log
KEEP = 100  # files in RUN/dumps; older ones go
STATES = {
    "T": "frozen by a signal (SIGSTOP)",
    "t": "held by a debugger",
    "D": "waiting for a disk or a device",
    "Z": "ended, its parent has not noticed",
    "R": "running",
    "S": "sleeping",
}


class Dumpable(Protocol):
    """Gives its stacks; what it raises, or silence, is written down instead."""

    async def stacks(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Member:
    """Says where to ask for a member's stacks. pid, node: None where they are not known."""

    name: str
    handle: Dumpable | None
    pid: int | None = None
    node: str | None = None


async def write_dumps(folder: Path, members: Sequence[Member], reason: str, ask_s: float = ASK_S) -> Path:
    """Writes one file a member into `folder`, and one of the driver; returns the folder. Takes little more than `ask_s`.

    Names are NAME-TIME.txt. What cannot be written is left out: a dump helps a person, and must not end a run.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    texts = await asyncio.gather(*(_text(member, ask_s) for member in members))
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in [*zip((m.name for m in members), texts, strict=True), ("driver", stacks())]:
            (folder / f"{name.replace(' ', '-')}-{stamp}.txt").write_text(f"{reason}\n\n{text}\n", "utf-8")
        for old in sorted(folder.glob("*.txt"), key=lambda path: path.stat().st_mtime)[:-KEEP]:
            old.unlink()
    return folder


async def _text(member: Member, ask_s: float) -> str:
    why = "it cannot be asked"
    if member.handle is not None:
        try:
            return await asyncio.wait_for(member.handle.stacks(), ask_s)
        except TimeoutError:
            why = f"no answer within {ask_s:g} s"
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it is what the dump is about
            why = " ".join(str(error).split())[:500] or type(error).__name__
    here = member.node is None or member.node in (socket.gethostname(), "127.0.0.1")
    if member.pid is None or not here:
        return f"{member.name}: {why}; its process is on {member.node}"
    return f"{member.name}: {why}\n{await from_outside(member.pid)}"


async def from_outside(pid: int) -> str:
    """Returns what can be seen of a process of this machine that does not answer: its state, and its stacks where it catches the
    signal for them. A process that does not is never sent it: that would end it."""
    proc = Path(f"/proc/{pid}")
    try:
        fields = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        # Where the log ends now: the stacks are what comes after.
        log = (proc / "fd" / "2").readlink()
        before = log.stat().st_size if log.is_file() else None
    except OSError:
        return f"process {pid} is gone"
    letter = fields.get("State", "?")[0]
    out = f"process {pid} is {STATES.get(letter, letter)}, {fields.get('VmRSS', 'unknown memory').strip()} resident"
    catches = int(fields.get("SigCgt", "0"), 16) >> (SIGNAL - 1) & 1
    if letter in "Tt" or not catches or before is None:
        return out
    try:
        os.kill(pid, SIGNAL)
        await asyncio.sleep(SIGNAL_S)
        with log.open("rb") as file:
            file.seek(before)
            return f"{out}\n{file.read(100_000).decode('utf-8', 'replace')}"
    except OSError:
        return out
