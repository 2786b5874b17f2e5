"""Draws points with error bars and places their names so that they do not cover one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestration.report.svg.axes import HEIGHT, LEFT, TOP, WIDTH, Axis, Pane, axis
from orchestration.report.svg.charts import figure
from orchestration.report.svg.marks import NEUTRAL, Series, frame, line_mark, shade
from orchestration.report.visible import escaped

LETTER, LINE = 6.1, 13.0  # drawing units: the mean width of a letter and the height of a line of chart text
LONGEST = 30  # letters of a name that are shown; the tooltip has all of them
RADIUS = 4.5
# Where a name may stand: at these distances from its point, in these directions, the first of equals preferred.
REACH = (9.0, 16.0, 26.0, 38.0, 52.0, 70.0)
DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))


@dataclass(frozen=True, slots=True)
class Point:
    """Holds a named point with half-widths of its error bars (NaN: none). `mark` is dot, ring or diamond."""

    name: str
    x: float
    y: float
    dx: float = math.nan
    dy: float = math.nan
    colour: int = 0
    mark: str = "dot"
    bold: bool = False


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float


def point_chart(
    title: str,
    points: Sequence[Point],
    *,
    line: Sequence[Point] = (),
    note: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> str:
    """Draws named points with error bars, and a thin line through the points of `line`; empty text without a finite point."""
    points = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not points:
        return ""
    pane = Pane(_axis(points, "x"), _axis(points, "y"), *size)
    path = Series("", [p.x for p in line], [p.y for p in line], NEUTRAL, "faint", legend=False)
    marks = line_mark(path, pane) + "".join(_bars(p, pane) for p in points)
    marks += "".join(_mark(p, pane) for p in points)
    series = [Series(p.name, [p.x], [p.y], p.colour, "points") for p in points]
    body = frame(pane, x_label, y_label, True) + marks + _names(points, pane)
    return figure(title, note, body, series, pane, "point", legend=False)


def _axis(points: Sequence[Point], side: str) -> Axis:
    """Builds the axis that shows every point with its bar."""
    values = []
    for p in points:
        middle, half_width = (p.x, p.dx) if side == "x" else (p.y, p.dy)
        values += [middle, middle - half_width, middle + half_width]  # an axis ignores NaN (no bar)
    return axis(values)


def _bars(p: Point, pane: Pane) -> str:
    kind, x, y = f'class="bar {shade(p.colour)}"', pane.x(p.x), pane.y(p.y)
    across, up = (pane.x(p.x - p.dx), pane.x(p.x + p.dx)), (pane.y(p.y - p.dy), pane.y(p.y + p.dy))
    out = ""
    if all(map(math.isfinite, across)):
        out += f'<line {kind} x1="{across[0]:.1f}" x2="{across[1]:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    if all(map(math.isfinite, up)):
        out += f'<line {kind} x1="{x:.1f}" x2="{x:.1f}" y1="{up[0]:.1f}" y2="{up[1]:.1f}"/>'
    return out


def _mark(p: Point, pane: Pane) -> str:
    x, y = pane.x(p.x), pane.y(p.y)
    if p.mark == "diamond":
        r = RADIUS + 1.5
        corners = f"M{x:.1f} {y - r:.1f}L{x + r:.1f} {y:.1f}L{x:.1f} {y + r:.1f}L{x - r:.1f} {y:.1f}Z"
        return f'<path class="ring {shade(p.colour)}" d="{corners}"/>'
    return f'<circle class="{p.mark} {shade(p.colour)}" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"/>'


def _names(points: Sequence[Point], pane: Pane) -> str:
    anchors = [(pane.x(p.x), pane.y(p.y)) for p in points]
    shown = [p.name if len(p.name) <= LONGEST else p.name[: LONGEST - 1] + "…" for p in points]
    plot_area, lines = Box(LEFT, TOP, pane.right, pane.base), [box for p in points for box in _bar_boxes(p, pane)]
    boxes = place_names(anchors, [len(name) * LETTER for name in shown], plot_area, lines)
    out = ""
    for p, name, (x, y), box in zip(points, shown, anchors, boxes, strict=True):
        # A name that had to move away keeps a line to its point.
        near = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if math.dist((x, y), near) > REACH[1]:
            out += f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{near[0]:.1f}" y2="{near[1]:.1f}"/>'
        # Anchored on the side of the point: the width of the letters is a guess.
        side = "start" if box.left >= x else "end" if box.right <= x else "middle"
        at = {"start": box.left, "end": box.right, "middle": (box.left + box.right) / 2}[side]
        kind = "who front" if p.bold else "who"
        out += f'<text class="{kind}" x="{at:.1f}" y="{box.bottom - 3:.1f}" text-anchor="{side}">{escaped(name)}</text>'
    return out


def _bar_boxes(p: Point, pane: Pane) -> list[Box]:
    """Returns the areas that the point's error bars cover."""
    x, y, thick = pane.x(p.x), pane.y(p.y), 1.5
    out = []
    if math.isfinite(p.dx):
        out.append(Box(pane.x(p.x - p.dx), y - thick, pane.x(p.x + p.dx), y + thick))
    if math.isfinite(p.dy):
        out.append(Box(x - thick, pane.y(p.y + p.dy), x + thick, pane.y(p.y - p.dy)))
    return out


def place_names(
    anchors: Sequence[tuple[float, float]], widths: Sequence[float], frame: Box, lines: Sequence[Box] = ()
) -> list[Box]:
    """Finds a box for each name near its point, one after the other, where it covers least of points and names placed before.

    `lines` are covered only where no other box is free. The points with most neighbours choose first, while there is room.
    """
    dots = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in anchors]
    crowd = [sum(abs(x - a) < 120 and abs(y - b) < 40 for a, b in anchors) for x, y in anchors]
    placed: dict[int, Box] = {}
    for i in sorted(range(len(anchors)), key=lambda i: (-crowd[i], i)):
        taken = [*dots, *placed.values()]
        choices = [
            (_cost(box, taken, lines, frame) + reach, order, box)
            for order, (reach, box) in enumerate(_choices(*anchors[i], widths[i]))
        ]
        placed[i] = min(choices)[2]
    return [placed[i] for i in range(len(anchors))]


def _choices(x: float, y: float, width: float) -> list[tuple[float, Box]]:
    out = []
    for reach in REACH:
        for right, down in DIRECTIONS:
            left = x + right * reach - (0.0 if right > 0 else width if right < 0 else width / 2)
            # Beside the point the text is centred on it; above and below it keeps the distance.
            middle = y + down * (reach + LINE / 2 if right == 0 else reach)
            out.append((reach, Box(left, middle - LINE / 2, left + width, middle + LINE / 2)))
    return out


def _cost(box: Box, taken: Sequence[Box], lines: Sequence[Box], frame: Box) -> float:
    """Weighs what is covered or outside the frame so high that any free position within reach costs less."""
    area = (box.right - box.left) * (box.bottom - box.top)
    solid = sum(_overlap(box, other) for other in taken) + 10.0 * (area - _overlap(box, frame))
    return 100.0 * solid + sum(_overlap(box, line) for line in lines)


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a.right, b.right) - max(a.left, b.left), min(a.bottom, b.bottom) - max(a.top, b.top)
    return wide * high if wide > 0.0 and high > 0.0 else 0.0
