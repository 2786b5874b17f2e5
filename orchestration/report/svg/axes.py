"""Computes the axes of a chart: ranges, round ticks, and the positions of values in drawing units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 540, 250  # drawing units; the page scales the picture to its column
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 36  # margins around the plotting area
TINY = 1e-300  # smaller values count as zero: the steps between ticks would have no logarithm


@dataclass(frozen=True, slots=True)
class Axis:
    """Turns values into positions: holds the range, the ticks, and whether the scale is logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...] = field(default=())
    log: bool = False

    def position(self, value: float, start: float, end: float) -> float:
        """Returns the position of a value between `start` (for `low`) and `end` (for `high`); NaN if it has none."""
        if not math.isfinite(value) or (self.log and value <= TINY):
            return math.nan
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return start + (at - low) / (high - low) * (end - start)


@dataclass(frozen=True, slots=True)
class Pane:
    """Holds the two axes of a chart and its size in drawing units."""

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
        return self.across.position(value, LEFT, self.right)

    def y(self, value: float) -> float:
        return self.up.position(value, self.base, TOP)


def nice_step(span: float, count: int) -> float:
    """Returns the smallest of 1, 2, 2.5, 5 times a power of ten that covers `span` in at most about `count` steps."""
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next((m * power for m in (1.0, 2.0, 2.5, 5.0) if m * power >= raw * 0.999), 10.0 * power)


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Returns about `count` round numbers inside [low, high], in rising order."""
    if not high > low:
        return (low,)
    step = nice_step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(i * step + 0.0 for i in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Returns the powers of ten inside [low, high]; where there are fewer than two, also 2 and 5 times a power."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, len(powers) // 6)
    tens = [10.0**p for p in powers if p % stride == 0 and low * 0.999 <= 10.0**p <= high * 1.001]
    if len(tens) >= 2:
        return tuple(tens)
    fine = [m * 10.0**p for p in powers for m in (1.0, 2.0, 5.0)]
    return tuple(v for v in fine if low * 0.999 <= v <= high * 1.001) or (low, high)


def axis(values: Sequence[float], *, log: bool = False, zero: bool = False, pad: float = 0.06, count: int = 5) -> Axis:
    """Builds an axis that shows all finite values. `zero` makes it start (or end) at zero; `pad` is a share of the span."""
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
    # A quantity that is never negative gets no tick below zero, and a floor of zero no room under it.
    floor = 0.0 if low >= 0.0 else -math.inf
    low, high = max(low - margin, floor), high + margin if high != 0.0 else high
    return Axis(low, high, nice_ticks(low, high, count))
