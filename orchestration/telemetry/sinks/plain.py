"""Prints one readable line an iteration, for logs and pipes."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from orchestration.telemetry.sinks.base import Row, RunInfo, Sample
from orchestration.telemetry.typed_keys import short_evals


class PlainSink:
    """Prints one line an iteration, without cursor movement and colour."""

    # (label, key, format); an absent or non-finite value is left out, except that NaN is shown: it is news.
    COLUMNS = (
        ("reward", "reward/mean", ".3f"),
        ("H", "entropy/exact", ".3f"),
        ("target", "entropy/target", ".3f"),
        ("coefficient", "entropy/coefficient", ".3g"),
        ("loss", "loss", ".3g"),
        ("grad", "grad_norm", ".2f"),
        ("tok/s", "tokens/per_second", ",.0f"),
        ("s", "time/iteration", ".1f"),
    )

    def __init__(self, out: IO[str] | None = None) -> None:
        self.out = out or sys.stdout
        self.run = RunInfo("run", Path(), 0)

    def start(self, run: RunInfo) -> None:
        self.run = run
        resumed = "" if run.resumed_at is None else f", resumed after {run.resumed_at}"
        self._say(f"{run.name}: {run.iterations} iterations{resumed}, into {run.run_dir}")

    def progress(self, phase: str, done: float, total: float) -> None:
        pass

    def iteration(self, row: Row) -> None:
        width = len(str(self.run.iterations))
        parts = [f"{row.get('iteration', math.nan):{width}.0f}/{self.run.iterations}"]
        parts += [f"{label} {row[key]:{style}}" for label, key, style in self.COLUMNS if key in row]
        if row.get("entropy/saturated", 0.0) > 0.0:
            parts.append("COEFFICIENT AT ITS BOUND")
        # The alias at the first temperature is enough for a line; the file holds the rest.
        parts += [f"{name} {value:.3f}" for name, value in short_evals(row).items()]
        self._say("  ".join(parts))

    def sample(self, rows: Sequence[Sample]) -> None:
        pass

    def event(self, text: str) -> None:
        self._say(f"- {text}")

    def close(self, status: str) -> None:
        self._say(f"{self.run.name}: {status}")

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)
