"""Defines a finding about a run, and the readings and phrases that the checks behind findings share. Pure.

A check (in `entropy_findings.py` and the files beside it) reads a few keys of `telemetry/keys.py` and returns a `Finding`,
or None where the run has no such numbers or they say nothing. Entropies in nats per token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from orchestration.analysis.run_data import RunData
from orchestration.stats import finite, last_third, mean
from orchestration.text import label, percent, with_sign
from orchestration.thresholds import END_ROWS, START_ROWS

Chapter = Literal["entropy", "why", "control", "cost", "trust", "time"]  # in reading order

NAMES = {
    "adapo": "ADAPO",
    "bonus": "the entropy bonus",
    "clip_higher": "clip-higher",
    "entrocraft": "Entrocraft",
    "isentropic": "isentropic control",
    "lower_clip": "the lower clip",
    "repo": "REPO",
    "repo_d": "REPO-D",
    "repo_r": "REPO-R",
    "clip_cov": "Clip-Cov",
    "kl_cov": "KL-Cov",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Holds one thing the numbers say: `topic` is its stable name, `text` a sentence or two with the numbers in them."""

    chapter: Chapter
    topic: str
    text: str
    severity: Literal["note", "warning"] = "note"


Check = Callable[[RunData], Finding | None]


# ---------------------------------------------------------------- reading


def method_name(run: RunData) -> str:
    """Returns the usual name of the run's method of entropy control."""
    kind = run.setting("entropy.method.kind")
    if kind == "repo_d" and run.setting("entropy.method.centred") is not None:
        kind = "repo"  # the name before: the present repo_d has no such key
    return NAMES.get(kind, kind) if isinstance(kind, str) else "the control"


Pairs = tuple[list[float], list[float]]


def step_pairs(run: RunData) -> Pairs:
    """Returns (predicted, realised) changes of entropy of the optimiser's steps, on the same responses."""
    return run.column("entropy/predicted_dh"), run.column("entropy/step_dh")


def fresh_pairs(run: RunData, predicted: str = "entropy/predicted_dh") -> Pairs:
    """Returns (predicted, realised between fresh responses) of the same updates: realised stands one row further down."""
    return run.column(predicted)[:-1], run.column("entropy/realised_dh")[1:]


def attribution_pairs(run: RunData) -> Pairs:
    """Returns the tabular change, which divides the push among tokens, beside what the steps did: by it the division is judged."""
    if run.has("entropy/step_dh"):
        return run.column("entropy/tabular_dh"), run.column("entropy/step_dh")
    return fresh_pairs(run, "entropy/tabular_dh")


def start_and_end(run: RunData, key: str) -> tuple[float, float]:
    """Returns the means of the first 3 and of the last 5 values, as in the summary."""
    values = finite(run.column(key))
    return mean(values[:START_ROWS]), mean(values[-END_ROWS:])


def late_mean(run: RunData, key: str) -> float:
    """Averages a key over the last third of its values."""
    return mean(last_third(finite(run.column(key))))


def totals(run: RunData, *keys: str) -> list[float]:
    """Sums each key over the rows that have all of them; NaN when no row has."""
    rows = [[row.get(key, math.nan) for key in keys] for row in run.rows]
    kept = [values for values in rows if all(map(math.isfinite, values))]
    return [math.fsum(column) for column in zip(*kept, strict=True)] if kept else [math.nan] * len(keys)


# ---------------------------------------------------------------- words


def signed(value: float) -> str:
    """Formats -0.0312 as "−0.031", always with a sign."""
    return with_sign(value, label(float(f"{abs(value):.2g}")))


def moved(start: float, end: float, style: str = ".2f") -> str:
    """Writes "rose from 0.20 to 0.31", or "stayed at 0.20" where both look the same."""
    first, last = format(start, style), format(end, style)
    return f"stayed at {last}" if first == last else f"{'rose' if end > start else 'fell'} from {first} to {last}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def percent_small(share: float) -> str:
    """Formats a share as `percent` does, except that 0.0002 is 0.02 % instead of 0 %."""
    return percent(share) if share >= 5e-4 or share <= 0.0 else f"{share * 100:.1g}\N{NO-BREAK SPACE}%"


def off_by(bias: float, off: float) -> str:
    """Writes a mean and an rms error as "34 % under", or "12 % rms off" where the error has no steady sign."""
    if abs(bias) <= off / 2.0:
        return f"{percent(off)} rms off"
    return f"{percent(abs(bias))} {'under' if bias < 0 else 'over'}"
