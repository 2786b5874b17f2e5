"""Plays parts of a check, each in a process of its own with a limit, and goes on after one that fails: check.py and multi.py."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRACE_S = 20.0  # for a part that is told to end: `isentrope train` ends its Ray processes


@dataclass(frozen=True)
class Part:
    """Names the function of a part as "module:function", called with `say` and these arguments, and its limit in seconds."""

    work: str
    limit_s: float
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Line:
    """Holds one thing that a part has found."""

    part: str
    what: str
    found: str
    ok: bool

    def __str__(self) -> str:
        return f"{self.part:16} {'ok  ' if self.ok else 'FAIL'}  {self.what}: {self.found}"


def child(part: Part, pipe: Any, log: str) -> None:
    """Runs one part; its output, and that of all it starts, goes to a log."""
    os.setsid()  # a group to end: parts start trainers and engines
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    module, _, function = part.work.partition(":")
    try:
        work = getattr(importlib.import_module(module), function)
        work(lambda what, found, ok: pipe.send((what, str(found), bool(ok))), *part.arguments)
    except BaseException as error:  # noqa: BLE001 - a line of the table
        traceback.print_exc()
        pipe.send(("it ended", f"{type(error).__name__}: {error}"[:300], False))
    pipe.close()


class Running:
    """Holds a part that was started."""

    def __init__(self, name: str, part: Part, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.part, self.began = name, part, time.monotonic()
        self._pipe, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=child, args=(part, sender, str(log)))
        self._process.start()
        sender.close()

    def lines(self) -> Iterator[Line]:
        """Yields what the part finds; after its limit, or its end, nothing of it is left."""
        limit, found = self.began + self.part.limit_s, 0
        try:
            while True:
                if not self._pipe.poll(max(0.0, limit - time.monotonic())):
                    yield Line(self.name, "limit", f"not done within {self.part.limit_s:g} s", False)
                    break
                what, result, ok = self._pipe.recv()
                found += 1
                yield Line(self.name, what, result, ok)
        except EOFError:
            self._process.join(5)
            if self._process.exitcode:
                yield Line(self.name, "exit code", str(self._process.exitcode), False)
            elif not found:
                yield Line(self.name, "nothing", "it found nothing", False)
        finally:
            self._end()

    def _end(self) -> None:
        pid = self._process.pid
        assert pid is not None
        if self._process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGTERM)
            self._process.join(GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self._process.join(GRACE_S)  # a process that waits in a driver of the GPU does not end even so


def play(parts: Mapping[str, Part], out: Path, together: bool = False) -> list[Line]:
    """Plays all parts, prints each line when it is found, and returns them. Logs are out/NAME.log.

    together: all at once, for what is checked and not for what is timed.
    """
    out.mkdir(parents=True, exist_ok=True)
    names, found = list(parts), list[Line]()
    for group in [names] if together else [[name] for name in names]:
        for running in [Running(name, parts[name], out / f"{name}.log") for name in group]:
            for line in running.lines():
                found.append(line)
                show(str(line))
            show(f"{running.name:16}       took {time.monotonic() - running.began:.0f} s")
    return found


def chosen(parts: Mapping[str, Part], names: str | None) -> dict[str, Part]:
    """Returns the parts of a comma-separated list; all without one. SystemExit 2 with a sentence where one is not there."""
    wanted = list(parts) if names is None else names.split(",")
    if unknown := [name for name in wanted if name not in parts]:
        refuse(f"there is no part {', '.join(unknown)}: parts are {', '.join(parts)}")
    return {name: parts[name] for name in wanted}


def table(lines: Sequence[Line]) -> str:
    """Returns one row a part: whether all that it found is right, and what is not."""
    rows: dict[str, list[Line]] = {}
    for line in lines:
        rows.setdefault(line.part, []).append(line)
    text = []
    for part, found in rows.items():
        wrong = [f"{line.what}: {line.found}" for line in found if not line.ok]
        text.append(f"| {part:16} | {'FAIL' if wrong else 'ok':4} | {'; '.join(wrong) or f'{len(found)} checks'} |")
    return "\n".join(text)


def show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def refuse(sentence: str) -> None:
    """Ends the program with a sentence and exit code 2."""
    sys.stderr.write(sentence + "\n")
    raise SystemExit(2)
