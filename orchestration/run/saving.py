"""Saves checkpoints of a run when they are due, and keeps it going where the disk does not take one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from learner.checkpoint import Checkpoints
from learner.tracing.spans import traced
from orchestration.config.sections import CheckpointSection
from orchestration.errors import IsentropeError
from orchestration.run.protocols import TrainingCluster
from orchestration.run.state import RunState
from orchestration.sampling.pending import write_groups
from orchestration.sampling.rollouts import Rollouts
from orchestration.telemetry.sinks.base import Sink
from orchestration.text import disk_problem

P = ParamSpec("P")


class NotSaved(IsentropeError):
    """Reports a checkpoint that the disk did not take; the one before is as it was."""


class Saver:
    """Saves weights, optimiser, tokenizer and the run's state. Files are hashed and written off the event loop."""

    def __init__(
        self,
        section: CheckpointSection,
        cluster: TrainingCluster,
        rollouts: Rollouts,
        state: RunState,
        checkpoints: Checkpoints,
        sink: Sink,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.section, self.cluster, self.rollouts = section, cluster, rollouts
        self.state, self.checkpoints, self.sink, self.clock = state, checkpoints, sink, clock
        self._tried_at = clock()

    def due(self) -> bool:
        """Decides whether a checkpoint follows the present iteration: by its number, or by the time since the last one."""
        every, minutes = self.section.every, self.section.minutes
        if every and self.state.iteration % every == 0:
            return True
        return bool(minutes) and self.clock() - self._tried_at >= 60 * minutes

    @traced("checkpoint")
    async def save(self, *, last: bool) -> None:
        """Saves, unless this very state is saved already.

        A disk that does not take it is an event, and the next one that is due tries again; NotSaved is raised for the last.
        """
        self.sink.progress("checkpoint", 0, 1)
        self.state.learner = await self.cluster.learner.state_dict()
        try:
            if not await asyncio.to_thread(self.checkpoints.holds, self.state.state_dict()):
                await self._write()
        except NotSaved as error:
            if last:
                raise
            self.sink.event(str(error))
        self._tried_at = self.clock()
        self.sink.progress("checkpoint", 1, 1)

    async def _write(self) -> None:
        checkpoints, draft = self.checkpoints, None
        # Of one moment: groups go on meanwhile.
        state, waiting = self.state.state_dict(), [] if self.state.pending is None else self.state.pending.waiting()
        try:
            draft = await asyncio.to_thread(checkpoints.begin, self.state.iteration)
            folder = draft.resolve()
            await self.cluster.learners_turn()
            await self.cluster.learner.save(folder / "hf", folder / "engine")
            await asyncio.to_thread(self.rollouts.save_tokenizer, folder / "hf")
            await asyncio.to_thread(write_groups, folder, waiting)
            await _to_its_end(checkpoints.finish, draft, state)
        except BaseException as error:
            needed = checkpoints.space(draft)[0] if isinstance(error, OSError) else 0
            if draft is not None:
                checkpoints.discard(draft)
            if isinstance(error, OSError):
                raise self._not_saved(error, needed) from None
            raise

    def _not_saved(self, error: OSError, needed: int) -> NotSaved:
        latest = self.checkpoints.latest()
        path = Path(str(error.filename)) if error.filename else self.checkpoints.folder
        there = "and nothing else was saved yet" if latest is None else f"the latest is still {latest.name}"
        return NotSaved(
            f"the checkpoint of iteration {self.state.iteration} was not written, {there}: "
            f"{disk_problem(path, error, self.checkpoints.space()[1], needed)}"
        )


async def _to_its_end(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Runs blocking work in a thread. Where the wait is cancelled, that is raised once the work has ended: a thread goes on."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
