"""Writes the metrics to Weights & Biases with its own package, online or offline.

Where they go is the environment's, as always with W&B: WANDB_API_KEY, WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline. The files it
keeps meanwhile are in RUN/wandb; what was written offline is uploaded with `wandb sync RUN/wandb/offline-run-*`.
"""

import os
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError
from orchestration.telemetry.sinks.base import Row, RunInfo
from orchestration.telemetry.sinks.tracker_run import TrackerSink, imported
from orchestration.text import one_line

PROJECT = "isentrope"


class WandbSink(TrackerSink):
    """Logs to W&B. Raises ImportError in one sentence when the package is missing, at construction."""

    def __init__(self, run_dir: Path) -> None:
        self._wandb: Any = imported("wandb", "wandb")
        super().__init__(run_dir / "wandb.json")
        self._run_dir = run_dir
        self._run: Any = None

    def _begin(self, run: RunInfo, known: str | None) -> str:
        """Begins the W&B run. Raises ConfigError where it cannot: no key, no network."""
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
        return self._run.id

    def _log(self, row: Row, step: int) -> None:
        self._run.log(dict(row), step=step, commit=True)

    def _end(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "finished" else 1)
