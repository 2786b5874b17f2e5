"""Writes TensorBoard event files with the tensorboard package alone: torch is not needed."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestration.telemetry.sinks.base import Row, RunInfo, Sample


class TensorboardSink:
    """Writes scalars to RUN/tensorboard.

    Raises ImportError in one sentence when the package is missing, at construction: before the GPUs are taken.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ImportError(
                "The tensorboard sink needs the tensorboard package: install it with `pip install tensorboard` "
                "or take 'tensorboard' out of the sinks."
            ) from error
        self._event: Callable[..., Any] = Event
        self._summary: Any = Summary
        self._writer = EventFileWriter(str(run_dir / "tensorboard"))

    def start(self, run: RunInfo) -> None:
        # TensorBoard then hides what an interrupted run wrote after the checkpoint, and all that an overwritten one did.
        step, session = 0 if run.resumed_at is None else run.resumed_at + 1, {"status": 1}  # SessionLog.START
        self._writer.add_event(self._event(session_log=session, step=step, wall_time=time.time()))

    def progress(self, phase: str, done: float, total: float) -> None:
        pass

    def iteration(self, row: Row) -> None:
        own = ("iteration", "time/unix")  # an event has fields for these two
        values = [self._summary.Value(tag=key, simple_value=value) for key, value in row.items() if key not in own]
        self._writer.add_event(
            self._event(
                step=int(row["iteration"]),
                wall_time=row.get("time/unix", time.time()),
                summary=self._summary(value=values),
            )
        )

    def sample(self, rows: Sequence[Sample]) -> None:
        pass

    def event(self, text: str) -> None:
        pass

    def close(self, status: str) -> None:
        self._writer.close()
