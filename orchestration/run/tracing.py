"""Gathers what the driver and every actor recorded, beside the run, into its trace.json."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Protocol

from learner.tracing import spans
from learner.tracing.spans import Recorded, Recorder
from orchestration.telemetry.trace_file import TraceFile
from orchestration.text import disk_problem

GATHER_S = 2.0  # between two rounds; a process keeps thousands of spans meanwhile
ASK_S = 5.0  # for an actor to answer
FILE = "trace.json"  # in the run's folder


class Traced(Protocol):
    """Records spans in a process of its own."""

    name: str

    async def spans(self) -> Recorded: ...


@contextlib.asynccontextmanager
async def tracing(
    folder: Path,
    actors: Callable[[], Sequence[Traced]],
    report: Callable[[str], None],
    every_s: float = GATHER_S,
) -> AsyncGenerator[None]:
    """Records this process and gathers from the actors while the context lasts. A full disk ends the trace, not the run."""
    spans.record(Recorder())
    over = asyncio.Event()
    gathering = asyncio.create_task(_gather(folder / FILE, actors, report, every_s, over))
    try:
        yield
    finally:
        over.set()
        await asyncio.wait({gathering})
        spans.record(None)


async def _gather(
    path: Path,
    actors: Callable[[], Sequence[Traced]],
    report: Callable[[str], None],
    every_s: float,
    over: asyncio.Event,
) -> None:
    """Gathers every `every_s` seconds until `over`, and once more."""
    try:
        file, last = await asyncio.to_thread(TraceFile, path), False
        while not last:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), every_s)
            last = over.is_set()
            recorded = dict(await asyncio.gather(*map(_ask, actors())))
            await asyncio.to_thread(file.write, {"driver": spans.take(), **recorded})
        await asyncio.to_thread(file.close)
    except OSError as error:
        report(f"the trace ends here: {disk_problem(path, error, 0, 0)}")


async def _ask(actor: Traced) -> tuple[str, Recorded]:
    try:
        return actor.name, await asyncio.wait_for(actor.spans(), ASK_S)
    except Exception:  # noqa: BLE001 - dead, or too busy to answer; others are asked all the same
        return actor.name, Recorded([], 0)
