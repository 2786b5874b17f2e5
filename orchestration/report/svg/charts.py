"""Draws whole charts as SVG text, safe to inline in a page: no library and no network.

Every function is pure: numbers in, a string out. `assets/report.css` has the colours and `assets/report.js` the tooltip; a page
inlines both once. Text is escaped here, so that callers pass names as they are.
"""

import json
import math
from collections.abc import Sequence

from orchestration.report.svg.axes import HEIGHT, LEFT, TOP, WIDTH, Axis, Pane, axis
from orchestration.report.svg.marks import (
    Series,
    band_mark,
    clipped,
    frame,
    line_mark,
    point_marks,
    shade,
    thin,
    values_of,
    zero_lines,
)
from orchestration.report.visible import escaped, visible


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    x_label: str = "iteration",
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
    x_ticks: Sequence[float] = (),
    up: Axis | None = None,
    lines: Sequence[float] = (),
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> str:
    """Draws lines over x, each with an optional band; empty text when no series has a finite point.

    `up` is the vertical axis, where several charts share one; `lines` are values of x marked by a vertical line; `size` is width
    and height in drawing units.
    """
    series = [thin(s) for s in series if any(map(math.isfinite, s.y))]
    if not series:
        return ""
    across = axis([v for s in series for v in s.x], log=log_x, pad=0.0)
    if x_ticks:
        across = Axis(across.low, across.high, tuple(x_ticks), across.log)
    pane = Pane(across, up or axis(values_of(series), log=log_y, zero=zero), *size)
    marks = "".join(
        f'<line class="edge" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{pane.base}"/>' for x in map(pane.x, lines)
    )
    marks += "".join(band_mark(s, pane) for s in series if s.low and s.high)
    marks += "".join(line_mark(s, pane) for s in series)
    return figure(title, note, frame(pane, x_label, y_label) + marks, series, pane, "x")


def scatter_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    x_label: str = "",
    y_label: str = "",
    trim: float = 0.0,
) -> str:
    """Draws clouds of points and lines through them; empty text without a finite point.

    `trim` is the share of points at each end of each axis that the range may leave out: a few outliers would otherwise
    squeeze the cloud into a dot.
    """
    series = [s for s in series if any(math.isfinite(x) and math.isfinite(y) for x, y in zip(s.x, s.y, strict=True))]
    if not series:
        return ""
    across = axis(_trimmed([v for s in series if s.style == "points" for v in s.x] or [0.0, 1.0], trim))
    up = axis(_trimmed([v for s in series if s.style == "points" for v in s.y] or [0.0, 1.0], trim))
    pane = Pane(across, up)
    marks = zero_lines(pane) + "".join(
        point_marks(s, pane) if s.style == "points" else line_mark(s, pane) for s in series
    )
    return figure(title, note, frame(pane, x_label, y_label, True) + clipped(pane, marks), series, pane, "point")


def stacked_chart(
    title: str, layers: Sequence[Series], *, note: str = "", x_label: str = "iteration", y_label: str = ""
) -> str:
    """Draws areas on top of each other, over one shared x; a missing value counts as zero."""
    layers = [s for s in layers if any(math.isfinite(v) and v > 0.0 for v in s.y)]
    if not layers:
        return ""
    floor = [0.0] * len(layers[0].x)
    areas: list[Series] = []
    for layer in layers:
        top = [f + (v if math.isfinite(v) else 0.0) for f, v in zip(floor, layer.y, strict=True)]
        areas.append(Series(layer.name, layer.x, top, layer.colour, "area", tuple(floor), tuple(top)))
        floor = top
    pane = Pane(axis(layers[0].x, pad=0.0), axis(floor, zero=True))
    marks = "".join(band_mark(thin(area), pane, "area") for area in reversed(areas))
    # The tooltip shows the value of each layer, the chart the running total.
    return figure(title, note, frame(pane, x_label, y_label) + marks, layers, pane, "x")


def figure(
    title: str, note: str, body: str, series: Sequence[Series], pane: Pane, hover: str, legend: bool = True
) -> str:
    """Wraps a drawing in a figure with its title, its legend and the data its tooltip needs."""
    named = [s for s in series if s.legend and s.name] if legend else []
    keys = "".join(
        f'<span class="key"><i class="{s.style} {shade(s.colour)}"></i>{escaped(s.name)}</span>' for s in named
    )
    # A page about a single run hides a legend of one entry (`.single` on its body): the title has the name already.
    keyed = f'<div class="legend{"" if len(named) > 1 else " one"}">{keys}</div>' if named else ""
    data = {
        "hover": hover,
        "x": [pane.across.low, pane.across.high, pane.across.log],
        "y": [pane.up.low, pane.up.high, pane.up.log],
        "width": pane.width,
        "box": [LEFT, pane.right, TOP, pane.base],
        "series": [
            {"name": visible(s.name), "c": shade(s.colour), "x": _short(s.x), "y": _short(s.y)}
            for s in map(thin, series)
            if s.legend and (hover == "x" or s.style == "points")
        ],
    }
    aside = f'<p class="note">{escaped(note)}</p>' if note else ""
    packed = escaped(json.dumps(data, separators=(",", ":")))
    return (
        f'<figure data-chart="{packed}"><figcaption>{escaped(title)}</figcaption>'
        f'{keyed}<svg class="chart" viewBox="0 0 {pane.width} {pane.height}" role="img" aria-label="{escaped(title)}">'
        f'{body}<line class="cross" y1="{TOP}" y2="{pane.base}"/></svg>{aside}</figure>'
    )


def _trimmed(values: Sequence[float], share: float) -> list[float]:
    ordered = sorted(v for v in values if math.isfinite(v))
    dropped = int(len(ordered) * share)
    return ordered[dropped : len(ordered) - dropped] or ordered


def _short(values: Sequence[float]) -> list[float | None]:
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values]
