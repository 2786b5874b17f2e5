"""Finds what the run cost or kept, and whether its numbers can be trusted: two chapters of the diagnosis. Pure."""

import math
from statistics import fmean

from learner.settings import BATCH_BASELINES
from orchestration.analysis.findings import (
    Check,
    Finding,
    capital,
    late_mean,
    moved,
    percent_small,
    signed,
    start_and_end,
)
from orchestration.analysis.run_data import RunData
from orchestration.analysis.run_summary import summary_of
from orchestration.stats import finite, longest
from orchestration.telemetry.typed_keys import QuantileKey
from orchestration.text import label, percent
from orchestration.thresholds import (
    END_ROWS,
    EVAL_NOISE,
    LIMITED,
    LOW_ESS,
    NO_SIGNAL,
    PATIENCE,
    PHANTOM,
    PHANTOM_GAP,
    PHANTOM_RARE,
    START_ROWS,
)

# ---------------------------------------------------------------- what it cost or kept


def reward(run: RunData) -> Finding | None:
    start, end = start_and_end(run, "reward/mean")
    return Finding("cost", "reward", f"Mean reward {moved(start, end)}.") if math.isfinite(end) else None


def gamed(run: RunData) -> Finding | None:
    """Warns of a reward that rose without what it stands for, for as many iterations as the alarm of a run waits."""
    first, last = longest(run.column("drift/hacking"))
    if last - first + 1 < PATIENCE:
        return None
    row = run.rows[last]
    text = f"From iteration {run.rows[first]['iteration']:g} to {row['iteration']:g} the reward stood up to "
    text += f"{label(max(finite(run.column('drift/reward')[first : last + 1])))} above its start while the environment's own "
    text += f"verdict had changed by {signed(row['drift/check'])}"
    if "drift/held_out" in row:
        text += f" and held-out pass@1 by {signed(row['drift/held_out'])}"
    return Finding("cost", "gamed", f"{text}: the reward may be gamed.", "warning")


def longer(run: RunData) -> Finding | None:
    first, last = longest(run.column("drift/longer"))
    if last - first + 1 < PATIENCE:
        return None
    change = run.rows[last]["drift/length"]
    way = "longer" if change > 0 else "shorter"
    text = f"Responses were {percent(abs(change))} {way} than at the start by iteration {run.rows[last]['iteration']:g} while the "
    return Finding("cost", "longer", f"{text}reward rose: they may be better, or only {way}.", "warning")


def coverage(run: RunData) -> Finding | None:
    s = summary_of(run)
    ks = [k for k in s.pass_at if k in s.pass_at_start]
    if not ks or s.pass_at == s.pass_at_start:
        return None
    k = max(ks)
    text = ", ".join(f"pass@{n} {moved(s.pass_at_start[n], s.pass_at[n])}" for n in sorted({min(ks), k}))
    gained, lost = s.pass_at[1] - s.pass_at_start[1] if 1 in ks else 0.0, s.pass_at_start[k] - s.pass_at[k]
    if k > 1 and lost > EVAL_NOISE:
        sharper = "sharpened what it could do and lost" if gained > EVAL_NOISE else "lost"
        return Finding("cost", "coverage_lost", f"{text}: the policy {sharper} coverage.", "warning")
    return Finding("cost", "coverage", f"{text}.")


def distinct(run: RunData) -> Finding | None:
    s = summary_of(run)
    parts = []
    if math.isfinite(s.distinct) and s.distinct != s.distinct_start:
        parts.append(
            f"distinct correct solutions a prompt, in evaluation, {moved(s.distinct_start, s.distinct, '.1f')}"
        )
    for key, what in (
        ("responses/distinct_correct", "distinct correct responses"),
        ("responses/distinct", "distinct responses"),
    ):
        start, end = start_and_end(run, key)
        if math.isfinite(end):
            parts.append(f"{what} a prompt, in training, {moved(start, end, '.1f')}")
    return Finding("cost", "distinct", capital("; ".join(parts)) + ".") if parts else None


