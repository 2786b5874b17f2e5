"""Condenses a run into a line of numbers, and writes those as sentences. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestration.analysis.control import released_at, saturated_share, target_errors
from orchestration.analysis.run_data import RunData, load_run, over_envs, pass_curve
from orchestration.stats import finite, last_third, mean, rms
from orchestration.telemetry.typed_keys import DISTINCT
from orchestration.text import percent
from orchestration.thresholds import END_ROWS, FLAT, OFTEN_SATURATED, START_ROWS


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Holds a run in a line of numbers; NaN where the run has no such value. Entropies in nats per token.

    `entropy_start` is the mean exact entropy of the first 3 iterations that have it, `entropy_end` that of the last 5
    (rewards alike); `entropy_change` = end / start - 1. `target_error_last_third` is the mean of |H - target| / target
    over the last third of the iterations under control, `target_rms_last_third` the root mean square of the same
    (`control.target_errors`); `released` is the iteration at which control ended, if it did.
    `pass_at` maps k to the last evaluation's pass@k at the first temperature, averaged over environments; `pass_at_start`
    the first one's.
    """

    name: str
    iterations: int
    entropy_start: float = math.nan
    entropy_end: float = math.nan
    entropy_change: float = math.nan
    target: float = math.nan
    target_error_last_third: float = math.nan
    target_rms_last_third: float = math.nan
    released: float = math.nan
    saturated: float = math.nan  # share of iterations
    reward_start: float = math.nan
    reward_end: float = math.nan
    pass_at_start: Mapping[int, float] = field(default_factory=dict)
    pass_at: Mapping[int, float] = field(default_factory=dict)
    distinct_start: float = math.nan
    distinct: float = math.nan
    seconds: float = math.nan
    tokens: float = math.nan
    not_finite: tuple[str, ...] = ()  # keys that were NaN or infinite at least once

    @property
    def pass_1(self) -> float:
        return self.pass_at.get(1, math.nan)

    @property
    def pass_16(self) -> float:
        return self.pass_at.get(16, math.nan)


def summarise(run: Path) -> RunSummary:
    """Reads and summarises a run folder; errors as `load_run`."""
    return summary_of(load_run(run))


def summary_of(run: RunData) -> RunSummary:
    """Summarises a run in memory."""
    exact, reward = finite(run.column("entropy/exact")), finite(run.column("reward/mean"))
    start, end = mean(exact[:START_ROWS]), mean(exact[-END_ROWS:])
    targets = finite(run.column("entropy/target"))
    late = last_third(finite(target_errors(run)))
    distinct = [v for v in (over_envs(row, DISTINCT) for row in run.rows) if math.isfinite(v)]
    seconds, stamps = finite(run.column("time/iteration")), finite(run.column("time/unix"))
    tokens = finite(run.column("tokens/generated"))
    first, last = _first_and_last_passes(run)
    return RunSummary(
        name=run.name,
        iterations=int(max(row.get("iteration", 0.0) for row in run.rows)),
        entropy_start=start,
        entropy_end=end,
        entropy_change=end / start - 1.0 if start > 0.0 else math.nan,
        target=targets[-1] if targets else math.nan,
        target_error_last_third=mean(abs(error) for error in late),
        target_rms_last_third=rms(late),
        released=released_at(run),
        saturated=saturated_share(run),
        reward_start=mean(reward[:START_ROWS]),
        reward_end=mean(reward[-END_ROWS:]),
        pass_at_start=first,
        pass_at=last,
        distinct_start=distinct[0] if distinct else math.nan,
        distinct=distinct[-1] if distinct else math.nan,
        # Summed rather than last minus first: the hours between a stop and its resumption are not the run's.
        seconds=sum(seconds) if seconds else stamps[-1] - stamps[0] if len(stamps) > 1 else math.nan,
        tokens=sum(tokens) if tokens else math.nan,
        not_finite=tuple(sorted({key for row in run.rows for key, value in row.items() if not math.isfinite(value)})),
    )


