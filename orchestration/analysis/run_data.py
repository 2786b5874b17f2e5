"""A run folder in memory, its summary in numbers, and the summary in words and tables.

Reads config.yaml, metrics.jsonl and samples.jsonl; whatever is missing is left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestration.stats import finite, mean, rms
from orchestration.telemetry.keys import DISTINCT, EnvKey, EvalKey, environment_of
from orchestration.telemetry.sinks import Row, Sample, read_rows, read_samples
from orchestration.text import duration, label, number, one_line, percent

if TYPE_CHECKING:
    from rich.table import Table

START_ROWS, END_ROWS = 3, 5  # a single batch is noisy: start and end are means over these many iterations


class EvalPoint(NamedTuple):
    """One pass@k. `temperature` is None for the alias at the first temperature."""

    iteration: float
    env: str
    k: int
    temperature: float | None
    value: float


@dataclass(frozen=True, slots=True)
class RunData:
    """A run folder in memory."""

    name: str
    rows: list[Row]
    samples: list[Sample]
    config: Mapping[str, Any]
    config_text: str

    def column(self, key: str) -> list[float]:
        """The values of a key, one a row, NaN where a row has none."""
        return [row.get(key, math.nan) for row in self.rows]

    def has(self, *keys: str) -> bool:
        return any(math.isfinite(row.get(key, math.nan)) for row in self.rows for key in keys)

    def metric_keys(self) -> list[str]:
        """Returns every key that any row has, in the order of first mention."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def envs(self) -> list[str]:
        """Every environment that a key of any row names, in the order of first mention."""
        return list(dict.fromkeys(env for env in map(environment_of, self.metric_keys()) if env is not None))

    def evals(self) -> list[EvalPoint]:
        """Every finite pass@k of the run."""
        points = []
        for row in self.rows:
            for key, value in row.items():
                at = EvalKey.parse(key) if math.isfinite(value) else None
                if at is not None:
                    points.append(EvalPoint(row.get("iteration", 0.0), at.env, at.k, at.temperature, value))
        return points

    def only(self, env: str) -> "RunData":
        """The run as if it were about one environment: its reward and entropy under the plain names, its evaluations."""
        names = {"iteration": "iteration"}  # of this run -> of the run that is returned
        names |= {str(EnvKey("reward/{env}", env)): "reward/mean", str(EnvKey("entropy/{env}", env)): "entropy/exact"}
        names |= {key: key for key in self.metric_keys() if _is_eval_of(key, env)}
        rows = [{names[key]: value for key, value in row.items() if key in names} for row in self.rows]
        return replace(self, rows=rows)


def _is_eval_of(key: str, env: str) -> bool:
    found = EvalKey.parse(key)
    return found.env == env if found is not None else EnvKey.parse(key) == EnvKey(DISTINCT, env)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in a line of numbers; NaN where the run has no such value. Entropies in nats per token.

    `entropy_start` is the mean exact entropy of the first 3 iterations that have it, `entropy_end` that of the last 5
    (rewards alike); `entropy_change` = end / start - 1. `target_error_last_third` is the mean of |H - target| / target
    over the last third of the iterations under control, `target_rms_last_third` the root mean square of the same, with H
    the entropy the controller observes (`target_errors`); `released` is the iteration at which control ended, if it did.
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


# ---------------------------------------------------------------- reading


def load_run(run: Path) -> RunData:
    """Read a run folder. Raises ValueError in a sentence when it has no iteration or a broken file."""
    rows = read_rows(run)
    if not rows:
        what = "holds no finished iteration" if run.is_dir() else "is not a folder"
        raise ValueError(f"There is nothing to report: the run '{run}' {what} (metrics.jsonl is missing or empty).")
    path = run / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return RunData(run.resolve().name, rows, read_samples(run), _parse_config(text, path), text)


def _parse_config(text: str, path: Path) -> Mapping[str, Any]:
    import yaml  # here: only reports read YAML, and the module is imported by every command

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({one_line(error)}).") from error
    return config if isinstance(config, dict) else {}


def summarise(run: Path) -> RunSummary:
    """The summary of a run folder; errors as `load_run`."""
    return summary_of(load_run(run))


def summary_of(run: RunData) -> RunSummary:
    exact, reward = finite(run.column("entropy/exact")), finite(run.column("reward/mean"))
    start, end = mean(exact[:START_ROWS]), mean(exact[-END_ROWS:])
    targets = finite(run.column("entropy/target"))
    errors = finite(target_errors(run))
    late = errors[len(errors) * 2 // 3 :]
    saturated = finite(run.column("entropy/saturated"))
    distinct = [v for v in (over_envs(row, DISTINCT) for row in run.rows) if math.isfinite(v)]
    spent, stamps = finite(run.column("time/iteration")), finite(run.column("time/unix"))
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
        saturated=mean(float(value > 0.0) for value in saturated),
        reward_start=mean(reward[:START_ROWS]),
        reward_end=mean(reward[-END_ROWS:]),
        pass_at_start=first,
        pass_at=last,
        distinct_start=distinct[0] if distinct else math.nan,
        distinct=distinct[-1] if distinct else math.nan,
        # Summed rather than last minus first: the hours between a stop and its resumption are not the run's.
        seconds=sum(spent) if spent else stamps[-1] - stamps[0] if len(stamps) > 1 else math.nan,
        tokens=sum(tokens) if tokens else math.nan,
        not_finite=tuple(sorted({key for row in run.rows for key, value in row.items() if not math.isfinite(value)})),
    )


