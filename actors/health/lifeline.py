"""Bounds each wait for an actor, and ends all of them at once when the actor is given up.

Turns what Ray raises into our own errors: the death of a process becomes MemberDied, an error raised inside a method comes out
as itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from actors.inference import EngineDead

T = TypeVar("T")

_RAISED = re.compile(r"^[A-Za-z_][\w.]*: ", re.MULTILINE)  # "ValueError: ..." at the beginning of a line


NO_ANSWER = "no answer within"
LESS_MEMORY = (
    "a smaller learner.micro_batch_tokens, generators.kv_cache_mb or generators.count takes less, and `isentrope train --dry-run` "
    "says how much is planned"
)
# The kernel kills without a word, and Ray does not know why a process ended.
MAYBE_MEMORY = "; `dmesg` tells whether the machine was out of memory"


class MemberDied(RuntimeError):
    """Says that an actor is gone, or was given up: its work goes to another."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(name, detail)
        self.name, self.detail = name, detail

    def __str__(self) -> str:
        return f"{self.name} is gone: {self.detail}"

    @property
    def late(self) -> bool:
        """Returns whether nothing is known but that an answer did not come in time."""
        return self.detail.startswith(NO_ANSWER)


class CouldNotStart(MemberDied):
    """Says that an actor's own code refused to start: another one like it would, too."""


class LearnerDied(MemberDied):
    """Says that a rank of the learner is gone, and with it the group: the run goes on from its last checkpoint."""


class Lifeline:
    """Makes the calls of one actor. `error` makes the error of its death."""

    def __init__(self, name: str, error: Callable[[str, str], MemberDied] = MemberDied) -> None:
        self.name = name
        self.work = 0  # calls under way that have to make progress
        self._error = error
        self._death: MemberDied | None = None
        self._cut: asyncio.Future[None] | None = None  # made by the first wait, in its event loop

    @property
    def death(self) -> MemberDied | None:
        """Returns why the actor was given up; None while it was not."""
        return self._death

    def cut(self, death: MemberDied) -> None:
        """Gives the actor up: every wait under way, and every later one, raises `death`."""
        if self._death is None:
            self._death = death
            if self._cut is not None and not self._cut.done():
                self._cut.set_result(None)

    @contextmanager
    def working(self) -> Generator[None]:
        """Counts a call that has to make progress, for as long as it is under way."""
        self.work += 1
        try:
            yield
        finally:
            self.work -= 1

    async def answer(self, reference: Awaitable[T], timeout_s: float | None, key: str = "") -> T:
        """Waits for a call. Raises MemberDied when the process, or the engine in it, is gone, the actor is given up or the time is
        up.

        timeout_s: None where progress alone bounds the wait: the monitor gives the actor up. key: what sets the time.
        """
        task = asyncio.ensure_future(reference)
        try:
            done = await self._first(task, timeout_s)
            if task in done:
                return task.result()
            if self._death is not None:
                raise self._death
            limit = f"{timeout_s:g} s" + (f" ({key})" if key else "")
            raise self._gone(f"{NO_ANSWER} {limit}")
        except RayActorError as error:
            if "creation task" in str(error):
                self.cut(CouldNotStart(self.name, _why(error)))
            raise self._gone(_why(error)) from error
        except ObjectLostError as error:
            raise self._gone(str(error).strip().splitlines()[0][:300]) from error
        except RayTaskError as error:
            if isinstance(error.cause, EngineDead):
                raise self._gone(str(error.cause)) from error
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except OutOfMemoryError as error:
            raise self._gone(_memory(str(error), "")) from error
        except RayError as error:
            # It was ended for the memory it took, its environment cannot be set up, or no node has room for it.
            raise self._gone(" ".join(str(error).split())[:300] or type(error).__name__) from error
        finally:
            if not task.done():
                task.cancel()

    def _gone(self, detail: str) -> MemberDied:
        self.cut(self._error(self.name, detail))
        assert self._death is not None
        return self._death

    async def _first(self, task: asyncio.Future[T], timeout_s: float | None) -> set[asyncio.Future[T]]:
        """Waits for the task or the end of the actor; returns the task if it is done."""
        if self._death is not None:
            return set()
        if self._cut is None or self._cut.get_loop() is not asyncio.get_running_loop():
            self._cut = asyncio.get_running_loop().create_future()
        await asyncio.wait({task, self._cut}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return {task} if task.done() else set()


def _memory(text: str, where: str) -> str:
    """Returns that Ray's memory monitor ended an actor, with what was used of how much where Ray says it, and what takes less."""
    used = re.search(r"was ([\d.]+ ?[KMGT]?i?B) / ([\d.]+ ?[KMGT]?i?B)", text)
    numbers = f", which had {used.group(1)} of {used.group(2)} in use" if used else ""
    return f"its process{where} was ended because the node ran low on memory{numbers}: {LESS_MEMORY}"


def _why(error: RayActorError) -> str:
    """Returns what Ray says of an actor's end in one line: its own message is a page."""
    text = str(error)
    if "creation task" in text:  # the last error of the traceback, whose message may have several lines
        raised = [m.start() for m in _RAISED.finditer(text)]
        return " ".join(text[raised[-1] if raised else 0 :].split())[:500]
    found = {key: match.group(1) for key in ("pid", "ip") if (match := re.search(rf"\b{key}: (\S+)", text))}
    where = f" (pid {found['pid']} on {found['ip']})" if len(found) == 2 else ""
    if (
        re.search(r"low on memory|out of memory|\bOOM\b", text, re.IGNORECASE)
        and "potential root causes" not in text.lower()
    ):
        return _memory(text, where)
    if "exit type" in text or "killed" in text:
        return f"its process{where} was killed or crashed{MAYBE_MEMORY}"
    return " ".join(text.split())[:300] or type(error).__name__
