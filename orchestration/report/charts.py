"""Selects the numbers of runs that each chart of a report shows; `svg/charts.py` draws it.

Each function takes the runs, a colour each, and returns SVG text; empty text when no run has the data.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestration.analysis.findings import fresh_pairs, step_pairs
from orchestration.analysis.run_data import RunData, over_envs, pass_curve
from orchestration.report.svg.charts import line_chart, scatter_chart, stacked_chart
from orchestration.report.svg.marks import Series, smooth
from orchestration.stats import finite, fit_line
from orchestration.telemetry.typed_keys import DISTINCT, EnvKey, QuantileKey, TermKey
from orchestration.text import label


def key_chart(runs: Sequence[RunData], key: str, title: str, **options: Any) -> str:
    """Draws one metric over iterations."""
    return line_chart(title, _curves(runs, key), **options)


def _curves(runs: Sequence[RunData], key: str, *, raw: bool = True) -> list[Series]:
    """Returns a key over iterations, a colour a run: rolling mean with its spread, the raw values faint behind it."""
    out: list[Series] = []
    for colour, run in enumerate(runs):
        if not run.has(key):
            continue
        x, y = run.column("iteration"), run.column(key)
        if len(finite(y)) < 30:
            out.append(Series(run.name, x, y, colour))
            continue
        middle, spread = smooth(y, max(2, len(y) // 40))
        if raw:
            out.append(Series(run.name, x, y, colour, "faint", legend=False))
        low = [m - a for m, a in zip(middle, spread, strict=True)]
        high = [m + a for m, a in zip(middle, spread, strict=True)]
        out.append(Series(run.name, x, middle, colour, "line", low, high))
    return out


def entropy_chart(runs: Sequence[RunData]) -> str:
    series = _curves(runs, "entropy/exact")
    for colour, run in enumerate(runs):
        if run.has("entropy/target"):
            name = "target" if len(runs) == 1 else f"{run.name}, target"
            series.append(Series(name, run.column("iteration"), run.column("entropy/target"), colour, "dashed"))
        controlled = run.column("entropy/controlled")
        if any(
            math.isfinite(v) and v != exact for v, exact in zip(controlled, run.column("entropy/exact"), strict=True)
        ):
            name = "under control" if len(runs) == 1 else f"{run.name}, under control"
            series.append(Series(name, run.column("iteration"), controlled, colour, "dotted"))
    notes = ["Line: rolling mean, band: its spread."] if any(s.low for s in series) else []
    notes += ["Dashed: target."] if any(s.style == "dashed" for s in series) else []
    notes += ["Dotted: what the controller observes."] if any(s.style == "dotted" for s in series) else []
    return line_chart("Exact entropy", series, y_label="nats per token", zero=True, note=" ".join(notes))


def reward_chart(runs: Sequence[RunData], envs: Sequence[str]) -> str:
    """Draws mean reward; a single run with several environments also shows each of them, in a colour of its own."""
    series = _curves(runs, "reward/mean")
    if len(runs) == 1 and len(envs) > 1:
        series = [replace(s, name="all") for s in series]
        for colour, env in enumerate(envs, start=1):
            curves = _curves(runs, f"reward/{env}", raw=False)
            series += [replace(s, name=env, colour=colour, low=(), high=()) for s in curves]
    return line_chart("Reward", series, y_label="mean reward")


def terms_chart(runs: Sequence[RunData]) -> str:
    """Draws the terms of a single run's reward, a colour a term."""
    keys = [TermKey.parse(key) for run in runs[:1] for key in run.metric_keys()]
    terms = {key.term for key in keys if key is not None and key.env is None}
    if len(runs) > 1 or not terms:
        return ""
    series = []
    for colour, term in enumerate(sorted(terms, key=lambda term: (term != "verdict", term))):
        curves = _curves(runs, str(TermKey(term)), raw=False)
        series += [replace(s, name=term, colour=colour, low=(), high=()) for s in curves]
    note = "Before weights. The verdict is the environment's own: where it does not follow the others, they are being gamed."
    return line_chart("Terms of the reward", series, y_label="mean value", note=note)


def coefficient_chart(runs: Sequence[RunData]) -> str:
    series = []
    for colour, run in enumerate(runs):
        x, coefficient = run.column("iteration"), run.column("entropy/coefficient")
        if len(set(finite(coefficient))) == 0:
            continue
        series.append(Series(run.name, x, coefficient, colour))
        for bound in ("entropy/coefficient_low", "entropy/coefficient_high"):
            series.append(Series("", x, run.column(bound), colour, "dotted", legend=False))
    positive = all(v > 0.0 for s in series for v in finite(s.y))
    values = [v for s in series for v in finite(s.y)]
    log = positive and bool(values) and max(values) / min(values) > 50
    return line_chart("Entropy coefficient", series, y_label="coefficient", log_y=log, note="Dotted: its bounds.")


