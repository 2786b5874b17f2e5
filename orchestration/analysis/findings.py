"""What a finding about a run is, and the readings of a run that the checks behind findings share. Pure.

A check (`checks_entropy.py`, `checks_control.py`, `checks_outcome.py`) reads a few keys of `metrics.py` and returns a
`Finding`, or None where the run has no such numbers or they have nothing to say. Entropies in nats per token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from orchestration.analysis.run_data import END_ROWS, START_ROWS, RunData, target_errors
from orchestration.stats import finite, mean, rms
from orchestration.text import label, percent

Chapter = Literal["entropy", "why", "control", "cost", "trust"]  # in reading order

OFF_TARGET = 0.10  # relative rms: a controller that works stays within 6 to 7.5 %, the batch noise alone is about 5 %
NAMES = {
    "adapo": "ADAPO",
    "bonus": "the entropy bonus",
    "clip_higher": "clip-higher",
    "isentropic": "isentropic control",
    "repo": "REPO",
    "repo_d": "REPO-D",
    "repo_r": "REPO-R",
    "clip_cov": "Clip-Cov",
    "kl_cov": "KL-Cov",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the numbers say: `topic` is its stable name, `text` a sentence or two with the numbers in them."""

    chapter: Chapter
    topic: str
    text: str
    severity: Literal["note", "warning"] = "note"


Check = Callable[[RunData], Finding | None]


# ---------------------------------------------------------------- reading


def setting(run: RunData, path: str) -> Any:
    """A value of the run's configuration by dotted path; None where there is none."""
    here: Any = run.config
    for part in path.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    return here


def method_name(run: RunData) -> str:
    """The method of entropy control as people call it."""
    kind = setting(run, "entropy.method.kind")
    return NAMES.get(kind, kind) if isinstance(kind, str) else "the control"


def steered(run: RunData) -> bool:
    """A controller moves the coefficient. Runs without one report a target too: there it is a line for reference, not an aim."""
    if setting(run, "entropy.method.kind") == "none" or setting(run, "entropy.controller.kind") == "fixed":
        return False
    bounds = zip(run.column("entropy/coefficient_low"), run.column("entropy/coefficient_high"), strict=True)
    return any(low < high for low, high in bounds)


def change_pairs(run: RunData) -> tuple[list[float], list[float]]:
    """(predicted, realised) change of entropy of the same updates: realised stands one row further down."""
    return run.column("entropy/predicted_dh")[:-1], run.column("entropy/realised_dh")[1:]


def start_and_end(run: RunData, key: str) -> tuple[float, float]:
    """Means of the first 3 and of the last 5 values, as in the summary."""
    values = finite(run.column(key))
    return mean(values[:START_ROWS]), mean(values[-END_ROWS:])


def late_mean(run: RunData, key: str) -> float:
    """Mean over the last third of the values."""
    values = finite(run.column(key))
    return mean(values[len(values) * 2 // 3 :])


def late_error(run: RunData) -> tuple[float, float]:
    """(mean, rms) of (H - target) / target over the last third of the iterations under control."""
    errors = finite(target_errors(run))
    late = errors[len(errors) * 2 // 3 :]
    return mean(late), rms(late)


def totals(run: RunData, *keys: str) -> list[float]:
    """The sum of each key over the rows that have all of them; NaN when no row has."""
    rows = [[row.get(key, math.nan) for key in keys] for row in run.rows]
    kept = [values for values in rows if all(map(math.isfinite, values))]
    return [math.fsum(column) for column in zip(*kept, strict=True)] if kept else [math.nan] * len(keys)


# ---------------------------------------------------------------- words


def signed(value: float) -> str:
    """-0.0312 as "−0.031", with a sign always."""
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else ""
    return sign + label(float(f"{abs(value):.2g}"))


def moved(start: float, end: float, style: str = ".2f") -> str:
    first, last = format(start, style), format(end, style)
    return f"stayed at {last}" if first == last else f"{'rose' if end > start else 'fell'} from {first} to {last}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def percent_small(share: float) -> str:
    """As `percent`, and 0.0002 is 0.02 %, not 0 %."""
    return percent(share) if share >= 5e-4 or share <= 0.0 else f"{share * 100:.1g}\N{NO-BREAK SPACE}%"


def off_by(bias: float, off: float) -> str:
    """A mean and an rms error in words: "34 % under", or "12 % rms off" where the error has no steady sign."""
    if abs(bias) <= off / 2.0:
        return f"{percent(off)} rms off"
    return f"{percent(abs(bias))} {'under' if bias < 0 else 'over'}"
