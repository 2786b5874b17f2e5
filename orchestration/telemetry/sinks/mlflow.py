"""Writes the metrics to MLflow with its own package, to a tracking server or to files in the run folder.

Where they go is the environment's: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. Without the first, to RUN/mlflow, which
`mlflow ui --backend-store-uri RUN/mlflow` shows.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError
from orchestration.telemetry.sinks.base import Row, RunInfo
from orchestration.telemetry.sinks.tracker_run import TrackerSink, imported
from orchestration.text import one_line

EXPERIMENT = "isentrope"
# MLflow's run states by ours.
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
BATCH = 1000  # metrics, and a tenth of it parameters, that MLflow takes in one call
LONGEST = 500  # characters of a parameter


def mlflow_key(key: str) -> str:
    """Returns a metric's name in MLflow, which refuses some characters: 'pass@4/T=1' is 'pass_at_4/T_1'."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_"))


class MLflowSink(TrackerSink):
    """Logs to MLflow, with the configuration as parameters. Raises ImportError in one sentence when the package is missing."""

    def __init__(self, run_dir: Path) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.10 and later refuse files without it
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a run reports to whom its user names alone
        mlflow: Any = imported("mlflow", "mlflow-skinny")
        entities: Any = imported("mlflow.entities", "mlflow-skinny")
        self._metric, self._param, self._error = entities.Metric, entities.Param, mlflow.MlflowException
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or (run_dir / "mlflow").absolute().as_uri()
        self._client: Any = mlflow.MlflowClient
        super().__init__(run_dir / "mlflow.json")
        self._run_id = ""

    def _begin(self, run: RunInfo, known: str | None) -> str:
        """Begins the MLflow run, or goes on with it. Raises ConfigError where the tracking server or the files cannot be used."""
        try:
            self._client = self._client(self._uri)
            if known is None:
                self._run_id = self._new(run)
            else:
                self._client.update_run(known, status="RUNNING")
                self._run_id = known
        except (self._error, OSError) as error:
            raise ConfigError(f"run.sinks has mlflow, which cannot use {self._uri}: {one_line(error)}") from error
        return self._run_id

    def _new(self, run: RunInfo) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        made = self._client.create_run(experiment, run_name=run.name).info.run_id
        values = [self._param(mlflow_key(key), value[:LONGEST]) for key, value in _flat(run.config)]
        for at in range(0, len(values), BATCH // 10):
            self._client.log_batch(made, params=values[at : at + BATCH // 10])
        return made

    def _log(self, row: Row, step: int) -> None:
        moment = int(1000 * row.get("time/unix", time.time()))
        values = [self._metric(mlflow_key(key), value, moment, step) for key, value in row.items()]
        for at in range(0, len(values), BATCH):
            self._client.log_batch(self._run_id, metrics=values[at : at + BATCH])

    def _end(self, status: str) -> None:
        self._client.set_terminated(self._run_id, STATUS.get(status, "FAILED"))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted key, value as text) of nested settings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", str(value)
