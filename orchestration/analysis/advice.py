"""Says in one sentence which control this run's numbers ask for, as docs/choosing.md does by kind of task. Pure."""

from __future__ import annotations

import math

from orchestration.analysis.control import steered
from orchestration.analysis.findings import Check, Finding, moved
from orchestration.analysis.run_data import RunData
from orchestration.analysis.run_summary import RunSummary, summary_of
from orchestration.text import percent
from orchestration.thresholds import COLLAPSED, EVAL_NOISE, SEVERAL_SOLUTIONS

HOLD = "entropy={}"  # a section without a method: REPO, isentropic, 0.7 of the start


def choice(run: RunData) -> Finding | None:
    """Advises on control that the run did not have, or had without use; None where its numbers ask for nothing."""
    s = summary_of(run)
    text = _of_steered(run, s) if steered(run) else _of_free(run, s)
    return Finding("cost", "choice", f"{text} See docs/choosing.md.") if text else None


def _of_free(run: RunData, s: RunSummary) -> str:
    fell = s.entropy_change < -COLLAPSED
    lost = {k: s.pass_at_start[k] - s.pass_at[k] for k in s.pass_at if k in s.pass_at_start}
    k = max(lost, default=1)
    if fell and lost.get(1, 0.0) > EVAL_NOISE and s.reward_end > s.reward_start:
        return (
            f"Reward {moved(s.reward_start, s.reward_end)} while held-out pass@1 {moved(s.pass_at_start[1], s.pass_at[1])} and "
            f"entropy fell {percent(-s.entropy_change)}: the policy settled on what pays without being right. Hold it ({HOLD})."
        )
    if lost.get(k, 0.0) <= EVAL_NOISE or k == 1:
        return ""
    where = f"pass@{k} {moved(s.pass_at_start[k], s.pass_at[k])}"
    if run.has("diversity/coefficient"):
        return ""
    if s.distinct_start >= SEVERAL_SOLUTIONS:
        return (
            f"{where[0].upper()}{where[1:]} where a prompt had {s.distinct_start:.1f} distinct correct solutions: "
            "solution diversity (diversity={}) keeps more of them."
        )
    if fell:
        return (
            f"{where[0].upper()}{where[1:]} and entropy fell {percent(-s.entropy_change)}: if another task follows, hold entropy "
            f"({HOLD}); for this task alone it may cost pass@1."
        )
    return ""


def _of_steered(run: RunData, s: RunSummary) -> str:
    """Looks for entropy that is held where nothing is to be had from it: one solution a task, and no other task to come."""
    if not (math.isfinite(s.distinct_start) and 0 < s.distinct_start < SEVERAL_SOLUTIONS) or run.has("stage/index"):
        return ""
    if 1 not in s.pass_at or s.pass_at[1] >= 1 - EVAL_NOISE:
        return ""
    return (
        f"Entropy is held and a prompt has {s.distinct_start:.1f} distinct correct solutions: with one right answer a held policy "
        "goes on sampling wrong ones. Without control (entropy.method={kind: none}) pass@1 may be higher."
    )


CHECKS: tuple[Check, ...] = (choice,)
