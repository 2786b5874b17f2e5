"""Charts as SVG text, made here: no library, no network, safe to inline in a page.

Every function is pure: numbers in, a string out. Colours are CSS classes (`c0` .. `c7`) that `STYLE` defines for
light and dark pages; `SCRIPT` adds the tooltip. Both are inlined once by whoever builds the page. Text is escaped here,
so that callers pass names as they are. A value that is not finite leaves a gap.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from orchestration.text import label

WIDTH, HEIGHT = 540, 250  # drawing units; the page scales the picture to its column
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 36  # margins around the plotting area
PALETTE = 8
NEUTRAL = -1  # the colour of what is shown for reference beside the things compared
MAX_POINTS = 400  # more than a column has pixels: longer series are thinned, see `_thin`


@dataclass(frozen=True, slots=True)
class Series:
    """One line, cloud or layer. `colour` indexes the palette; `style` is line, dashed, dotted, faint, points or area.

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
    """The CSS class of a colour; the palette starts again after its last one."""
    return "cn" if colour < 0 else f"c{colour % PALETTE}"


TINY = 1e-300  # nothing smaller has a place of its own: its steps would have no logarithm


@dataclass(frozen=True, slots=True)
class Axis:
    """How values become positions: the range, the ticks, and whether the scale is logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...] = field(default=())
    log: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Position of a value between `start` (for `low`) and `end` (for `high`); NaN if it has none."""
        if not math.isfinite(value) or (self.log and value <= TINY):
            return math.nan
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return start + (at - low) / (high - low) * (end - start)


@dataclass(frozen=True, slots=True)
class Pane:
    """Where a picture draws: its two axes and its size in drawing units."""

    across: Axis
    up: Axis
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def right(self) -> float:
        return self.width - RIGHT

    @property
    def base(self) -> float:
        return self.height - BOTTOM

    def x(self, value: float) -> float:
        return self.across.place(value, LEFT, self.right)

    def y(self, value: float) -> float:
        return self.up.place(value, self.base, TOP)


# ---------------------------------------------------------------- numbers


