"""The charts of a lab's report: arms beside one another, each as the mean over its seeds with its spread.

Up to 8 arms share a picture, a colour each. More get small multiples: one little picture an arm, all to one scale, with
the first arm thin and grey in each for reference.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from orchestration.analysis.run_data import RunData
from orchestration.lab.compare import pareto, stat
from orchestration.lab.figures import pass_counts
from orchestration.lab.results import first_temperature
from orchestration.report import svg as plots
from orchestration.report.svg import NEUTRAL, PALETTE, Series
from orchestration.report.svg_points import Point, point_chart
from orchestration.stats import finite, mean, std

SMALL = (356.0, 190.0)  # drawing units of one of the small multiples: three of them fill a row
LARGE = (1100.0, 440.0)  # of the Pareto plots of many arms: a whole row


@dataclass(frozen=True, slots=True)
class Tracks:
    """The finished runs of one arm in memory, and its place in the lab, which is its colour."""

    name: str
    place: int
    runs: Sequence[RunData]
    steered: bool = False

    def has(self, *keys: str) -> bool:
        return any(run.has(*keys) for run in self.runs)


def pareto_chart(results: Mapping[str, Any], x: str, y: str, title: str, note: str = "") -> str:
    """Two figures of every arm, bars of one standard deviation over its seeds, the policy before training a diamond.

    The line joins the arms that no other dominates, whose names are bold.
    """
    front = set(pareto(results, x, y))
    points = [_point(arm, x, y, i, bold=arm["name"] in front) for i, arm in enumerate(results["arms"])]
    line = sorted((p for p in points if p.bold), key=lambda p: (p.x, -p.y))
    if not any(math.isfinite(p.x) and math.isfinite(p.y) for p in points):
        return ""
    start = replace(_point(results["start"], x, y, NEUTRAL), mark="diamond")
    words = "Bars: ±1 standard deviation over seeds. Bold, joined: no arm is better in both means. Diamond: before training."
    many = len(points) > PALETTE
    chart = point_chart(
        title,
        [*points, start],
        line=line,
        note=f"{note} {words}".strip(),
        x_label=x.partition("/")[0],
        y_label=y.partition("/")[0],
        size=LARGE if many else (plots.WIDTH, plots.HEIGHT + 70),
    )
    return broad(chart) if many else chart


def _point(arm: Mapping[str, Any], x: str, y: str, colour: int, bold: bool = False) -> Point:
    across, up = stat(arm, x), stat(arm, y)
    mark = "dot" if colour < PALETTE else "ring"  # the palette's second round
    return Point(arm["name"], across.mean, up.mean, across.std, up.std, colour, mark, bold)


# ---------------------------------------------------------------- over iterations


def entropy_tracks(arms: Sequence[Tracks]) -> str:
    """Exact entropy over its own start, so that arms and seeds with other starts compare."""
    curves = {arm.place: _over_seeds(arm, lambda run: _smooth(relative(run, "entropy/exact"))) for arm in arms}
    for arm in arms:
        if arm.steered and arm.place in curves:
            (target,) = _over_seeds(arm, lambda run: relative(run, "entropy/target"), band=False) or [None]
            if target:
                curves[arm.place].append(replace(target, name=f"{arm.name}, target", style="dashed", legend=False))
    note = "1 is the start. Line: mean over seeds of rolling means; band: ±1 standard deviation between seeds; dashed: target."
    return pictures("Exact entropy over its start", arms, curves, note=note, y_label="H / H at the start", zero=True)


def reward_tracks(arms: Sequence[Tracks]) -> str:
    curves = {arm.place: _over_seeds(arm, lambda run: _smooth(run.column("reward/mean"))) for arm in arms}
    note = "Line: mean over seeds of rolling means; band: ±1 standard deviation between seeds."
    return pictures("Reward", arms, curves, note=note, y_label="mean reward")


def coefficient_tracks(arms: Sequence[Tracks]) -> str:
    """The coefficients that are moved; their coefficients mean different things, so that every small picture has its scale."""
    moved = [arm for arm in arms if arm.steered and arm.has("entropy/coefficient")]
    curves = {}
    for arm in moved:
        curves[arm.place] = _over_seeds(arm, lambda run: run.column("entropy/coefficient"))
        for bound in ("entropy/coefficient_low", "entropy/coefficient_high"):
            limits = _over_seeds(arm, lambda run, bound=bound: run.column(bound), band=False)
            curves[arm.place] += [replace(s, name="", style="dotted", legend=False) for s in limits]
    values = [v for drawn in curves.values() for s in drawn for v in finite(s.y)]
    log = bool(values) and min(values) > 0.0 and max(values) / min(values) > 50
    if log:  # a band that reaches below zero has no place on a logarithmic scale
        curves = {place: [replace(s, low=(), high=()) for s in drawn] for place, drawn in curves.items()}
    note = "Mean over seeds. Dotted: its bounds."
    return pictures("Entropy coefficient", moved, curves, note=note, y_label="coefficient", log_y=log, shared=False)


def relative(run: RunData, key: str) -> list[float]:
    """A key over the entropy the run started from (the mean of its first 3 iterations that have it)."""
    first = mean(finite(run.column("entropy/exact"))[:3])
    return [value / first if first > 0.0 else math.nan for value in run.column(key)]


def _smooth(values: Sequence[float]) -> list[float]:
    """A rolling mean where there are enough iterations: the noise of single batches would hide the spread of seeds."""
    return plots.smooth(values, max(2, len(values) // 40))[0] if len(finite(values)) >= 30 else list(values)


def _over_seeds(arm: Tracks, values: Callable[[RunData], Sequence[float]], band: bool = True) -> list[Series]:
    """Mean and band over the seeds at every iteration that any of them has; empty where there is nothing to draw."""
    at: dict[float, list[float]] = {}
    for run in arm.runs:
        for iteration, value in zip(run.column("iteration"), values(run), strict=True):
            if math.isfinite(iteration) and math.isfinite(value):
                at.setdefault(iteration, []).append(value)
    if not at:
        return []
    x = sorted(at)
    middle, around = [mean(at[i]) for i in x], [std(at[i]) for i in x]
    drawn = band and any(map(math.isfinite, around))
    low = [m - a for m, a in zip(middle, around, strict=True)] if drawn else ()
    high = [m + a for m, a in zip(middle, around, strict=True)] if drawn else ()
    return [Series(arm.name, x, middle, arm.place, "line", low, high)]


# ---------------------------------------------------------------- pass@k


def pass_by_k(results: Mapping[str, Any]) -> str:
    """pass@k against k at the first temperature after training, and before it for reference."""
    arms = [Tracks(arm["name"], i, ()) for i, arm in enumerate(results["arms"])]
    curves = {i: _pass_curve(arm, i) for i, arm in enumerate(results["arms"])}
    before = [replace(s, style="dashed", low=(), high=()) for s in _pass_curve(results["start"], NEUTRAL)]
    ticks = sorted({float(k) for drawn in curves.values() for s in drawn for k in s.x})
    note = "Mean over seeds; band: ±1 standard deviation. Dashed, grey: before training."
    title = f"pass@k at {first_temperature(results)}"
    axes = {"x_label": "k", "log_x": len(ticks) > 1, "x_ticks": ticks}
    return pictures(title, arms, curves, reference=before, note=note, **axes)


def _pass_curve(arm: Mapping[str, Any], colour: int) -> list[Series]:
    ks = sorted(pass_counts(arm["figures"]))
    found = [stat(arm, f"pass@{k}/end") for k in ks]
    if not found:
        return []
    middle, drawn = [s.mean for s in found], any(math.isfinite(s.std) for s in found)
    low = [s.mean - s.std for s in found] if drawn else ()
    high = [s.mean + s.std for s in found] if drawn else ()
    return [Series(arm["name"], [float(k) for k in ks], middle, colour, "line", low, high)]


# ---------------------------------------------------------------- one picture or many


def pictures(
    title: str,
    arms: Sequence[Tracks],
    curves: Mapping[int, list[Series]],
    *,
    reference: Sequence[Series] | None = None,
    note: str = "",
    shared: bool = True,
    zero: bool = False,
    log_y: bool = False,
    **options: Any,
) -> str:
    """One picture of all arms, or small multiples when two of them would have the same colour.

    `curves` has the series of each arm by its place; the first of an arm is its main line. `reference` is drawn in every
    picture; left out, it is the main line of the first arm, and in the small multiples only.
    """
    drawn = [arm for arm in arms if curves.get(arm.place)]
    options |= {"zero": zero, "log_y": log_y}
    if len({plots.shade(arm.place) for arm in arms}) == len(arms):
        every = [*(reference or ()), *(s for arm in drawn for s in curves[arm.place])]
        return plots.line_chart(title, every, note=note, **options) if drawn else ""
    if reference is None:
        first = curves[drawn[0].place][0] if drawn and shared else None
        reference = [replace(first, colour=NEUTRAL, style="faint", low=(), high=(), legend=False)] if first else []
    alike = [s for arm in drawn for s in curves[arm.place]]
    up = plots.axis(plots.values_of([*alike, *reference]), log=log_y, zero=zero) if shared else None
    small = ""
    for arm in drawn:
        own = curves[arm.place]
        behind = [s for s in reference if s.name != own[0].name]
        small += plots.line_chart(arm.name, [*behind, *own], size=SMALL, up=up, **options)
    if not small:
        return ""
    grey = f" Grey: {reference[0].name}." if reference and reference[0].name != "start" else ""
    return broad(f'<h3>{escape(title)}</h3><p class="note">{escape(note + grey)}</p><div class="small">{small}</div>')


def broad(markup: str) -> str:
    """Markup that takes a whole row of the page's grid."""
    return f'<div class="broad">{markup}</div>' if markup else ""
