"""Says in one sentence what a lab of two arms found: where one is ahead, where it is behind, and where the seeds cannot tell."""

from __future__ import annotations

import math

from orchestration.analysis.retention import MatrixKey, StageKey
from orchestration.lab.compare import Difference, difference
from orchestration.lab.results import ArmResult, LabResults
from orchestration.text import listed


def headline(results: LabResults) -> str:
    """Compares the second arm with the first, in the reward of every stage and in pass@k after it; empty unless there are two arms.

    Brackets hold both means, and the mean of their differences with the half of its 95 % interval over seeds.
    """
    arms = [arm for arm in results.arms if arm.finished]
    if len(results.arms) != 2 or len(arms) != 2:
        return ""
    base, other = arms
    ahead, behind, unclear = [], [], []
    for metric, what in _metrics(results).items():
        gap = difference(other, base, metric)
        if not math.isfinite(gap.mean):
            continue
        text = f"{what} ({_numbers(other, base, metric, gap)})"
        (unclear if not gap.clear else ahead if gap.mean > 0 else behind).append(text)
    parts = [
        f"ahead in {listed(ahead)}" if ahead else "",
        f"behind in {listed(behind)}" if behind else "",
        f"not told apart in {listed(unclear)}" if unclear else "",
    ]
    found = "; ".join(filter(None, parts))
    seeds = min(len(arm.finished) for arm in arms)
    return f"{other.name} against {base.name}, {seeds} seed{'s' * (seeds != 1)}: {found}." if found else ""


def _metrics(results: LabResults) -> dict[str, str]:
    """Lists what is compared, the last stage first: it is what the others were for."""
    names = dict.fromkeys(metric for arm in results.arms for metric in arm.metrics)
    parsed = [StageKey.parse(name) for name in names]
    stages = sorted({key.stage for key in parsed if key is not None and key.metric == "area/reward"}, reverse=True)
    out = {str(StageKey("area/reward", stage)): f"the mean reward of {results.stage(stage)}" for stage in stages}
    # What a policy can still do of the last environment after the stages before it.
    cells = [key for name in names if (key := MatrixKey.parse(name)) is not None and key.stage is not None]
    last = cells[-1].env if cells else ""
    for key in cells:
        if key.env == last and key.k in results.ks and key.stage != max(stages, default=0):
            out[str(key)] = f"pass@{key.k} in {last} after {results.stage(key.stage or 0)}"
    for k in results.ks:
        out[f"pass@{k}/best"] = f"pass@{k} at each one's best temperature" + (" at the end" if stages else "")
    return out


def _numbers(other: ArmResult, base: ArmResult, metric: str, gap: Difference) -> str:
    means = f"{other.spread(metric).mean:.3f} against {base.spread(metric).mean:.3f}"
    width = gap.half_interval
    return f"{means}, {gap.mean:+.3f}" + (f" ± {width:.3f}" if math.isfinite(width) else "")