def target_errors(run: RunData) -> list[float]:
    """(H - target) / target, one a row; H is the entropy the controller observes, in runs without that the exact one.

    NaN where a row has no target, and once the controller has released the coefficient: what follows is not an error.
    """
    names = ("entropy/controlled", "entropy/exact", "entropy/target", "entropy/released")
    return [
        ((seen if math.isfinite(seen) else exact) - target) / target if target and not released > 0.0 else math.nan
        for seen, exact, target, released in zip(*map(run.column, names), strict=True)
    ]


def released_at(run: RunData) -> float:
    """The first iteration with the coefficient released; NaN if it never was."""
    return next(
        (row.get("iteration", math.nan) for row in run.rows if row.get("entropy/released", 0.0) > 0.0), math.nan
    )


def over_envs(row: Row, family: str) -> float:
    """Averages a family of metrics, such as `keys.DISTINCT`, over the environments of a row."""
    found = [(EnvKey.parse(key), value) for key, value in row.items()]
    return mean(value for key, value in found if key is not None and key.family == family)


def _first_and_last_passes(run: RunData) -> tuple[dict[int, float], dict[int, float]]:
    evals = run.evals()
    aliases = [p for p in evals if p.temperature is None]
    if not aliases:  # an older or foreign run without the alias: the first temperature it names
        aliases = [p for p in evals if p.temperature == evals[0].temperature]
    when = [p.iteration for p in aliases]
    return pass_curve(aliases, min(when, default=0.0)), pass_curve(aliases, max(when, default=0.0))


def pass_curve(points: Sequence[EvalPoint], iteration: float) -> dict[int, float]:
    """k -> pass@k at one iteration, averaged over the environments among the points."""
    here = [p for p in points if p.iteration == iteration]
    return {k: mean(p.value for p in here if p.k == k) for k in sorted({p.k for p in here})}


# ---------------------------------------------------------------- words and tables


def sentences(summary: RunSummary) -> str:
    """What happened, in plain language, from the numbers alone; empty text when there are too few of them."""
    s, said = summary, []
    if math.isfinite(s.entropy_change):
        span = f"from {s.entropy_start:.2f} to {s.entropy_end:.2f} nats per token in {s.iterations} iterations"
        verb = "fell" if s.entropy_change < 0 else "rose"
        flat = f"Exact entropy stayed near {s.entropy_end:.2f} nats per token over {s.iterations} iterations"
        small = abs(s.entropy_change) < 0.02
        said.append(flat if small else f"Exact entropy {verb} {percent(abs(s.entropy_change))} {span}")
        if math.isfinite(s.target_rms_last_third):
            third = "last third before its release" if math.isfinite(s.released) else "last third"
            said[-1] += f"; in the {third} it was {percent(s.target_rms_last_third)} rms off its target"
            said[-1] += f" ({s.target:.2f})"
    if s.saturated > 0.05:
        said.append(
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
        said.append(", ".join(moves))
    if s.not_finite:
        said.append(f"Not finite at least once: {', '.join(s.not_finite)}")
    return " ".join(text[0].upper() + text[1:] + "." for text in said)


def _move(what: str, start: float, end: float, style: str) -> str:
    first, last = format(start, style), format(end, style)
    return f"{what} stayed at {last}" if first == last else f"{what} went from {first} to {last}"


def comparison(summaries: Sequence[RunSummary]) -> str:
    """Which run leads in what, for two runs or more; empty text when nothing can be compared."""
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


COLUMNS: list[tuple[str, Any]] = [
    ("entropy start", lambda s, k: number(s.entropy_start, ".3f")),
    ("end", lambda s, k: number(s.entropy_end, ".3f")),
    ("change", lambda s, k: percent(s.entropy_change, sign=True)),
    ("target", lambda s, k: number(s.target, ".3f")),
    ("rms off target", lambda s, k: percent(s.target_rms_last_third)),
    ("reward", lambda s, k: f"{number(s.reward_start, '.3f')} → {number(s.reward_end, '.3f')}"),
    ("pass@1", lambda s, k: number(s.pass_1, ".3f")),
    ("pass@K", lambda s, k: number(s.pass_at.get(k, math.nan), ".3f")),
    ("distinct", lambda s, k: number(s.distinct, ".1f")),
    ("time", lambda s, k: duration(s.seconds)),
    ("tokens", lambda s, k: label(s.tokens) if math.isfinite(s.tokens) else "—"),
]


def widest_k(summaries: Sequence[RunSummary]) -> int:
    """The largest k that every run with an evaluation has: 16 beside 64 would compare nothing."""
    sets = [set(s.pass_at) for s in summaries if s.pass_at]
    return max(set.intersection(*sets), default=16) if sets else 16


def demo_table(summaries: Sequence[RunSummary]) -> "Table":
    """The summaries as a rich table, one run a line, for the terminal."""
    from rich.table import Table
    from rich.text import Text

    k = widest_k(summaries)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for title, _ in COLUMNS:
        table.add_column(title.replace("K", str(k)), justify="right")
    for summary in summaries:
        # Text, not str: rich would read [brackets] in a run's name as markup.
        table.add_row(Text(summary.name), *(cell(summary, k) for _, cell in COLUMNS))
    return table
