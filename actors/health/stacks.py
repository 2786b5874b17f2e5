"""Writes down what a process is doing: the Python stack of every thread and of every asyncio task.

`stacks` is for a process that can still run Python. One whose interpreter is held by C code answers a signal instead, once
`answer_signal` was called in it: its stacks then go to its stderr, which Ray keeps in a file.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import os
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass

SIGNAL = signal.SIGUSR1
LONGEST = 200_000  # characters: an engine may have a thousand tasks


def stacks() -> str:
    """Returns the stacks of all threads of this process, and, called within an event loop, of its tasks."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    out = io.StringIO()
    for ident, frame in sys._current_frames().items():  # pyright: ignore[reportPrivateUsage] - documented, and the one way
        out.write(f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}\n")
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no loop in this thread
        tasks = set[asyncio.Task[object]]()
    for task in tasks:
        out.write(f"task {task.get_name()}\n")
        for frame in task.get_stack():
            out.write("".join(traceback.format_stack(frame, limit=1)))
    return out.getvalue()[:LONGEST]


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Says where a process is. Example: Whereabouts(4711, "node-3")"""

    pid: int
    node: str


def here() -> Whereabouts:
    """Returns where this process is."""
    return Whereabouts(os.getpid(), socket.gethostname())


def answer_signal() -> None:
    """Makes this process write its stacks to stderr on SIGUSR1, even while C code holds the interpreter."""
    faulthandler.register(SIGNAL, all_threads=True)
