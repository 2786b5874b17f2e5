"""Stops a run on SIGINT or SIGTERM: after a checkpoint of its last whole iteration, at the second signal at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class StopSignal:
    """Holds the signal that asks a run to stop. The loop looks at it between stages and while it waits for responses."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.error: Exception | None = None  # why the run cannot go on, other than a signal
        self._event = asyncio.Event()

    @property
    def asked(self) -> bool:
        """Returns whether the run is to stop."""
        return self._event.is_set()

    def fail(self, error: Exception) -> None:
        """Asks for a stop that raises `error`, after a checkpoint where the learner can still give one."""
        self.error = error
        self._event.set()

    def set(self, number: int) -> None:
        """Asks for a stop. number: of the signal."""
        self.number = number
        self._event.set()

    async def interrupts(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Returns the result of `work`, or cancels it and returns None when the signal comes first."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._event.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        return None


@contextlib.contextmanager
def signals(stop: StopSignal, say: Callable[[str], None]) -> Iterator[None]:
    """Routes SIGINT and SIGTERM, within an event loop: the first sets `stop`, the second cancels the present task."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal(number: int) -> None:
        if stop.number is not None and task is not None:
            task.cancel()
        else:
            say("stopping: the last whole iteration is checkpointed first; once more to stop at once")
            stop.set(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
