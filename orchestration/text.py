"""Formats numbers, shares, durations and errors as short text for tables, sentences and charts.

| name        | example                                           |
|-------------|---------------------------------------------------|
| `number`    | 0.63 is "0.63"; NaN is a dash                     |
| `label`     | 15000 is "15k", 0.0003 is "3e-4"                  |
| `percent`   | 0.063 is "6.3 %"                                  |
| `with_sign` | -0.35 with "0.35" is "−0.35"                      |
| `duration`  | 117 s is "1 min 57 s"                             |
| `listed`    | words as "a, b and c"                             |
| `one_line`  | an error's message with its line breaks taken out |
| `size`      | 3 221 225 472 bytes are "3.0 GiB"                 |
| `disk_problem` | a file that could not be written, why, and the free space |
"""

import math
from collections.abc import Sequence
from pathlib import Path


def number(value: float, style: str = ".3g") -> str:
    """Formats a number for a table, with a dash for one that is not finite."""
    return format(value, style) if math.isfinite(value) else "—"


def label(value: float) -> str:
    """Formats a number as on an axis: 0.25, 1200, 15k, 3e-4."""
    size = abs(value)
    if value == 0.0:
        return "0"
    if not math.isfinite(value):
        return "n/a"
    if size >= 1e4:
        power, unit = next((p, u) for p, u in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if size >= p)
        return f"{value / power:.3g}{unit}"
    if size < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"


def percent(value: float, sign: bool = False) -> str:
    """Formats a share in percent: 0.63 is "63 %", 0.063 is "6.3 %"; with `sign`, -0.63 keeps its minus."""
    if not math.isfinite(value):
        return "—"
    digits = 1 if 0.0 < abs(value) < 0.0995 else 0
    text = f"{abs(value) * 100:.{digits}f}".removesuffix(".0")
    return (with_sign(value, text) if sign else text) + "\N{NO-BREAK SPACE}%"


def with_sign(value: float, magnitude: str) -> str:
    """Puts the sign of a value before the text of its magnitude: "+0.12", "−0.35"; none where that text reads as zero."""
    if not any(digit in magnitude for digit in "123456789"):
        return magnitude
    return ("+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else "") + magnitude


def listed(words: Sequence[str]) -> str:
    """Joins words as a; a and b; a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def duration(seconds: float) -> str:
    """Formats seconds as 45 s, 1 min 57 s, 12 min or 3 h 20 min."""
    if not math.isfinite(seconds):
        return "—"
    rounded = round(seconds)
    if rounded < 600:
        return f"{rounded} s" if rounded < 60 else f"{rounded // 60} min {rounded % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def one_line(error: object) -> str:
    """Returns an error's message, or any text, on one line: every run of white space becomes one blank."""
    return " ".join(str(error).split())


def size(count: float) -> str:
    """Formats a number of bytes: 512 B, 3.4 MiB, 3.0 GiB."""
    if count < 1024:
        return f"{count:.0f} B"
    power = min(4, int(math.log2(count) // 10))
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def disk_problem(path: Path, error: OSError, free: int, needed: int | None = None) -> str:
    """Returns what kept a file from being written, with the space that is free there and, where known, what is needed."""
    wanted = f"{size(needed)} are needed at least and " if needed else ""
    return f"{path}: {error.strerror or one_line(error)}; {wanted}{size(free)} are free: make room"
