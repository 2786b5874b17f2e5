"""One self-contained report.html from a run folder, or from several side by side.

Reads config.yaml, metrics.jsonl and samples.jsonl; whatever is missing is left out. The page needs no network: charts
are inline SVG (`plots.py`). Replies are untrusted text: everything is escaped, and the Content-Security-Policy admits
only the one script whose hash it names, so that nothing else could run even if an escape were forgotten below.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestration import plots
from orchestration.estimators import RunningRegression, mean, rms
from orchestration.metrics import lookup
from orchestration.plots import Series
from orchestration.sinks import Row, Sample, read_rows, read_samples

if TYPE_CHECKING:
    from rich.table import Table

START_ROWS, END_ROWS = 3, 5  # a single batch is noisy: start and end are means over these many iterations
SAMPLES_SHOWN = 6  # replies of the first and of the last iteration
REPLY_LIMIT = 4000  # characters of one prompt or reply


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

    def envs(self) -> list[str]:
        """Every environment that a key of any row names, in the order of first mention."""
        found = (lookup(key) for key in dict.fromkeys(key for row in self.rows for key in row))
        return list(dict.fromkeys(match[1]["env"] for match in found if match and "env" in match[1]))

    def evals(self) -> list[EvalPoint]:
        """Every finite pass@k of the run."""
        points = []
        for row in self.rows:
            for key, value in row.items():
                match = lookup(key) if key.startswith("eval/") and math.isfinite(value) else None
                if match and "k" in match[1]:
                    heat = match[1].get("temperature")
                    at = None if heat is None else float(heat)
                    points.append(EvalPoint(row.get("iteration", 0.0), match[1]["env"], int(match[1]["k"]), at, value))
        return points


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in a line of numbers; NaN where the run has no such value. Entropies in nats per token.

    `entropy_start` is the mean exact entropy of the first 3 iterations that have it, `entropy_end` that of the last 5
    (rewards alike); `entropy_change` = end / start - 1. `target_error_last_third` is the mean of |H - target| / target
    over the last third of the iterations, `target_rms_last_third` the root mean square of the same. `pass_at` maps k to
    the last evaluation's pass@k at the first temperature, averaged over environments; `pass_at_start` the first one's.
    """

    name: str
    iterations: int
    entropy_start: float = math.nan
    entropy_end: float = math.nan
    entropy_change: float = math.nan
    target: float = math.nan
    target_error_last_third: float = math.nan
    target_rms_last_third: float = math.nan
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
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}).") from error
    return config if isinstance(config, dict) else {}


def summarise(run: Path) -> RunSummary:
    """The summary of a run folder; errors as `load_run`."""
    return _summary(load_run(run))


