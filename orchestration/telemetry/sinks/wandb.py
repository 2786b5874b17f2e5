"""Writes the metrics to Weights & Biases with its own package, online or offline.

Where they go is the environment's, as always with W&B: WANDB_API_KEY, WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline. The files it
keeps meanwhile are in RUN/wandb; what was written offline is uploaded with `wandb sync RUN/wandb/offline-run-*`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError
from orchestration.telemetry.sinks.base import Row, RunInfo, Sample
from orchestration.telemetry.sinks.tracker_run import TrackerRun, imported
from orchestration.text import one_line

PROJECT = "isentrope"


class WandbSink:
    """Logs every iteration's metrics at its number as the step, and the configuration once.

    Raises ImportError in one sentence when the package is missing, at construction. A run that goes on continues its W&B run; rows
    that it repeats, which are those after its last checkpoint, are there already and are not logged again.
    """

    def __init__(self, run_dir: Path) -> None:
        self._wandb: Any = imported("wandb", "wandb")
        self._tracked = TrackerRun(run_dir / "wandb.json")
        self._run_dir = run_dir
        self._run: Any = None

    def start(self, run: RunInfo) -> None:
        """Begins the W&B run. Raises ConfigError where it cannot: no key, no network."""
        known = self._tracked.begin(run.resumed_at)
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=run.name,
                id=known,
                resume="allow" if known else None,
                dir=str(self._run_dir),
                config=dict(run.config),
                settings=self._wandb.Settings(silent=True, console="off"),  # what the run prints is its own
            )
        except self._wandb.Error as error:
            raise ConfigError(
                f"run.sinks has wandb, which cannot begin: {one_line(error)}; give WANDB_API_KEY, or WANDB_MODE=offline"
            ) from error
        self._tracked.named(self._run.id)

    def progress(self, phase: str, done: float, total: float) -> None:
        pass

    def iteration(self, row: Row) -> None:
        step = int(row["iteration"])
        if self._tracked.is_new(step):
            self._run.log(dict(row), step=step, commit=True)

    def sample(self, rows: Sequence[Sample]) -> None:
        pass

    def event(self, text: str) -> None:
        pass

    def close(self, status: str) -> None:
        if self._run is not None:
            self._run.summary["status"] = status
            self._run.finish(exit_code=0 if status == "finished" else 1)
            self._run = None