def dh_chart(runs: Sequence[RunData]) -> str:
    series, notes = [], []
    for colour, run in enumerate(runs):
        x, y = step_pairs(run) if run.has("entropy/step_dh") else fresh_pairs(run)
        if not any(math.isfinite(a) and math.isfinite(b) for a, b in zip(x, y, strict=True)):
            continue
        fit = fit_line(x, y)
        series.append(Series(run.name, x, y, colour, "points"))
        if math.isfinite(fit.correlation):
            ends = [min(finite(x)), max(finite(x))]
            series.append(Series("", ends, [fit.intercept + fit.slope * v for v in ends], colour, legend=False))
            notes.append(f"{run.name}: slope {label(float(f'{fit.slope:.2g}'))}, r = {fit.correlation:.2f}")
    title = "Change of entropy, predicted and realised"
    axes = {"x_label": "predicted, nats per token", "y_label": "realised"}
    return scatter_chart(title, series, note="; ".join(notes), trim=0.01, **axes)


def _pair(
    runs: Sequence[RunData], pairs: Sequence[tuple[str, str]], title: str, *, summed: bool = False, **options: Any
) -> str:
    """Draws two metrics of a kind, (key, name) each: a style each, and a colour a run or, of a single run, a colour each.

    `summed` adds up over the iterations; a value that is not finite counts as zero there.
    """
    series = []
    for colour, run in enumerate(runs):
        for i, (key, name) in enumerate(pairs):
            if not run.has(key):
                continue
            y = run.column(key)
            if summed:
                y = list(itertools.accumulate(v if math.isfinite(v) else 0.0 for v in y))
            elif len(finite(y)) >= 30:
                y = smooth(y, max(2, len(y) // 40))[0]
            full_name = name if len(runs) == 1 else f"{run.name}, {name}"
            own_colour = i if len(runs) == 1 else colour
            series.append(Series(full_name, run.column("iteration"), y, own_colour, ("line", "dashed")[i]))
    return line_chart(title, series, **options)


def ledger_chart(runs: Sequence[RunData]) -> str:
    parts = [(f"entropy/tabular_dh_{sign}", f"{sign} advantages") for sign in ("positive", "negative")]
    note = "Positive and negative: the sign of the advantage the tokens carried."
    return _pair(runs, parts, "Predicted change of entropy, summed", summed=True, y_label="nats per token", note=note)


def control_chart(runs: Sequence[RunData]) -> str:
    """Draws the predicted change of the updates beside that of the advantages alone: the space between is control."""
    if not any(run.has("entropy/tabular_dh_free") for run in runs):
        return ""
    parts = [("entropy/tabular_dh", "with control"), ("entropy/tabular_dh_free", "advantages alone")]
    return _pair(
        runs, parts, "Predicted change, with and without control", summed=True, y_label="nats per token, summed"
    )


def forgone_chart(runs: Sequence[RunData]) -> str:
    parts = [("entropy/forgone_dh_high", "clipped from above"), ("entropy/forgone_dh_low", "clipped from below")]
    note = "What the clipped tokens would have added, to first order."
    return _pair(runs, parts, "Withheld by clipping, summed", summed=True, y_label="nats per token", note=note)


def success_chart(runs: Sequence[RunData]) -> str:
    parts = [("entropy/successful", "correct responses"), ("entropy/failed", "failed responses")]
    return _pair(runs, parts, "Entropy of correct and failed responses", y_label="nats per token", zero=True)


def position_chart(runs: Sequence[RunData]) -> str:
    parts = [("entropy/first", "first token"), ("entropy/last", "last token")]
    return _pair(runs, parts, "Entropy by position in the response", y_label="nats per token", zero=True)


def env_entropy_chart(runs: Sequence[RunData], envs: Sequence[str]) -> str:
    """Draws a single run's entropy, a colour an environment; side by side each environment has a section of its own."""
    series = []
    for colour, env in enumerate(envs if len(runs) == 1 and len(envs) > 1 else ()):
        series += [replace(s, name=env, colour=colour) for s in _curves(runs, f"entropy/{env}", raw=False)]
    return line_chart("Entropy by environment", series, y_label="nats per token", zero=True)


def responses_chart(runs: Sequence[RunData]) -> str:
    parts = [("responses/distinct", "all"), ("responses/distinct_correct", "correct")]
    return _pair(runs, parts, "Distinct responses a prompt, in training", y_label="responses", zero=True)


def solutions_chart(runs: Sequence[RunData]) -> str:
    parts = [("diversity/solutions", "measured"), ("diversity/target", "target")]
    return _pair(runs, parts, "Effective number of solutions", y_label="solutions a prompt", zero=True)


def quantile_chart(runs: Sequence[RunData], family: str, title: str, **options: Any) -> str:
    """Draws the quantiles family/q50, family/q99.9, ... that were reported; of several runs the highest one each."""
    series = []
    for colour, run in enumerate(runs):
        parsed = [(QuantileKey.parse(key), key) for key in run.metric_keys()]
        ranked = sorted((q.percent, key) for q, key in parsed if q and q.distribution == family and run.has(key))
        for order, (percent, key) in enumerate(ranked if len(runs) == 1 else ranked[-1:]):
            name = f"{percent:g} %" if len(runs) == 1 else f"{run.name}, {percent:g} %"
            own_colour = order if len(runs) == 1 else colour
            series.append(Series(name, run.column("iteration"), run.column(key), own_colour))
    return line_chart(title, series, **options)


def ess_chart(runs: Sequence[RunData]) -> str:
    return key_chart(runs, "ratio/ess", "Effective sample size", y_label="share of tokens", zero=True)


def pass_by_k(runs: Sequence[RunData], env: str | None = None) -> str:
    """Draws pass@k against k at the last evaluation, a style a temperature; the first evaluation faint."""
    series: list[Series] = []
    ticks: set[float] = set()
    for colour, run in enumerate(runs):
        points = [p for p in run.evals() if p.temperature is not None and env in (None, p.env)]
        heats = list(dict.fromkeys(p.temperature for p in points))
        for i, heat in enumerate(heats[:3]):
            at_heat = [p for p in points if p.temperature == heat]
            last, first = (pass_curve(at_heat, pick(p.iteration for p in at_heat)) for pick in (max, min))
            ks = [float(k) for k in last]
            ticks.update(ks)
            name = f"T = {heat:g}" if len(runs) == 1 else f"{run.name}, T = {heat:g}"
            own_colour = i if len(runs) == 1 else colour
            series.append(Series(name, ks, list(last.values()), own_colour, ("line", "dashed", "dotted")[i]))
            if first != last:
                series.append(
                    Series("", list(map(float, first)), list(first.values()), own_colour, "faint", legend=False)
                )
    note = "Last evaluation; thin: the first one." if any(s.style == "faint" for s in series) else "Last evaluation."
    return line_chart(
        "pass@k by temperature", series, x_label="k", log_x=len(ticks) > 1, x_ticks=sorted(ticks), note=note
    )


def pass_over_time(runs: Sequence[RunData], k: int, env: str | None = None) -> str:
    series = []
    for colour, run in enumerate(runs):
        points = [p for p in run.evals() if p.temperature is None and env in (None, p.env)]
        when = sorted({p.iteration for p in points})
        for wanted, style in ((1, "dashed"), (k, "line")):
            y = [pass_curve(points, iteration).get(wanted, math.nan) for iteration in when]
            name = f"pass@{wanted}" if len(runs) == 1 else f"{run.name}, pass@{wanted}"
            series.append(Series(name, when, y, colour, style))
    return line_chart("pass@k over training", series[:: 1 if k > 1 else 2], note="At the first temperature.")


def front_chart(runs: Sequence[RunData], k: int) -> str:
    """Draws pass@1 against pass@k, a point a temperature: one temperature alone does not compare two methods."""
    series = []
    for colour, run in enumerate(runs):
        points = [p for p in run.evals() if p.temperature is not None]
        last = max((p.iteration for p in points), default=0.0)
        heats = sorted({p.temperature for p in points if p.temperature is not None})
        curves = [pass_curve([p for p in points if p.temperature == heat], last) for heat in heats]
        x, y = ([curve.get(at, math.nan) for curve in curves] for at in (1, k))
        series += [Series(run.name, x, y, colour, "points"), Series("", x, y, colour, "dotted", legend=False)]
    if k == 1 or max((len(s.x) for s in series), default=0) < 2:
        return ""
    note = "One point a temperature, last evaluation; up and to the right is better."
    return scatter_chart("Quality against coverage", series, x_label="pass@1", y_label=f"pass@{k}", note=note)


def time_chart(run: RunData, title: str) -> str:
    parts = ("generate", "verify", "train", "sync")  # eval is rare and would dwarf them
    # The evaluation before training has none of them: it would draw a ramp from zero.
    rows = [row for row in run.rows if any(f"time/{part}" in row for part in parts)]
    x = [row.get("iteration", math.nan) for row in rows]
    layers = [Series(part, x, [row.get(f"time/{part}", math.nan) for row in rows], i) for i, part in enumerate(parts)]
    return stacked_chart(title, layers, y_label="seconds")


def distinct_chart(runs: Sequence[RunData], env: str | None = None) -> str:
    series = []
    for colour, run in enumerate(runs):
        rows = [row for row in run.rows if math.isfinite(over_envs(row, DISTINCT))]
        pick = [row.get(str(EnvKey(DISTINCT, env)), math.nan) if env else over_envs(row, DISTINCT) for row in rows]
        series.append(Series(run.name, [row.get("iteration", math.nan) for row in rows], pick, colour))
    return line_chart("Distinct correct solutions a prompt", series, zero=True)
