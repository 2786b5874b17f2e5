"""Makes runs of which the right answer is known, for the tests of the diagnosis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from orchestration.analysis.diagnosis import diagnose
from orchestration.analysis.findings import Finding
from orchestration.analysis.run_data import RunData

Column = float | Callable[[int], float]
N = 60


def adapo(**more: Any) -> dict[str, Any]:
    return {"entropy": {"method": {"kind": "adapo"}, "controller": {"kind": "doubling"}}, **more}


def made(columns: Mapping[str, Column], config: Mapping[str, Any] | None = None, n: int = N) -> RunData:
    """Builds a run of `n` iterations; a column is a constant or a function of the iteration. NaN leaves a key out."""
    rows = []
    for i in range(n):
        row = {key: value(i) if callable(value) else value for key, value in columns.items()}
        rows.append({"iteration": float(i)} | {key: value for key, value in row.items() if not math.isnan(value)})
    return RunData("run", rows, [], adapo() if config is None else config, "")


def diagnosed(columns: Mapping[str, Column], config: Mapping[str, Any] | None = None, n: int = N) -> dict[str, Finding]:
    findings = diagnose(made(columns, config, n))
    assert len({f.topic for f in findings}) == len(findings)
    return {f.topic: f for f in findings}


def predicted(r: float, slope: float = 1.0, mean: float = -0.01) -> dict[str, Column]:
    """Returns predicted changes around `mean`, and realised ones with exactly the correlation `r` to them; entropy falls."""
    turn = 2 * math.pi * 7 / (N - 1)  # whole periods: cosine and sine are orthogonal and as large as each other
    other = math.sqrt(1 - r * r)
    return {
        "entropy/exact": lambda i: 1.0 - i / N / 2,
        "entropy/tabular_dh": lambda i: mean + 0.01 * math.cos(turn * i),
        "entropy/realised_dh": lambda i: (
            slope * 0.01 * (r * math.cos(turn * (i - 1)) + other * math.sin(turn * (i - 1)))
        ),
    }
