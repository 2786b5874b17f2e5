"""Records spans of time by name: `with span("update"):`, or `@traced("update")`. Costs next to nothing while nothing is recorded.

Spans of one lane are nested or apart, as a Chrome trace asks of a thread: a span within another of the same thread and asyncio task
shares its lane, any other takes the lowest that is free. Times are nanoseconds of the wall clock, the one that processes share.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

VARIABLE = "ISENTROPE_TRACE"  # "1" in the environment of a process that records from its start
CAPACITY = 20_000  # spans that a process keeps; beyond it the oldest are dropped, and counted
PIECE_NS = 10**9  # what goes on for longer is recorded in pieces

F = TypeVar("F", bound=Callable[..., Any])


class Span(NamedTuple):
    """Holds one span. Example: Span("update", 1_700_000_000_000_000_000, 1_700_000_000_250_000_000, 0)"""

    name: str
    begin: int
    end: int
    lane: int


class Recorded(NamedTuple):
    """Holds what a process recorded since it was asked before; `dropped` spans were too many."""

    spans: list[Span]
    dropped: int


class Recorder:
    """Keeps the latest spans of a process. For any thread. clock: nanoseconds."""

    def __init__(self, capacity: int = CAPACITY, clock: Callable[[], int] = time.time_ns) -> None:
        self.clock = clock
        self._spans: deque[Span] = deque(maxlen=capacity)
        self._added = 0
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._lanes = 0

    def open_lane(self) -> int:
        """Returns the lowest lane that is free, and takes it."""
        with self._lock:
            if self._free:
                return heapq.heappop(self._free)
            self._lanes += 1
            return self._lanes - 1

    def close_lane(self, lane: int) -> None:
        """Gives a lane back."""
        with self._lock:
            heapq.heappush(self._free, lane)

    def add(self, span: Span) -> None:
        """Keeps a span that has ended."""
        with self._lock:
            self._spans.append(span)
            self._added += 1

    def take(self) -> Recorded:
        """Returns what was recorded since the last call, and forgets it."""
        with self._lock:
            spans, dropped = list(self._spans), self._added - len(self._spans)
            self._spans.clear()
            self._added = 0
        return Recorded(spans, dropped)


class _Open(AbstractContextManager[None]):
    """Is a span that goes on."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name = recorder, name

    def __enter__(self) -> None:
        above = _ABOVE.get()
        self._owner = _owner()
        self._shares = above is not None and above.begins_here(self._recorder, self._owner)
        self._lane = above._lane if above is not None and self._shares else self._recorder.open_lane()
        self._token = _ABOVE.set(self)
        self._goes_on = True
        self._began = self._recorder.clock()

    def __exit__(self, *_: object) -> None:
        self._recorder.add(Span(self._name, self._began, self._recorder.clock(), self._lane))
        self._goes_on = False
        _ABOVE.reset(self._token)
        if not self._shares:
            self._recorder.close_lane(self._lane)

    def begins_here(self, recorder: Recorder, owner: tuple[int, int]) -> bool:
        """Returns whether this one goes on, in the same thread and task: contexts are copied into others."""
        return self._goes_on and recorder is self._recorder and owner == self._owner


_ABOVE: ContextVar[_Open | None] = ContextVar("span", default=None)
_OFF = nullcontext()
_recorder: Recorder | None = Recorder() if os.environ.get(VARIABLE) == "1" else None


def _owner() -> tuple[int, int]:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop in this thread
        task = None
    return threading.get_ident(), 0 if task is None else id(task)


def record(recorder: Recorder | None) -> None:
    """Records into `recorder` from now on, in this process; None ends it."""
    global _recorder
    _recorder = recorder


def take() -> Recorded:
    """Returns what this process recorded since the last call; nothing where it does not record."""
    return Recorded([], 0) if _recorder is None else _recorder.take()


def span(name: str) -> AbstractContextManager[None]:
    """Returns a context that is recorded under this name, if anything is."""
    return _OFF if _recorder is None else _Open(_recorder, name)


def traced(name: str) -> Callable[[F], F]:
    """Decorates a function, or a coroutine function, whose calls are recorded under this name."""

    def decorate(function: F) -> F:
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def waits(*args: Any, **kwargs: Any) -> Any:
                with span(name):
                    return await function(*args, **kwargs)

            return cast("F", waits)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with span(name):
                return function(*args, **kwargs)

        return cast("F", call)

    return decorate


class Busy:
    """Records how long something goes on that begins and ends in different calls, in pieces of PIECE_NS. For one thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: tuple[Recorder, int, int] | None = None  # with its lane and its beginning

    def now(self, busy: bool) -> None:
        """Notes whether it goes on now."""
        if self._open is not None:
            recorder, lane, began = self._open
            now = recorder.clock()
            if busy and recorder is _recorder and now - began < PIECE_NS:
                return
            recorder.add(Span(self._name, began, now, lane))
            recorder.close_lane(lane)
            self._open = None
        if busy and _recorder is not None:
            self._open = _recorder, _recorder.open_lane(), _recorder.clock()