def no_signal(run: RunData) -> Finding | None:
    prompts, key = run.setting("batch.prompts"), "groups/no_signal"
    if run.setting("objective.advantage") in BATCH_BASELINES:
        return None  # they learn from groups of equal rewards too
    if not isinstance(prompts, int) or prompts < 1 or run.setting("objective.credit.kind") == "turn":
        return None  # the metric looks at verdicts alone, and turn-level advantages may differ where they are equal
    # Refill generates more groups than a batch has.
    shares = finite([row[key] / row.get("dynamic/generated", prompts) for row in run.rows if key in row])
    if not shares:
        return None
    start, end = fmean(shares[:START_ROWS]), fmean(shares[-END_ROWS:])
    if not end > 0.0:
        return None
    text = f"At the end {percent(end)} of groups carried no signal (all rewards equal), at the start {percent(start)}"
    if end > NO_SIGNAL:
        return Finding("cost", "no_signal", f"{text}: most of what was generated taught nothing.", "warning")
    return Finding("cost", "some_signal", f"{text}.")


# ---------------------------------------------------------------- can the numbers be trusted


def engine_gap(run: RunData) -> Finding | None:
    """Warns of phantom clipping: tokens whose ratio leaves the clip range before the policy has moved."""
    outside, rare = late_mean(run, "gap/outside"), late_mean(run, "gap/outside_rare")
    tail, gap = _tail(run)
    shares = [
        f"{percent_small(v)} of {who}" for v, who in ((outside, "tokens"), (rare, "rare tokens")) if math.isfinite(v)
    ]
    parts = [f"the ratio of trainer to engine leaves [0.9, 1.1] for {' and '.join(shares)}"] if shares else []
    if math.isfinite(gap):
        parts.append(f"{tail:g}\N{NO-BREAK SPACE}% of log-probs differ by less than {label(float(f'{gap:.2g}'))} nats")
    if not parts:
        return None
    text = f"{capital('; '.join(parts))}."
    if not (outside > PHANTOM or rare > PHANTOM_RARE or (tail >= 99.0 and gap > PHANTOM_GAP)):
        return Finding("trust", "engines_agree", text)
    text += " Such tokens can be clipped or reweighted although the policy has not moved: phantom clipping."
    mode = run.setting("precision.mode")
    used = f" Trainer and engine run in {mode}." if mode else ""
    return Finding("trust", "phantom_clipping", text + used, "warning")


def _tail(run: RunData) -> tuple[float, float]:
    """Returns (percent, nats) of the highest quantile of the engine gap that is reported; (0, NaN) without any."""
    keys = [QuantileKey.parse(key) for key in run.metric_keys()]
    highest = max((key.percent for key in keys if key is not None and key.distribution == "gap"), default=math.nan)
    gap = late_mean(run, str(QuantileKey("gap", highest)))
    return (highest, gap) if math.isfinite(gap) else (0.0, math.nan)


def sample_size(run: RunData) -> Finding | None:
    late, lowest = late_mean(run, "ratio/ess"), min(finite(run.column("ratio/ess")), default=math.nan)
    if not math.isfinite(late):
        return None
    text = f"The ratios of new to old probability leave an effective sample size of {percent(late)} of the tokens in the last "
    text += f"third, {percent(lowest)} at the lowest"
    if late < LOW_ESS:
        return Finding("trust", "low_ess", f"{text}: a few tokens carry the update.", "warning")
    return Finding("trust", "ess", f"{text}.")


def limited(run: RunData) -> Finding | None:
    share = late_mean(run, "importance/limited")
    if not share > 0.0:
        return None
    text = f"The weight that corrects for the engine was cut for {percent_small(share)} of tokens"
    if share > LIMITED:
        return Finding("trust", "limited", f"{text}: the correction is biased there.", "warning")
    return Finding("trust", "somewhat_limited", f"{text}.")


def skipped(run: RunData) -> Finding | None:
    steps = math.fsum(finite(run.column("steps/skipped")))
    if not steps:
        return None
    return Finding("trust", "skipped", f"{steps:g} optimiser steps were skipped because an fp16 gradient overflowed.")


def not_finite(run: RunData) -> Finding | None:
    keys = summary_of(run).not_finite
    return Finding("trust", "not_finite", f"Not finite at least once: {', '.join(keys)}.", "warning") if keys else None


CHECKS: tuple[Check, ...] = (
    reward,
    gamed,
    longer,
    coverage,
    distinct,
    no_signal,
    engine_gap,
    sample_size,
    limited,
    skipped,
    not_finite,
)