def _summary(run: RunData) -> RunSummary:
    exact, reward = _finite(run.column("entropy/exact")), _finite(run.column("reward/mean"))
    start, end = mean(exact[:START_ROWS]), mean(exact[-END_ROWS:])
    targets = _finite(run.column("entropy/target"))
    pairs = zip(run.column("entropy/exact"), run.column("entropy/target"), strict=True)
    errors = _finite((h - target) / target if target else math.nan for h, target in pairs)
    late = errors[len(errors) * 2 // 3 :]
    saturated = _finite(run.column("entropy/saturated"))
    distinct = [v for v in (_over_envs(row, "distinct_correct") for row in run.rows) if math.isfinite(v)]
    spent, stamps = _finite(run.column("time/iteration")), _finite(run.column("time/unix"))
    tokens = _finite(run.column("tokens/generated"))
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


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _over_envs(row: Row, what: str) -> float:
    """Mean of eval/ENV/what over the environments of a row."""
    return mean(value for key, value in row.items() if key.startswith("eval/") and key.split("/")[2:] == [what])


def _first_and_last_passes(run: RunData) -> tuple[dict[int, float], dict[int, float]]:
    evals = run.evals()
    aliases = [p for p in evals if p.temperature is None]
    if not aliases:  # an older or foreign run without the alias: the first temperature it names
        aliases = [p for p in evals if p.temperature == evals[0].temperature]
    when = [p.iteration for p in aliases]
    return _pass_curve(aliases, min(when, default=0.0)), _pass_curve(aliases, max(when, default=0.0))


def _pass_curve(points: Sequence[EvalPoint], iteration: float) -> dict[int, float]:
    """k -> pass@k at one iteration, averaged over the environments among the points."""
    here = [p for p in points if p.iteration == iteration]
    return {k: mean(p.value for p in here if p.k == k) for k in sorted({p.k for p in here})}


# ---------------------------------------------------------------- words and tables


def number(value: float, style: str = ".3g") -> str:
    """A number for a table: a dash where there is none."""
    return format(value, style) if math.isfinite(value) else "—"


def percent(value: float, sign: bool = False) -> str:
    """A share as people read it: 0.63 is 63 %, 0.063 is 6.3 %; with `sign`, -0.63 has its minus."""
    if not math.isfinite(value):
        return "—"
    digits = 1 if 0.0 < abs(value) < 0.0995 else 0
    text = f"{abs(value) * 100:.{digits}f}".removesuffix(".0")
    return (
        ("" if not sign or float(text) == 0.0 else "+" if value > 0 else "\N{MINUS SIGN}")
        + text
        + "\N{NO-BREAK SPACE}%"
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3 h 20 min."""
    if not math.isfinite(seconds):
        return "—"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


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
            said[-1] += f"; in the last third it was within {percent(s.target_rms_last_third)} rms of its target"
            said[-1] += f" ({s.target:.2f})"
    if s.saturated > 0.05:
        said.append(
            f"The knob stood at its bound, with entropy off target, in {percent(s.saturated)} of the iterations"
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
        if len(_finite(values)) < 2:
            continue
        best = max(_finite(values))
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
    ("tokens", lambda s, k: plots.label(s.tokens) if math.isfinite(s.tokens) else "—"),
]


def _widest_k(summaries: Sequence[RunSummary]) -> int:
    """The largest k that every run with an evaluation has: 16 beside 64 would compare nothing."""
    sets = [set(s.pass_at) for s in summaries if s.pass_at]
    return max(set.intersection(*sets), default=16) if sets else 16


def demo_table(summaries: Sequence[RunSummary]) -> "Table":
    """The summaries as a rich table, one run a line, for the terminal."""
    from rich.table import Table
    from rich.text import Text

    k = _widest_k(summaries)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for title, _ in COLUMNS:
        table.add_column(title.replace("K", str(k)), justify="right")
    for summary in summaries:
        # Text, not str: rich would read [brackets] in a run's name as markup.
        table.add_row(Text(summary.name), *(cell(summary, k) for _, cell in COLUMNS))
    return table


# ---------------------------------------------------------------- charts


def _curves(runs: Sequence[RunData], key: str, *, raw: bool = True) -> list[Series]:
    """A key over iterations, a colour a run: rolling mean with its spread, the raw values faint behind it."""
    out: list[Series] = []
    for colour, run in enumerate(runs):
        if not run.has(key):
            continue
        x, y = run.column("iteration"), run.column(key)
        if len(_finite(y)) < 30:
            out.append(Series(run.name, x, y, colour))
            continue
        middle, around = plots.smooth(y, max(2, len(y) // 40))
        if raw:
            out.append(Series(run.name, x, y, colour, "faint", legend=False))
        low = [m - a for m, a in zip(middle, around, strict=True)]
        high = [m + a for m, a in zip(middle, around, strict=True)]
        out.append(Series(run.name, x, middle, colour, "line", low, high))
    return out


def _entropy_chart(runs: Sequence[RunData]) -> str:
    series = _curves(runs, "entropy/exact")
    for colour, run in enumerate(runs):
        if run.has("entropy/target"):
            name = "target" if len(runs) == 1 else f"{run.name}, target"
            series.append(Series(name, run.column("iteration"), run.column("entropy/target"), colour, "dashed"))
    note = "Line: rolling mean, band: its spread. Dashed: target." if len(runs[0].rows) >= 30 else ""
    return plots.line_chart("Exact entropy", series, y_label="nats per token", zero=True, note=note)


def _reward_chart(runs: Sequence[RunData], envs: Sequence[str]) -> str:
    """Mean reward; a single run with several environments also shows each of them, in a colour of its own."""
    series = _curves(runs, "reward/mean")
    if len(runs) == 1 and len(envs) > 1:
        series = [replace(s, name="all") for s in series]
        for colour, env in enumerate(envs, start=1):
            curves = _curves(runs, f"reward/{env}", raw=False)
            series += [replace(s, name=env, colour=colour, low=(), high=()) for s in curves]
    return plots.line_chart("Reward", series, y_label="mean reward")


def _knob_chart(runs: Sequence[RunData]) -> str:
    series = []
    for colour, run in enumerate(runs):
        x, knob = run.column("iteration"), run.column("entropy/knob")
        if len(set(_finite(knob))) == 0:
            continue
        series.append(Series(run.name, x, knob, colour))
        for bound in ("entropy/knob_low", "entropy/knob_high"):
            series.append(Series("", x, run.column(bound), colour, "dotted", legend=False))
    positive = all(v > 0.0 for s in series for v in _finite(s.y))
    values = [v for s in series for v in _finite(s.y)]
    log = positive and bool(values) and max(values) / min(values) > 50
    return plots.line_chart("Entropy knob", series, y_label="coefficient", log_y=log, note="Dotted: its bounds.")


def _dh_chart(runs: Sequence[RunData]) -> str:
    series, notes = [], []
    for colour, run in enumerate(runs):
        # A row has the change predicted for its own update and the change that the update before it made.
        x, y = run.column("entropy/predicted_dh")[:-1], run.column("entropy/realised_dh")[1:]
        fit = RunningRegression()
        for a, b in zip(x, y, strict=True):
            fit.add(a, b)
        if fit.weight == 0.0:
            continue
        series.append(Series(run.name, x, y, colour, "points"))
        if math.isfinite(fit.correlation):
            ends = [min(_finite(x)), max(_finite(x))]
            series.append(Series("", ends, [fit.intercept + fit.slope * v for v in ends], colour, legend=False))
            notes.append(f"{run.name}: slope {fit.slope:.2g}, r = {fit.correlation:.2f}")
    title = "Change of entropy, predicted and realised"
    axes = {"x_label": "predicted, nats per token", "y_label": "realised"}
    return plots.scatter_chart(title, series, note="; ".join(notes), trim=0.01, **axes)


def _ledger_chart(runs: Sequence[RunData]) -> str:
    series = []
    for colour, run in enumerate(runs):
        for sign, style in (("positive", "line"), ("negative", "dashed")):
            total, sums = 0.0, []
            for value in run.column(f"entropy/predicted_dh_{sign}"):
                total += value if math.isfinite(value) else 0.0
                sums.append(total)
            if run.has(f"entropy/predicted_dh_{sign}"):
                name = f"{sign} advantages" if len(runs) == 1 else f"{run.name}, {sign}"
                series.append(Series(name, run.column("iteration"), sums, colour, style))
    title = "Predicted change of entropy, summed"
    return plots.line_chart(
        title,
        series,
        y_label="nats per token",
        note="Positive and negative: the sign of the advantage the tokens carried.",
    )


def _pass_by_k(runs: Sequence[RunData], env: str | None = None) -> str:
    """pass@k against k at the last evaluation, a style a temperature; the first evaluation faint."""
    series: list[Series] = []
    ticks: set[float] = set()
    for colour, run in enumerate(runs):
        points = [p for p in run.evals() if p.temperature is not None and env in (None, p.env)]
        heats = list(dict.fromkeys(p.temperature for p in points))
        for i, heat in enumerate(heats[:3]):
            mine = [p for p in points if p.temperature == heat]
            last, first = (_pass_curve(mine, pick(p.iteration for p in mine)) for pick in (max, min))
            ks = [float(k) for k in last]
            ticks.update(ks)
            name = f"T = {heat:g}" if len(runs) == 1 else f"{run.name}, T = {heat:g}"
            shade = i if len(runs) == 1 else colour
            series.append(Series(name, ks, list(last.values()), shade, ("line", "dashed", "dotted")[i]))
            if first != last:
                series.append(Series("", list(map(float, first)), list(first.values()), shade, "faint", legend=False))
    note = "Last evaluation; thin: the first one." if any(s.style == "faint" for s in series) else "Last evaluation."
    return plots.line_chart(
        "pass@k by temperature", series, x_label="k", log_x=len(ticks) > 1, x_ticks=sorted(ticks), note=note
    )


def _pass_over_time(runs: Sequence[RunData], k: int, env: str | None = None) -> str:
    series = []
    for colour, run in enumerate(runs):
        points = [p for p in run.evals() if p.temperature is None and env in (None, p.env)]
        when = sorted({p.iteration for p in points})
        for wanted, style in ((1, "dashed"), (k, "line")):
            y = [_pass_curve(points, iteration).get(wanted, math.nan) for iteration in when]
            name = f"pass@{wanted}" if len(runs) == 1 else f"{run.name}, pass@{wanted}"
            series.append(Series(name, when, y, colour, style))
    return plots.line_chart("pass@k over training", series[:: 1 if k > 1 else 2], note="At the first temperature.")


def _front(runs: Sequence[RunData], k: int) -> str:
    """pass@1 against pass@k, a point a temperature: a method compared at one temperature is half compared."""
    series = []
    for colour, run in enumerate(runs):
        points = [p for p in run.evals() if p.temperature is not None]
        last = max((p.iteration for p in points), default=0.0)
        heats = sorted({p.temperature for p in points if p.temperature is not None})
        curves = [_pass_curve([p for p in points if p.temperature == heat], last) for heat in heats]
        x, y = ([curve.get(at, math.nan) for curve in curves] for at in (1, k))
        series += [Series(run.name, x, y, colour, "points"), Series("", x, y, colour, "dotted", legend=False)]
    if k == 1 or max((len(s.x) for s in series), default=0) < 2:
        return ""
    note = "One point a temperature, last evaluation; up and to the right is better."
    return plots.scatter_chart("Quality against coverage", series, x_label="pass@1", y_label=f"pass@{k}", note=note)


def _time_chart(run: RunData, title: str) -> str:
    parts = ("generate", "verify", "train", "sync")  # eval is rare and would dwarf them
    x = run.column("iteration")
    layers = [Series(part, x, run.column(f"time/{part}"), i) for i, part in enumerate(parts)]
    return plots.stacked_chart(title, layers, y_label="seconds")


def _distinct_chart(runs: Sequence[RunData], env: str | None = None) -> str:
    series = []
    for colour, run in enumerate(runs):
        rows = [row for row in run.rows if math.isfinite(_over_envs(row, "distinct_correct"))]
        pick = [
            row.get(f"eval/{env}/distinct_correct", math.nan) if env else _over_envs(row, "distinct_correct")
            for row in rows
        ]
        series.append(Series(run.name, [row.get("iteration", math.nan) for row in rows], pick, colour))
    return plots.line_chart("Distinct correct solutions a prompt", series, zero=True)


# ---------------------------------------------------------------- the page


def _line(runs: Sequence[RunData], key: str, title: str, **options: Any) -> str:
    return plots.line_chart(title, _curves(runs, key), **options)


def _sections(runs: Sequence[RunData], k: int) -> list[tuple[str, list[str]]]:
    """Headings with their charts; a chart without data is empty text."""
    envs = list(dict.fromkeys(env for run in runs for env in run.envs()))
    share = {"y_label": "share of tokens", "zero": True}
    timing = [_time_chart(r, "Time of an iteration" + (f", {r.name}" if len(runs) > 1 else "")) for r in runs]
    out = [
        ("", [_entropy_chart(runs), _reward_chart(runs, envs)]),
        (
            "What the policy can do",
            [_pass_over_time(runs, k), _pass_by_k(runs), _front(runs, k), _distinct_chart(runs)],
        ),
        (
            "The entropy ledger",
            [
                _knob_chart(runs),
                _dh_chart(runs),
                _ledger_chart(runs),
                _line(runs, "entropy/authority", "Tokens the knob touches", **share),
            ],
        ),
        (
            "Trainer and engine",
            [
                _line(runs, "gap/outside", "Tokens whose trainer/engine ratio leaves [0.9, 1.1]", **share),
                _line(runs, "gap/engine_mean", "Mean log-prob gap", y_label="nats", zero=True),
            ],
        ),
        (
            "The update",
            [
                _line(runs, "clip/high", "Clipped from above", **share),
                _line(runs, "grad_norm", "Gradient norm", zero=True),
                _line(runs, "reply/length_mean", "Reply length", y_label="tokens", zero=True),
                _line(runs, "groups/no_signal", "Groups without signal", y_label="groups", zero=True),
            ],
        ),
        (
            "Where the time went",
            [*timing, _line(runs, "tokens/per_second", "Throughput", y_label="tokens per second", zero=True)],
        ),
    ]
    for env in envs if len(envs) > 1 else []:
        charts = [
            _line(runs, f"reward/{env}", "Reward"),
            _line(runs, f"entropy/{env}", "Exact entropy", zero=True),
            _pass_by_k(runs, env),
            _distinct_chart(runs, env),
        ]
        out.append((f"Environment: {env}", charts))
    return out


# What a reader asks for first, in the names of `config.py`.
_CHIP = re.compile(
    r"run\.(seed|iterations)|model\.path|environments\.\d+\.name|batch\.\w+|sampling\.(temperature|max_tokens)"
    r"|learner\.(ranks|zero_stage|precision|lr|updates|epochs)|generators\.(count|dtype)|objective\.\w+"
    r"|entropy\.(method|controller|target)\.\w+"
)


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """The scalars of a nested config by dotted path; a list of scalars counts as one."""
    if isinstance(config, Mapping):
        return {k: v for key, value in config.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    if isinstance(config, list) and any(isinstance(item, Mapping | list) for item in config):
        return {k: v for i, value in enumerate(config) for k, v in _flat(value, f"{prefix}{i}.").items()}
    if config is None or config == []:
        return {}
    return {prefix[:-1]: ", ".join(map(str, config)) if isinstance(config, list) else str(config)}


def _chips(runs: Sequence[RunData]) -> str:
    """The settings a reader asks for first; with several runs, what they share and then what differs in each."""
    flats = [_flat(run.config) for run in runs]
    shared = {k: v for k, v in flats[0].items() if _CHIP.fullmatch(k) and all(flat.get(k) == v for flat in flats)}
    lines = [_chip_line("" if len(runs) == 1 else "shared", shared, limit=24)]
    for colour, (run, flat) in enumerate(zip(runs, flats, strict=True) if len(runs) > 1 else ()):
        own = {k: v for k, v in flat.items() if k != "run.name" and any(other.get(k) != v for other in flats)}
        lines.append(_chip_line(run.name, own, limit=10, colour=colour))
    return "".join(lines)


def _short_name(path: str) -> str:
    """learner.lr -> lr, generators.count -> generators count, entropy.method.kind -> method."""
    parts = [part for part in path.split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] in ("kind", "name", "path"):
        return parts[-2]
    plain = len(parts) == 2 and parts[0] in ("run", "batch", "sampling", "learner", "objective")
    return parts[-1] if plain else " ".join(parts[-2:])


def _chip_line(title: str, settings: Mapping[str, str], limit: int, colour: int | None = None) -> str:
    if not settings:
        return ""
    dot = "" if colour is None else f'<i class="run c{colour % plots.PALETTE}"></i>'
    chips = "".join(
        f'<span class="chip"><b>{escape(_short_name(k))}</b> {escape(v[:60])}</span>'
        for k, v in list(settings.items())[:limit]
    )
    return f'<div class="chips">{dot}<span class="who">{escape(title)}</span>{chips}</div>'


def _summary_table(summaries: Sequence[RunSummary]) -> str:
    k = _widest_k(summaries)
    heads = "".join(f"<th>{escape(title.replace('K', str(k)))}</th>" for title, _ in COLUMNS)
    body = "".join(
        f'<tr><th><i class="run c{colour % plots.PALETTE}"></i>{escape(s.name)}</th>'
        + "".join(f"<td>{escape(cell(s, k))}</td>" for _, cell in COLUMNS)
        + "</tr>"
        for colour, s in enumerate(summaries)
    )
    return _table("summary", f"<tr><th>run</th>{heads}</tr>", body)


def _table(kind: str, head: str, body: str) -> str:
    return f'<div class="wide"><table class="{kind}"><thead>{head}</thead><tbody>{body}</tbody></table></div>'


# Terminal escapes, and the marks that reorder text: a reply must not redraw the cell next to it.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _untrusted(value: Any) -> str:
    """Text from a model or an environment, made safe to show: escaped, visible, and of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > REPLY_LIMIT:
        text = f"{text[:REPLY_LIMIT]} … ({len(text) - REPLY_LIMIT:,} more characters)"
    return _visible(text)


def _visible(text: str) -> str:
    return escape(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text))


def _samples(run: RunData) -> str:
    """Replies of the first and of the last iteration that has any."""
    when = [s.get("iteration", 0) for s in run.samples]
    if not when:
        return ""
    rows = []
    for iteration in sorted({min(when), max(when)}):
        for s in [s for s in run.samples if s.get("iteration", 0) == iteration][:SAMPLES_SHOWN]:
            reward = s.get("reward")
            shown = f"{reward:.3g}" if isinstance(reward, int | float) else "—"
            verdict = "right" if s.get("correct") else "wrong"
            status = s.get("status", "ok")
            aside = "" if status == "ok" else f"<br><small>{_untrusted(status)}</small>"
            rows.append(
                f"<tr><td>{_untrusted(iteration)}</td><td>{_untrusted(s.get('env', ''))}</td>"
                f"<td><pre>{_untrusted(s.get('prompt', ''))}</pre></td>"
                f"<td><pre>{_untrusted(s.get('reply', ''))}</pre></td>"
                f'<td><span class="{verdict}">{shown}</span>{aside}</td></tr>'
            )
    head = "<tr><th>iteration</th><th>env</th><th>prompt</th><th>reply</th><th>reward</th></tr>"
    return f"<h3>{escape(run.name)}</h3>" + _table("samples", head, "".join(rows))


def render(runs: Sequence[RunData]) -> str:
    """The whole page. Runs of equal name are told apart by a number."""
    names = [run.name for run in runs]
    runs = [
        replace(run, name=f"{run.name} ({names[: i + 1].count(run.name)})") if names.count(run.name) > 1 else run
        for i, run in enumerate(runs)
    ]
    summaries = [_summary(run) for run in runs]
    title = " · ".join(run.name for run in runs)
    story = "".join(
        f'<p class="story">{f"<b>{escape(s.name)}.</b> " if len(runs) > 1 else ""}{escape(sentences(s))}</p>'
        for s in summaries
    )
    leads = comparison(summaries) if len(runs) > 1 else ""
    story += f'<p class="story">{escape(leads)}</p>' if leads else ""
    parts = []
    for heading, charts in _sections(runs, _widest_k(summaries)):
        shown = [chart for chart in charts if chart]
        if shown:
            parts.append(
                (f"<h2>{escape(heading)}</h2>" if heading else "") + f'<div class="grid">{"".join(shown)}</div>'
            )
    replies = "".join(_samples(run) for run in runs)
    if replies:
        parts.append(f"<h2>Replies, first and last iteration</h2>{replies}")
    for run in runs:
        if run.config_text:
            summary = f"<summary>Configuration of {escape(run.name)}</summary>"
            parts.append(f"<details>{summary}<pre>{_visible(run.config_text)}</pre></details>")
    digest = base64.b64encode(hashlib.sha256(plots.SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{plots.STYLE}{PAGE_STYLE}</style></head>"
        f'<body class="{"single" if len(runs) == 1 else "several"}"><main>'
        f'<header><p class="kind">Isentrope report</p><h1>{escape(title)}</h1>{story}{_chips(runs)}</header>'
        f"{_summary_table(summaries)}{''.join(parts)}</main><script>{plots.SCRIPT}</script></body></html>\n"
    )


def write_report(runs: list[Path], out: Path) -> Path:
    """Write the report of one run folder or several to `out` and return it.

    Raises ValueError in a sentence when `runs` is empty, a run has no iteration, or a file in it is broken.
    """
    if not runs:
        raise ValueError("A report needs at least one run folder.")
    page = render([load_run(run) for run in runs])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


PAGE_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:36px 24px 64px}
.kind{margin:0;color:var(--soft);font-size:13px;letter-spacing:.02em}
h1{margin:2px 0 12px;font-size:26px;line-height:1.25;font-weight:650;overflow-wrap:anywhere}
h2{margin:40px 0 12px;font-size:18px;font-weight:650}h3{margin:18px 0 8px;font-size:14px}
.story{margin:0 0 8px;max-width:86ch}
.chips{display:flex;flex-wrap:wrap;align-items:center;gap:6px;margin:10px 0 0;font-size:12.5px}
.chip{border:1px solid var(--line);background:var(--card);border-radius:6px;padding:1px 8px;overflow-wrap:anywhere}
.chip b{font-weight:400;color:var(--soft)}.who{color:var(--soft);margin-right:4px}.who:empty{display:none}
i.run{display:inline-block;width:9px;height:9px;border-radius:50%;background:var(--c);margin-right:7px;flex:none}
.chips i.run{margin-right:0}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px}
.grid>:only-child{grid-column:1/-1;max-width:calc(50% - 7px)}
@media (max-width:760px){.grid{grid-template-columns:1fr}.grid>:only-child{max-width:none}}
.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;margin:22px 0 14px}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:8px 10px;text-align:left;vertical-align:top;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-weight:500}
.summary td,.summary th{white-space:nowrap}.summary th:not(:first-child),.summary td{text-align:right}
.summary td{font-variant-numeric:tabular-nums}.summary tbody th{font-weight:600}
.samples pre{margin:0;max-height:220px;overflow:auto}
.samples td:nth-child(3){width:36%}.samples td:nth-child(4){width:42%}
pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.right{color:var(--c2);font-weight:600}.wrong{color:var(--soft)}small{color:var(--soft)}
details{margin-top:14px;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 16px}
summary{cursor:pointer;font-weight:600;font-size:14px}
"""
