"""Finds where a run's time went, and what to add to make it shorter: the last chapter of the diagnosis. Pure."""

from __future__ import annotations

import math

from orchestration.analysis.findings import Check, Finding
from orchestration.analysis.run_data import RunData
from orchestration.telemetry.sinks.base import Row
from orchestration.text import duration, percent
from orchestration.thresholds import CLEARLY_LONGER, LONG_TRANSFER, LONG_WAIT


def bottleneck(run: RunData) -> Finding | None:
    """Says how much of the time learner and generators waited, and what would change that most."""
    rows = [row for row in run.rows if math.isfinite(row.get("time/iteration", math.nan)) and "time/train" in row]
    total = math.fsum(row["time/iteration"] for row in rows)
    if not total > 0.0:
        return None
    parts = {name: math.fsum(row.get(f"time/{name}", 0.0) for row in rows) for name in ("generate", "verify", "sync")}
    learner = math.fsum(_learner_waits(row) for row in rows) / total
    generators = math.fsum(_generators_wait(row) for row in rows) / total
    sending = parts["sync"] / total
    text = f"In {duration(total)} of iterations the learner waited {percent(learner)} of the time, the generators "
    text += f"{percent(generators)}; sending weights took {percent(sending)}: "
    in_turn = not run.has("time/learner_waits")
    if run.has("time/turns") and parts["verify"] <= parts["generate"]:
        return Finding("time", "bottleneck", text + _colocated(rows, total))
    if sending > LONG_TRANSFER:
        text += "the transfer is the bottleneck. Sample more responses between two transfers (batch.prompts)."
    elif learner > generators + CLEARLY_LONGER:
        slow, key = ("verifiers", "verifiers") if parts["verify"] > parts["generate"] else ("generators", "generators")
        text += f"the {slow} are the bottleneck. Add {slow} ({key}.count)."
    elif generators > learner + CLEARLY_LONGER:
        text += "the learner is the bottleneck. Add learner ranks (learner.ranks)."
    elif in_turn and min(learner, generators) > LONG_WAIT:
        text += "the two take turns and neither is much slower. More of both makes it faster."
    else:
        text += "the two are balanced."
    return Finding("time", "bottleneck", text)


def _colocated(rows: list[Row], total: float) -> str:
    """Says what would shorten a run whose learner and generators have the same GPUs in turn: there cannot be more of one alone."""
    changes = math.fsum(row.get("time/turns", 0.0) for row in rows) / total
    text = f"they have the same GPUs in turn, and changes of turn took {percent(changes)}. "
    if changes > LONG_TRANSFER:
        return text + "Sample more responses between two of them (batch.prompts)."
    return text + "More GPUs for both make it faster (learner.ranks and generators.count)."


def _learner_waits(row: Row) -> float:
    """Returns the seconds that the trainer waited for groups: where it takes turns with the generators, all that is not its own."""
    own = row["time/train"] + row.get("time/sync", 0.0)
    return row.get("time/learner_waits", max(0.0, row["time/iteration"] - own))


def _generators_wait(row: Row) -> float:
    """Returns the seconds that generators had nothing to do."""
    own = row.get("time/generate", 0.0) + row.get("time/sync", 0.0)
    return row.get("time/generators_wait", max(0.0, row["time/iteration"] - own))


CHECKS: tuple[Check, ...] = (bottleneck,)
