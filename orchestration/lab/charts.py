"""Draws the charts of a lab's report: arms beside one another, each as the mean over its seeds with its spread.

Up to 8 arms share a chart, a colour each. More get small multiples: one little chart an arm, all to one scale, with the first
arm thin and grey in each for reference.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestration.analysis.run_data import RunData
from orchestration.lab.compare import pareto
from orchestration.lab.results import ArmResult, LabResults
from orchestration.lab.run_metrics import pass_counts
from orchestration.lab.tables import temperature_text
from orchestration.report.svg.axes import HEIGHT, WIDTH, axis
from orchestration.report.svg.charts import line_chart
from orchestration.report.svg.marks import NEUTRAL, PALETTE, Series, shade, smooth, values_of
from orchestration.report.svg.points import Point, point_chart
from orchestration.stats import finite, mean, std

SMALL = (356.0, 190.0)  # drawing units of one of the small multiples: three of them fill a row
LARGE = (1100.0, 440.0)  # of the Pareto charts of many arms: a whole row


@dataclass(frozen=True, slots=True)
class ArmTracks:
    """Holds the finished runs of one arm, and its index in the lab, which is its colour."""

    name: str
    index: int
    runs: Sequence[RunData]
    steered: bool = False

    def has(self, *keys: str) -> bool:
        return any(run.has(*keys) for run in self.runs)


@dataclass(frozen=True, slots=True)
class Panel:
    """Holds one chart, or small multiples under a common title; a wide panel takes a whole row of the page."""

    charts: Sequence[str]  # SVG
    title: str = ""
    note: str = ""
    wide: bool = False


def pareto_chart(results: LabResults, x: str, y: str, title: str, note: str = "") -> Panel | None:
    """Draws two metrics of every arm, bars of one standard deviation over its seeds, a diamond for the start.

    The line joins the arms that no other dominates, whose names are bold. None where no arm has both metrics.
    """
    front = set(pareto(results.arms, x, y))
    points = [_point(arm, x, y, i, bold=arm.name in front) for i, arm in enumerate(results.arms)]
    line = sorted((p for p in points if p.bold), key=lambda p: (p.x, -p.y))
    if not any(math.isfinite(p.x) and math.isfinite(p.y) for p in points):
        return None
    start = replace(_point(results.start, x, y, NEUTRAL), mark="diamond")
    legend = "Bars: ±1 standard deviation over seeds. Bold, joined: no arm is better in both means. Diamond: before training."
    many = len(points) > PALETTE
    chart = point_chart(
        title,
        [*points, start],
        line=line,
        note=f"{note} {legend}".strip(),
        x_label=x.partition("/")[0],
        y_label=y.partition("/")[0],
        size=LARGE if many else (WIDTH, HEIGHT + 70),
    )
    return Panel([chart], wide=many)


def _point(arm: ArmResult, x: str, y: str, colour: int, bold: bool = False) -> Point:
    across, up = arm.spread(x), arm.spread(y)
    mark = "dot" if colour < PALETTE else "ring"  # the palette's second round
    return Point(arm.name, across.mean, up.mean, across.std, up.std, colour, mark, bold)


# ---------------------------------------------------------------- over iterations


def entropy_tracks(arms: Sequence[ArmTracks]) -> Panel | None:
    """Draws exact entropy over its own start, so that arms and seeds with other starts compare."""
    curves = {arm.index: _over_seeds(arm, lambda run: _smooth(relative(run, "entropy/exact"))) for arm in arms}
    for arm in arms:
        if arm.steered and arm.index in curves:
            (target,) = _over_seeds(arm, lambda run: relative(run, "entropy/target"), band=False) or [None]
            if target:
                curves[arm.index].append(replace(target, name=f"{arm.name}, target", style="dashed", legend=False))
    note = "1 is the start. Line: mean over seeds of rolling means; band: ±1 standard deviation between seeds; dashed: target."
    return panel("Exact entropy over its start", arms, curves, note=note, y_label="H / H at the start", zero=True)


def reward_tracks(arms: Sequence[ArmTracks]) -> Panel | None:
    """Draws the mean reward of every iteration."""
    curves = {arm.index: _over_seeds(arm, lambda run: _smooth(run.column("reward/mean"))) for arm in arms}
    note = "Line: mean over seeds of rolling means; band: ±1 standard deviation between seeds."
    return panel("Reward", arms, curves, note=note, y_label="mean reward")


def coefficient_tracks(arms: Sequence[ArmTracks]) -> Panel | None:
    """Draws the coefficients that controllers move. They mean different things, so that every small chart has its scale."""
    moved = [arm for arm in arms if arm.steered and arm.has("entropy/coefficient")]
    curves = {}
    for arm in moved:
        curves[arm.index] = _over_seeds(arm, lambda run: run.column("entropy/coefficient"))
        for bound in ("entropy/coefficient_low", "entropy/coefficient_high"):
            limits = _over_seeds(arm, lambda run, bound=bound: run.column(bound), band=False)
            curves[arm.index] += [replace(s, name="", style="dotted", legend=False) for s in limits]
    values = [v for drawn in curves.values() for s in drawn for v in finite(s.y)]
    log = bool(values) and min(values) > 0.0 and max(values) / min(values) > 50
    if log:  # a band that reaches below zero has no position on a logarithmic scale
        curves = {index: [replace(s, low=(), high=()) for s in drawn] for index, drawn in curves.items()}
    note = "Mean over seeds. Dotted: its bounds."
    return panel("Entropy coefficient", moved, curves, note=note, y_label="coefficient", log_y=log, shared=False)


def relative(run: RunData, key: str) -> list[float]:
    """Returns a key over the entropy the run started from (the mean of its first 3 iterations that have it)."""
    first = mean(finite(run.column("entropy/exact"))[:3])
    return [value / first if first > 0.0 else math.nan for value in run.column(key)]


def _smooth(values: Sequence[float]) -> list[float]:
    """Takes a rolling mean where there are enough iterations: the noise of single batches would hide the spread of seeds."""
    return smooth(values, max(2, len(values) // 40))[0] if len(finite(values)) >= 30 else list(values)


def _over_seeds(arm: ArmTracks, values: Callable[[RunData], Sequence[float]], band: bool = True) -> list[Series]:
    """Returns mean and band over the seeds at every iteration that any of them has; empty without a finite value."""
    at: dict[float, list[float]] = {}
    for run in arm.runs:
        for iteration, value in zip(run.column("iteration"), values(run), strict=True):
            if math.isfinite(iteration) and math.isfinite(value):
                at.setdefault(iteration, []).append(value)
    if not at:
        return []
    x = sorted(at)
    middle, deviation = [mean(at[i]) for i in x], [std(at[i]) for i in x]
    drawn = band and any(map(math.isfinite, deviation))
    low = [m - d for m, d in zip(middle, deviation, strict=True)] if drawn else ()
    high = [m + d for m, d in zip(middle, deviation, strict=True)] if drawn else ()
    return [Series(arm.name, x, middle, arm.index, "line", low, high)]


# ---------------------------------------------------------------- pass@k


def pass_by_k(results: LabResults) -> Panel | None:
    """Draws pass@k against k at the first temperature after training, and before it for reference."""
    arms = [ArmTracks(arm.name, i, ()) for i, arm in enumerate(results.arms)]
    curves = {i: _pass_curve(arm, i) for i, arm in enumerate(results.arms)}
    before = [replace(s, style="dashed", low=(), high=()) for s in _pass_curve(results.start, NEUTRAL)]
    ticks = sorted({float(k) for drawn in curves.values() for s in drawn for k in s.x})
    note = "Mean over seeds; band: ±1 standard deviation. Dashed, grey: before training."
    title = f"pass@k at {temperature_text(results)}"
    axes = {"x_label": "k", "log_x": len(ticks) > 1, "x_ticks": ticks}
    return panel(title, arms, curves, reference=before, note=note, **axes)


def _pass_curve(arm: ArmResult, colour: int) -> list[Series]:
    ks = sorted(pass_counts(arm.metrics))
    spreads = [arm.spread(f"pass@{k}/end") for k in ks]
    if not spreads:
        return []
    middle, drawn = [s.mean for s in spreads], any(math.isfinite(s.std) for s in spreads)
    low = [s.mean - s.std for s in spreads] if drawn else ()
    high = [s.mean + s.std for s in spreads] if drawn else ()
    return [Series(arm.name, [float(k) for k in ks], middle, colour, "line", low, high)]


# ---------------------------------------------------------------- one chart or many


def panel(
    title: str,
    arms: Sequence[ArmTracks],
    curves: Mapping[int, list[Series]],
    *,
    reference: Sequence[Series] | None = None,
    note: str = "",
    shared: bool = True,
    zero: bool = False,
    log_y: bool = False,
    **options: Any,
) -> Panel | None:
    """Draws one chart of all arms, or small multiples when two of them would have the same colour; None without data.

    `curves` has the series of each arm by its index; the first of an arm is its main line. `reference` is drawn in every
    chart; left out, it is the main line of the first arm, and in the small multiples only. `shared` gives those one scale.
    """
    drawn = [arm for arm in arms if curves.get(arm.index)]
    if not drawn:
        return None
    options |= {"zero": zero, "log_y": log_y}
    if len({shade(arm.index) for arm in arms}) == len(arms):
        every = [*(reference or ()), *(s for arm in drawn for s in curves[arm.index])]
        return Panel([line_chart(title, every, note=note, **options)])
    if reference is None:
        first = curves[drawn[0].index][0] if shared else None
        reference = [replace(first, colour=NEUTRAL, style="faint", low=(), high=(), legend=False)] if first else []
    alike = [s for arm in drawn for s in curves[arm.index]]
    up = axis(values_of([*alike, *reference]), log=log_y, zero=zero) if shared else None
    small = []
    for arm in drawn:
        own = curves[arm.index]
        behind = [s for s in reference if s.name != own[0].name]
        small.append(line_chart(arm.name, [*behind, *own], size=SMALL, up=up, **options))
    grey = f" Grey: {reference[0].name}." if reference and reference[0].name != "start" else ""
    return Panel(small, title, note + grey, wide=True)
