"""Does what goes on beside a run: takes requests to it, tells where it stands, and says what it waits for."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING

from orchestration.config.run_config import RunConfig
from orchestration.run.control import Handlers, serving
from orchestration.run.stop import StopSignal
from orchestration.run.watchdog import Watchdog
from orchestration.telemetry.sinks.base import FanOut, Row, RunInfo, Sample
from orchestration.telemetry.sinks.build import status_of

if TYPE_CHECKING:
    from orchestration.cluster.cluster import Cluster

DUMPS = "dumps"  # the folder of a run that stacks go to


class _Progress:
    """Tells a watchdog what the loop shows of its phases; a sink like the others."""

    def __init__(self, watchdog: Watchdog, on_start: Callable[[], None]) -> None:
        self._watchdog, self._on_start = watchdog, on_start

    def start(self, run: RunInfo) -> None:
        self._watchdog.phase("start")
        self._on_start()

    def progress(self, phase: str, done: float, total: float) -> None:
        self._watchdog.phase(phase)
        self._watchdog.progress(done, total)

    def iteration(self, row: Row) -> None:
        self._watchdog.progress()

    def sample(self, rows: Sequence[Sample]) -> None: ...

    def event(self, text: str) -> None: ...

    def close(self, status: str) -> None: ...


class Beside:
    """Looks at a run once a second, and does what is asked of it through its folder."""

    def __init__(self, config: RunConfig, cluster: Cluster, sink: FanOut, stop: StopSignal) -> None:
        self._config, self._cluster, self._sink, self._stop = config, cluster, sink, stop
        self._status = status_of(sink)
        self._task = asyncio.current_task()  # the run
        self._moves = 0
        self._starting = True  # until an actor is heard to have done something
        self._dump: asyncio.Task[object] | None = None
        # What actors do counts as progress, too: a pass over a large batch shows nothing until its end.
        self.watchdog = Watchdog(2 * config.cluster.silent_s)
        sink.sinks = (*sink.sinks, _Progress(self.watchdog, self._on_start))

    @property
    def handlers(self) -> Handlers:
        """Returns what is done on request, and at every look."""
        return Handlers(self._on_stop, self._cluster.members.scale, self._look)

    def _on_start(self) -> None:
        """Notes that the run begins, or begins anew from a checkpoint."""
        self._starting, self._moves = True, self._cluster.members.monitor.moves

    def _on_stop(self, now: bool) -> str:
        self._stop.set(signal.SIGTERM)
        if now and self._task is not None:
            self._task.cancel()
        return "stops at once" if now else "stops: the last whole iteration is checkpointed first"

    def _look(self) -> None:
        members = self._cluster.members
        counters = {"replaced": members.replaced, "learner_restarts": self._cluster.restarts}
        self._status.members(members.states(), counters)
        if members.monitor.moves != self._moves:
            self._starting, self._moves = False, members.monitor.moves
            self.watchdog.progress()
        self.watchdog.waits_for(members.busy())
        # The waits of a start have limits and errors of their own, and say nothing of their progress.
        sentence = None if self._starting else self.watchdog.look()
        if sentence is not None and (self._dump is None or self._dump.done()):
            self._dump = asyncio.create_task(self._write_dumps(sentence))

    async def _write_dumps(self, sentence: str) -> None:
        from orchestration.cluster.dumps import write_dumps

        folder = await write_dumps(self._config.folder / DUMPS, self._cluster.members.dumpable(), sentence)
        self._sink.event(f"{sentence}; the stacks of all actors are in {folder}")


@contextlib.asynccontextmanager
async def beside(config: RunConfig, cluster: Cluster, sink: FanOut, stop: StopSignal) -> AsyncGenerator[None]:
    """Does all of it while the context lasts, within the task of the run."""
    async with serving(config.folder, Beside(config, cluster, sink, stop).handlers):
        yield
