"""Draws the marks of a chart as SVG text: lines, bands, points, grid lines and tick labels.

Colours are CSS classes (`c0` .. `c7`) that `assets/report.css` defines for light and dark pages. A value that is not finite
leaves a gap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestration.report.svg.axes import LEFT, TOP, Pane
from orchestration.report.visible import escaped
from orchestration.text import label

PALETTE = 8
NEUTRAL = -1  # the colour of what is shown for reference beside the things compared
MAX_POINTS = 400  # more than a column has pixels: longer series are thinned, see `thin`


@dataclass(frozen=True, slots=True)
class Series:
    """Holds one line, cloud or layer. `colour` indexes the palette; `style` is line, dashed, dotted, faint, points or area.

    Series("exact", x=[0, 1, 2], y=[1.2, 1.1, 1.0], colour=0, low=[1.1, 1.0, 0.9], high=[1.3, 1.2, 1.1])
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    style: str = "line"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    legend: bool = True


def shade(colour: int) -> str:
    """Returns the CSS class of a colour; the palette starts again after its last one."""
    return "cn" if colour < 0 else f"c{colour % PALETTE}"


def smooth(values: Sequence[float], reach: int) -> tuple[list[float], list[float]]:
    """Returns the centred rolling mean and spread over 2 * reach + 1 values (fewer at the ends), finite values only."""
    means, spreads = [], []
    for i in range(len(values)):
        window = [v for v in values[max(0, i - reach) : i + reach + 1] if math.isfinite(v)]
        centre = sum(window) / len(window) if window else math.nan
        means.append(centre)
        spreads.append(math.sqrt(sum((v - centre) ** 2 for v in window) / len(window)) if window else math.nan)
    return means, spreads


def values_of(series: Sequence[Series]) -> list[float]:
    """Returns every height that the series reach, bands included: the values a vertical axis has to show."""
    return [v for s in series for values in (s.y, s.low, s.high) for v in values]


def thin(series: Series) -> Series:
    """Drops points of a long series, keeping the smallest and largest y of each bucket so that spikes survive."""
    size = len(series.x)
    if size <= MAX_POINTS or series.style == "points":
        return series
    keep: set[int] = {0, size - 1}
    stride = size / (MAX_POINTS / 2)
    for bucket in range(MAX_POINTS // 2):
        inside = [i for i in range(int(bucket * stride), int((bucket + 1) * stride)) if math.isfinite(series.y[i])]
        if inside:
            keep |= {min(inside, key=series.y.__getitem__), max(inside, key=series.y.__getitem__)}
    order = sorted(keep)
    x, y, low, high = (
        [values[i] for i in order] if values else () for values in (series.x, series.y, series.low, series.high)
    )
    return replace(series, x=x, y=y, low=low, high=high)


def frame(pane: Pane, x_label: str, y_label: str, inner: bool = False) -> str:
    """Draws grid lines, tick labels and axis names; with `inner`, vertical grid lines instead of the horizontal axis."""
    parts = []
    across, up = pane.across, pane.up
    large = max(map(abs, up.ticks), default=0.0) >= 1e-3  # then the small ones are written out like it
    for tick in up.ticks:
        words = f"{tick:.4g}" if large and abs(tick) < 1e-3 and not up.log else label(tick)
        y = pane.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{pane.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{words}</text>')
    for tick in across.ticks:
        x = pane.x(tick)
        if inner:
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{pane.base}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{pane.base + 15}" text-anchor="middle">{label(tick)}</text>')
    if not inner:
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{pane.right}" y1="{pane.base}" y2="{pane.base}"/>')
    middle, centre = (LEFT + pane.right) / 2, (TOP + pane.base) / 2
    parts.append(
        f'<text class="name" x="{middle}" y="{pane.height - 4}" text-anchor="middle">{escaped(x_label)}</text>'
    )
    if y_label:
        turn = f"translate(6 {centre}) rotate(-90)"
        parts.append(f'<text class="name" transform="{turn}" text-anchor="middle">{escaped(y_label)}</text>')
    return "".join(parts)


def zero_lines(pane: Pane) -> str:
    """Draws the lines x = 0 and y = 0 where they are inside the chart."""
    return "".join(
        f'<line class="zero" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'
        for x1, x2, y1, y2 in (
            (LEFT, pane.right, pane.y(0.0), pane.y(0.0)),
            (pane.x(0.0), pane.x(0.0), TOP, pane.base),
        )
        if LEFT <= x1 <= pane.right and TOP <= y1 <= pane.base
    )


def clipped(pane: Pane, marks: str) -> str:
    """Clips the marks at the edges of the plotting area."""
    wide, high = pane.right - LEFT, pane.base - TOP
    box = f'x="{LEFT}" y="{TOP}" width="{wide}" height="{high}" viewBox="{LEFT} {TOP} {wide} {high}"'
    return f"<svg {box}>{marks}</svg>"


def _unbroken(points: Sequence[tuple[float, ...]]) -> list[list[tuple[float, ...]]]:
    """Splits at the points with a coordinate that is not finite."""
    pieces: list[list[tuple[float, ...]]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def line_mark(s: Series, pane: Pane) -> str:
    """Draws a line, with dots where a point has no neighbours."""
    xs, ys = [pane.x(v) for v in s.x], [pane.y(v) for v in s.y]
    runs = _unbroken(list(zip(xs, ys, strict=True)))
    path = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) for run in runs if len(run) > 1)
    parts = [f'<path class="{s.style} {shade(s.colour)}" d="{path}"/>'] if path else []
    # A point on its own has no length: without a dot it would be invisible. Short series get dots throughout.
    dots = [
        p
        for run in runs
        if len(run) == 1 or (len(xs) <= 12 and s.legend and s.style in ("line", "dashed"))
        for p in run
    ]
    parts += [f'<circle class="dot {shade(s.colour)}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in dots]
    return "".join(parts)


def point_marks(s: Series, pane: Pane) -> str:
    """Draws every point: a few as large dots, many as a translucent cloud."""
    positions = [(pane.x(x), pane.y(y)) for x, y in zip(s.x, s.y, strict=True)]
    kind, radius = ("dot", 4.5) if len(positions) <= 12 else ("cloud", 2.8)
    return "".join(
        f'<circle class="{kind} {shade(s.colour)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
        for x, y in positions
        if math.isfinite(x) and math.isfinite(y)
    )


def band_mark(s: Series, pane: Pane, kind: str = "band") -> str:
    """Fills the area between `low` and `high`."""
    points = [(pane.x(x), pane.y(a), pane.y(b)) for x, a, b in zip(s.x, s.low, s.high, strict=True)]
    path = ""
    for run in _unbroken(points):
        there = "L".join(f"{x:.1f} {high:.1f}" for x, _, high in run)
        back = "L".join(f"{x:.1f} {low:.1f}" for x, low, _ in reversed(run))
        path += f"M{there}L{back}Z"
    return f'<path class="{kind} {shade(s.colour)}" d="{path}"/>'
