"""Builds the sinks of a run from their names."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestration.telemetry.sinks.base import FanOut, Sink
from orchestration.telemetry.sinks.jsonl import JsonlSink
from orchestration.telemetry.sinks.mlflow import MLflowSink
from orchestration.telemetry.sinks.plain import PlainSink
from orchestration.telemetry.sinks.prometheus import PrometheusSink
from orchestration.telemetry.sinks.status import StatusSink
from orchestration.telemetry.sinks.tensorboard import TensorboardSink
from orchestration.telemetry.sinks.wandb import WandbSink


def _console(run_dir: Path, is_terminal: bool) -> Sink:
    if not is_terminal:
        return PlainSink()
    from orchestration.telemetry.sinks.live import LiveSink  # here, so that a run without a terminal never imports rich

    return LiveSink()


SINKS: dict[str, Callable[[Path, bool], Sink]] = {
    "jsonl": lambda run_dir, is_terminal: JsonlSink(run_dir),
    "console": _console,
    "tensorboard": lambda run_dir, is_terminal: TensorboardSink(run_dir),
    "prometheus": lambda run_dir, is_terminal: PrometheusSink(),
    "wandb": lambda run_dir, is_terminal: WandbSink(run_dir),
    "mlflow": lambda run_dir, is_terminal: MLflowSink(run_dir),
}


def build_sinks(names: Sequence[str], run_dir: Path, is_terminal: bool) -> FanOut:
    """Builds the sinks of a run by name (`SINKS`), and its status; "console" is a plain log without a terminal.

    Raises ValueError naming the nearest sink for an unknown name, and ImportError in one sentence for a sink whose
    package is missing.
    """
    for name in names:
        if name not in SINKS:
            near = difflib.get_close_matches(name, SINKS, n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"Unknown sink '{name}'.{hint} There are {', '.join(SINKS)}.")
    # The status first: its lines are there whatever another sink raises.
    return FanOut([StatusSink(run_dir), *(SINKS[name](run_dir, is_terminal) for name in dict.fromkeys(names))])


def status_of(sinks: FanOut) -> StatusSink:
    """Returns the run's status among its sinks."""
    return next(sink for sink in sinks.sinks if isinstance(sink, StatusSink))