def nice_step(span: float, count: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that needs at most about `count` steps for `span`."""
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next((m * power for m in (1.0, 2.0, 2.5, 5.0) if m * power >= raw * 0.999), 10.0 * power)


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Round numbers inside [low, high], about `count` of them, in rising order."""
    if not high > low:
        return (low,)
    step = nice_step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(i * step + 0.0 for i in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten inside [low, high]; with fewer than two of them also 2 and 5 times a power."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, len(powers) // 6)
    tens = [10.0**p for p in powers if p % stride == 0 and low * 0.999 <= 10.0**p <= high * 1.001]
    if len(tens) >= 2:
        return tuple(tens)
    fine = [m * 10.0**p for p in powers for m in (1.0, 2.0, 5.0)]
    return tuple(v for v in fine if low * 0.999 <= v <= high * 1.001) or (low, high)


def axis(values: Sequence[float], *, log: bool = False, zero: bool = False, pad: float = 0.06, count: int = 5) -> Axis:
    """An axis that shows all finite values. `zero` makes it start (or end) at zero; `pad` is a share of the span."""
    finite = [v if abs(v) > TINY else 0.0 for v in values if math.isfinite(v) and (not log or v > TINY)]
    if not finite:
        return Axis(0.0, 1.0, (0.0, 0.5, 1.0))
    low, high = min(finite), max(finite)
    if log:
        low, high = (low / 1.15, high * 1.15) if pad else (low, high * (1.0 if high > low else 2.0))
        return Axis(low, high, log_ticks(low, high), log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        # A constant: a range that is about as large as the value itself, not noise blown up.
        margin = abs(high) * 0.5 or 0.5
        low, high = (0.0, 1.0) if zero else (low - margin, high + margin)
    margin = (high - low) * pad
    # Never a tick below zero for a quantity that is not negative, nor room under a floor of zero.
    floor = 0.0 if low >= 0.0 else -math.inf
    low, high = max(low - margin, floor), high + margin if high != 0.0 else high
    return Axis(low, high, nice_ticks(low, high, count))


def smooth(values: Sequence[float], reach: int) -> tuple[list[float], list[float]]:
    """Centred rolling mean and spread over 2 * reach + 1 values (fewer at the ends), finite values only."""
    means, spreads = [], []
    for i in range(len(values)):
        window = [v for v in values[max(0, i - reach) : i + reach + 1] if math.isfinite(v)]
        centre = sum(window) / len(window) if window else math.nan
        means.append(centre)
        spreads.append(math.sqrt(sum((v - centre) ** 2 for v in window) / len(window)) if window else math.nan)
    return means, spreads


def _thin(series: Series) -> Series:
    """Keep the smallest and largest y of each bucket, so that a spike survives the thinning."""
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
    pick = [[values[i] for i in order] if values else () for values in (series.x, series.y, series.low, series.high)]
    return Series(series.name, pick[0], pick[1], series.colour, series.style, pick[2], pick[3], series.legend)


# ---------------------------------------------------------------- pictures


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
    """Lines over x, each with an optional band; empty text when no series has a finite point.

    `up` is the vertical axis, where several pictures are to share one; `lines` are places on the horizontal one that a vertical
    line marks; `size` is width and height in drawing units.
    """
    series = [_thin(s) for s in series if any(map(math.isfinite, s.y))]
    if not series:
        return ""
    across = axis([v for s in series for v in s.x], log=log_x, pad=0.0)
    if x_ticks:
        across = Axis(across.low, across.high, tuple(x_ticks), across.log)
    pane = Pane(across, up or axis(values_of(series), log=log_y, zero=zero), *size)
    marks = "".join(
        f'<line class="edge" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{pane.base}"/>' for x in map(pane.x, lines)
    )
    marks += "".join(_band(s, pane) for s in series if s.low and s.high)
    marks += "".join(line_mark(s, pane) for s in series)
    return figure(title, note, frame(pane, x_label, y_label) + marks, series, pane, "x")


def values_of(series: Sequence[Series]) -> list[float]:
    """Every height that the series reach, bands included: what a vertical axis has to show."""
    return [v for s in series for values in (s.y, s.low, s.high) for v in values]


def scatter_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    x_label: str = "",
    y_label: str = "",
    trim: float = 0.0,
) -> str:
    """Clouds of points and lines through them; empty text without a finite point.

    `trim` is the share of points at each end of each axis that the range may leave out: a few outliers would otherwise
    squeeze the cloud into a dot.
    """
    series = [s for s in series if any(math.isfinite(x) and math.isfinite(y) for x, y in zip(s.x, s.y, strict=True))]
    if not series:
        return ""
    across = axis(_trimmed([v for s in series if s.style == "points" for v in s.x] or [0.0, 1.0], trim))
    up = axis(_trimmed([v for s in series if s.style == "points" for v in s.y] or [0.0, 1.0], trim))
    pane = Pane(across, up)
    marks = zero_lines(pane) + "".join(_points(s, pane) if s.style == "points" else line_mark(s, pane) for s in series)
    return figure(title, note, frame(pane, x_label, y_label, True) + clipped(pane, marks), series, pane, "point")


def zero_lines(pane: Pane) -> str:
    """Where x and y are zero, if that is inside the picture."""
    return "".join(
        f'<line class="zero" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'
        for x1, x2, y1, y2 in (
            (LEFT, pane.right, pane.y(0.0), pane.y(0.0)),
            (pane.x(0.0), pane.x(0.0), TOP, pane.base),
        )
        if LEFT <= x1 <= pane.right and TOP <= y1 <= pane.base
    )


def clipped(pane: Pane, marks: str) -> str:
    """The marks, cut off at the edges of the plotting area."""
    wide, high = pane.right - LEFT, pane.base - TOP
    box = f'x="{LEFT}" y="{TOP}" width="{wide}" height="{high}" viewBox="{LEFT} {TOP} {wide} {high}"'
    return f"<svg {box}>{marks}</svg>"


def stacked_chart(
    title: str, layers: Sequence[Series], *, note: str = "", x_label: str = "iteration", y_label: str = ""
) -> str:
    """Areas on top of each other, over one shared x; a missing value counts as nothing."""
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
    marks = "".join(_band(_thin(area), pane, "area") for area in reversed(areas))
    # The tooltip shows what each layer is, the picture shows where it ends.
    return figure(title, note, frame(pane, x_label, y_label) + marks, layers, pane, "x")


def _trimmed(values: Sequence[float], share: float) -> list[float]:
    ordered = sorted(v for v in values if math.isfinite(v))
    cut = int(len(ordered) * share)
    return ordered[cut : len(ordered) - cut] or ordered


def frame(pane: Pane, x_label: str, y_label: str, inner: bool = False) -> str:
    """Grid lines, tick labels and axis names."""
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
    parts.append(f'<text class="name" x="{middle}" y="{pane.height - 4}" text-anchor="middle">{escape(x_label)}</text>')
    if y_label:
        turn = f"translate(6 {centre}) rotate(-90)"
        parts.append(f'<text class="name" transform="{turn}" text-anchor="middle">{escape(y_label)}</text>')
    return "".join(parts)


def _runs(points: Sequence[tuple[float, ...]]) -> list[list[tuple[float, ...]]]:
    """Split at the points with a coordinate that is not finite."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def line_mark(s: Series, pane: Pane) -> str:
    xs, ys = [pane.x(v) for v in s.x], [pane.y(v) for v in s.y]
    runs = _runs(list(zip(xs, ys, strict=True)))
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


def _points(s: Series, pane: Pane) -> str:
    places = [(pane.x(x), pane.y(y)) for x, y in zip(s.x, s.y, strict=True)]
    # A handful of points are findings, hundreds are a cloud.
    kind, radius = ("dot", 4.5) if len(places) <= 12 else ("cloud", 2.8)
    return "".join(
        f'<circle class="{kind} {shade(s.colour)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
        for x, y in places
        if math.isfinite(x) and math.isfinite(y)
    )


def _band(s: Series, pane: Pane, kind: str = "band") -> str:
    points = [(pane.x(x), pane.y(a), pane.y(b)) for x, a, b in zip(s.x, s.low, s.high, strict=True)]
    path = ""
    for run in _runs(points):
        there = "L".join(f"{x:.1f} {high:.1f}" for x, _, high in run)
        back = "L".join(f"{x:.1f} {low:.1f}" for x, low, _ in reversed(run))
        path += f"M{there}L{back}Z"
    return f'<path class="{kind} {shade(s.colour)}" d="{path}"/>'


def figure(
    title: str, note: str, body: str, series: Sequence[Series], pane: Pane, hover: str, legend: bool = True
) -> str:
    """The picture with its title, its legend and the data its tooltip needs."""
    named = [s for s in series if s.legend and s.name] if legend else []
    keys = "".join(
        f'<span class="key"><i class="{s.style} {shade(s.colour)}"></i>{escape(s.name)}</span>' for s in named
    )
    # A page about a single run hides a legend of one entry (`.single` on its body): the title says it already.
    keyed = f'<div class="legend{"" if len(named) > 1 else " one"}">{keys}</div>' if named else ""
    data = {
        "hover": hover,
        "x": [pane.across.low, pane.across.high, pane.across.log],
        "y": [pane.up.low, pane.up.high, pane.up.log],
        "width": pane.width,
        "box": [LEFT, pane.right, TOP, pane.base],
        "series": [
            {"name": s.name, "c": shade(s.colour), "x": _short(s.x), "y": _short(s.y)}
            for s in map(_thin, series)
            if s.legend and (hover == "x" or s.style == "points")
        ],
    }
    aside = f'<p class="note">{escape(note)}</p>' if note else ""
    packed = escape(json.dumps(data, separators=(",", ":")))
    return (
        f'<figure data-chart="{packed}"><figcaption>{escape(title)}</figcaption>'
        f'{keyed}<svg class="chart" viewBox="0 0 {pane.width} {pane.height}" role="img" aria-label="{escape(title)}">'
        f'{body}<line class="cross" y1="{TOP}" y2="{pane.base}"/></svg>{aside}</figure>'
    )


def _short(values: Sequence[float]) -> list[float | None]:
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values]


_LIGHT = ("#2a6fb5", "#d9622b", "#2f9276", "#a8458f", "#b08a1e", "#5a5fc7", "#c2405a", "#6b7785")
_DARK = ("#6cb0f2", "#f59463", "#5fcfae", "#df86c8", "#e0be5c", "#9ca0ff", "#f27f96", "#a3afbd")


def _colours(palette: Sequence[str]) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(palette))


STYLE = (
    ":root{color-scheme:light dark;--bg:#f7f7f5;--card:#fff;--ink:#1d2329;--soft:#626c77;--line:#e4e5e2;--grid:#ededea;"
    f"{_colours(_LIGHT)}}}"
    "@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e7eaed;--soft:#98a2ad;--line:#2e343a;"
    f"--grid:#292e33;{_colours(_DARK)}}}}}"
    + "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(PALETTE))
    + ".cn{--c:var(--soft)}"
    + """
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px 10px;
 min-width:0;position:relative}
figcaption{font-weight:600;font-size:14px}
.single .legend.one{display:none}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12px;color:var(--soft);margin-top:3px}
.key{display:inline-flex;align-items:center;gap:6px;overflow-wrap:anywhere}
.key i{flex:none;width:16px;height:0;border-top:2px solid var(--c)}
.key i.dashed{border-top-style:dashed}.key i.dotted{border-top-style:dotted}.key i.faint{opacity:.45}
.key i.area,.key i.points{width:9px;height:9px;border:0;background:var(--c);border-radius:2px}
.key i.points{border-radius:50%}
svg.chart{display:block;width:100%;height:auto;margin-top:6px;overflow:visible}
.chart .grid{stroke:var(--grid)}.chart .axis,.chart .zero{stroke:var(--soft);opacity:.55}
.chart .zero{stroke-dasharray:2 3}.chart .edge{stroke:var(--soft);stroke-dasharray:5 4;opacity:.75}
.chart text{fill:var(--soft);font:11px system-ui,sans-serif;font-variant-numeric:tabular-nums}
.chart path{fill:none;stroke-linejoin:round;stroke-linecap:round}
.chart .line,.chart .dashed,.chart .dotted{stroke:var(--c);stroke-width:1.9}
.chart .dashed{stroke-dasharray:6 5;stroke-linecap:butt}.chart .dotted{stroke-dasharray:1.5 4;stroke-width:1.6}
.chart .faint{stroke:var(--c);stroke-width:1;opacity:.32}
.chart .band{fill:var(--c);opacity:.13}.chart .area{fill:var(--c);opacity:.82}
.chart .ring{fill:var(--card);stroke:var(--c);stroke-width:2}
.chart .bar{stroke:var(--c);stroke-width:1.2;opacity:.45}.chart .lead{stroke:var(--soft);stroke-width:.8;opacity:.6}
.chart .who{fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
.chart .front{font-weight:700}
.chart .dot{fill:var(--c)}.chart .cloud{fill:var(--c);opacity:.45}
.chart .cross{stroke:var(--soft);opacity:0}
.note{margin:4px 0 2px;font-size:12px;color:var(--soft)}
.tip{position:absolute;z-index:2;pointer-events:none;background:var(--ink);color:var(--bg);font-size:12px;line-height:1.45;
 padding:5px 9px;border-radius:6px;white-space:nowrap;font-variant-numeric:tabular-nums;max-width:320px;overflow:hidden}
.tip i{display:inline-block;width:8px;height:8px;border-radius:50%;background:var(--c);margin-right:6px}
"""
)

# Text enters the page through textContent only: a name is never parsed as HTML.
SCRIPT = """
document.querySelectorAll('figure[data-chart]').forEach(function (figure) {
  var data = JSON.parse(figure.dataset.chart), svg = figure.querySelector('svg'), cross = svg.querySelector('.cross');
  var tip = document.createElement('div'); tip.className = 'tip'; tip.hidden = true; figure.appendChild(tip);
  var box = data.box, log = function (v, on) { return on ? Math.log(v) : v; };
  function place(v, a, from, to) {
    return from + (log(v, a[2]) - log(a[0], a[2])) / (log(a[1], a[2]) - log(a[0], a[2])) * (to - from);
  }
  function px(v) { return place(v, data.x, box[0], box[1]); }
  function py(v) { return place(v, data.y, box[3], box[2]); }
  function say(v) { return v === null ? '\\u2013' : String(Number(v.toPrecision(4))); }
  function row(c, text) {
    var line = document.createElement('div');
    if (c !== null) { var dot = document.createElement('i'); dot.className = c; line.appendChild(dot); }
    line.appendChild(document.createTextNode(text)); tip.appendChild(line);
  }
  function hide() { tip.hidden = true; cross.style.opacity = 0; }
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('pointermove', function (event) {
    var area = svg.getBoundingClientRect(), home = figure.getBoundingClientRect(), scale = area.width / data.width;
    var mx = (event.clientX - area.left) / scale, my = (event.clientY - area.top) / scale, best = null;
    data.series.forEach(function (s) {
      s.x.forEach(function (x, i) {
        if (x === null || s.y[i] === null) { return; }
        var d = Math.abs(px(x) - mx) + (data.hover === 'point' ? Math.abs(py(s.y[i]) - my) : 0);
        if (!best || d < best.d) { best = {d: d, x: x, y: s.y[i], s: s}; }
      });
    });
    if (!best || (data.hover === 'point' && best.d > 24)) { hide(); return; }
    tip.replaceChildren();
    if (data.hover === 'point') {
      row(best.s.c, best.s.name); row(null, say(best.x) + ', ' + say(best.y));
    } else {
      row(null, say(best.x));
      data.series.forEach(function (s) {
        var i = s.x.indexOf(best.x); if (i >= 0) { row(s.c, s.name + '  ' + say(s.y[i])); }
      });
      cross.setAttribute('x1', px(best.x)); cross.setAttribute('x2', px(best.x)); cross.style.opacity = .5;
    }
    tip.hidden = false;
    var x = area.left - home.left + px(best.x) * scale;
    tip.style.left = (x > home.width / 2 ? x - tip.offsetWidth - 12 : x + 12) + 'px';
    tip.style.top = (area.top - home.top + 14) + 'px';
  });
});
"""