def _first_and_last_passes(run: RunData) -> tuple[dict[int, float], dict[int, float]]:
    evals = run.evals()
    aliases = [p for p in evals if p.temperature is None]
    if not aliases:  # an older or foreign run without the alias: the first temperature it names
        aliases = [p for p in evals if p.temperature == evals[0].temperature]
    when = [p.iteration for p in aliases]
    return pass_curve(aliases, min(when, default=0.0)), pass_curve(aliases, max(when, default=0.0))


# ---------------------------------------------------------------- words


def sentences(summary: RunSummary) -> str:
    """Writes what happened in plain language, from the numbers alone; empty text when there are too few of them."""
    s, parts = summary, []
    if math.isfinite(s.entropy_change):
        span = f"from {s.entropy_start:.2f} to {s.entropy_end:.2f} nats per token in {s.iterations} iterations"
        verb = "fell" if s.entropy_change < 0 else "rose"
        flat = f"Exact entropy stayed near {s.entropy_end:.2f} nats per token over {s.iterations} iterations"
        small = abs(s.entropy_change) < FLAT
        parts.append(flat if small else f"Exact entropy {verb} {percent(abs(s.entropy_change))} {span}")
        if math.isfinite(s.target_rms_last_third):
            third = "last third before its release" if math.isfinite(s.released) else "last third"
            parts[-1] += f"; in the {third} it was {percent(s.target_rms_last_third)} rms off its target"
            parts[-1] += f" ({s.target:.2f})"
    if s.saturated > OFTEN_SATURATED:
        parts.append(
            f"The coefficient stood at its bound, with entropy off target, in {percent(s.saturated)} of the iterations"
        )
    moves = []
    if math.isfinite(s.reward_end):
        moves.append(_move("mean reward", s.reward_start, s.reward_end, ".2f"))
    moves += [
        _move(f"pass@{k}", s.pass_at_start[k], s.pass_at[k], ".2f")
        for k in ([1, *[k for k in s.pass_at if k > 1][-1:]] if s.pass_at != s.pass_at_start else [])
        if k in s.pass_at and k in s.pass_at_start
    ]
    if math.isfinite(s.distinct) and s.distinct != s.distinct_start:
        moves.append(_move("the number of distinct correct solutions a prompt", s.distinct_start, s.distinct, ".1f"))
    if moves:
        parts.append(", ".join(moves))
    if s.not_finite:
        parts.append(f"Not finite at least once: {', '.join(s.not_finite)}")
    return " ".join(text[0].upper() + text[1:] + "." for text in parts)


def _move(what: str, start: float, end: float, style: str) -> str:
    first, last = format(start, style), format(end, style)
    return f"{what} stayed at {last}" if first == last else f"{what} went from {first} to {last}"


def comparison(summaries: Sequence[RunSummary]) -> str:
    """Names the leading run of each measure, for two runs or more; empty text when nothing can be compared."""
    widest = max((k for s in summaries for k in s.pass_at), default=1)
    races = [("pass@1", [s.pass_1 for s in summaries], ".2f")]
    if widest > 1:
        races.append((f"pass@{widest}", [s.pass_at.get(widest, math.nan) for s in summaries], ".2f"))
    races.append(("distinct correct solutions", [s.distinct for s in summaries], ".1f"))
    leads = []
    for what, values, style in races:
        if len(finite(values)) < 2:
            continue
        best = max(finite(values))
        winners = [s.name for s, v in zip(summaries, values, strict=True) if format(v, style) == format(best, style)]
        tie = len(winners) == len(summaries)
        leads.append(f"{what}: {'a tie' if tie else ' and '.join(winners)} ({best:{style}})")
    return "Highest " + "; ".join(leads) + "." if leads else ""


def widest_k(summaries: Sequence[RunSummary]) -> int:
    """Returns the largest k that every run with an evaluation has: 16 beside 64 would compare nothing."""
    sets = [set(s.pass_at) for s in summaries if s.pass_at]
    return max(set.intersection(*sets), default=16) if sets else 16
