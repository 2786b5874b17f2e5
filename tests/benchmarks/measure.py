"""Provides what every benchmark needs: measurements taken in turns, their medians, what machine it was, and the page of results.

A part of `make bench` is a script with a `main()` that prints what it measured and takes `--json FILE`. What it writes there may be
anything; `ratios`, a list of what `ratio` returns, becomes the part's table on the page, and without it what the part printed does.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPEATS = 5
BUSY = 0.15  # share of the cores that others may use before a measurement is called disturbed
HELD, MISSED, OPEN = "held", "missed", ""


def in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int = REPEATS, warm: int = 1) -> dict[str, list[float]]:
    """Returns the seconds of each call, `repeats` times: a b c, a b c, ..., so that a busy moment disturbs all of them.

    warm: rounds before, which are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm + repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if i >= warm:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(values: Sequence[float]) -> float:
    """Returns (largest - smallest) / median: how far single measurements were apart."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def deviation(values: Sequence[float]) -> float:
    """Returns the standard deviation of single values; nan of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def ratio(
    what: str,
    value: float,
    *,
    goal: str = "",
    held: bool | None = None,
    ours: str = "",
    other: str = "",
    values: Sequence[float] = (),
) -> dict[str, Any]:
    """Returns a line of the table of results.

    what         "heavy-tailed replies: TRL / Isentrope, seconds of a round"
    goal, held   what is aimed at, in words, and whether it was reached; None where nothing is aimed at
    ours, other  what was divided, with units
    values       the single measurements that `value` is the median of
    """
    line: dict[str, Any] = {"what": what, "ratio": value, "goal": goal, "ours": ours, "other": other}
    line["verdict"] = OPEN if held is None else HELD if held else MISSED
    if values:
        line |= {"values": list(values), "spread": spread(values)}
    return line


def paired(ours: Sequence[float], other: Sequence[float]) -> list[float]:
    """Returns other / ours, measurement by measurement: how many times faster ours is, with a moment's disturbance in both."""
    return [b / a for a, b in zip(ours, other, strict=True)]


def write(path: Path | None, part: str, ratios: Sequence[Mapping[str, Any]], **details: Any) -> None:
    """Prints the table of a part, and writes it with the details as JSON where a path is given."""
    print(table(ratios))
    if path is not None:
        path.write_text(json.dumps({"part": part, "ratios": list(ratios), **details}, indent=1) + "\n", "utf-8")


def table(ratios: Sequence[Mapping[str, Any]], quiet: bool = True) -> str:
    """Returns the lines as a table in Markdown. quiet: whether the machine was; where it was not, no goal counts as reached."""
    lines = ["| what | ratio | goal | | measured |", "|---|---:|---|---|---|"]
    for line in ratios:
        both = " against ".join(text for text in (line["ours"], line["other"]) if text)
        off = f"; spread {line['spread']:.0%}" if "spread" in line else ""
        verdict = line["verdict"] if quiet or not line["verdict"] else "disturbed"
        lines.append(f"| {line['what']} | {line['ratio']:.3g} | {line['goal']} | {verdict} | {both}{off} |")
    return "\n".join(lines)


def seconds(value: float) -> str:
    """Returns a duration with its unit."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


# --- the machine ------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Describes where the measurements were taken: cores, processor, memory and card."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "card": _card(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _card() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def cpu_ticks() -> tuple[float, float]:
    """Returns (busy, all) clock ticks of all cores since the machine began; time that a host took away counts as busy."""
    fields = [float(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def busy_share(wait_s: float = 2.0) -> float:
    """Returns the share of the cores that was in use during `wait_s` in which this process slept."""
    busy, every = cpu_ticks()
    time.sleep(wait_s)
    busy_after, every_after = cpu_ticks()
    return (busy_after - busy) / max(1.0, every_after - every)


# --- the page ---------------------------------------------------------------------------------------------------------------


def begin(part: str) -> str:
    return f"<!-- bench {part}: begin -->"


def end(part: str) -> str:
    return f"<!-- bench {part}: end -->"


SECTION = "## `make bench`"
NEXT = "\n## "


def with_section(page: str, part: str, text: str) -> str:
    """Returns the page with the part's marked passage replaced, or added at the end of the section of `make bench`.

    Everything else stays as it is. Raises ValueError where the page has no such section, or a mark without its end.
    """
    start, stop = begin(part), end(part)
    block = f"{start}\n{text.strip()}\n{stop}"
    if start in page:
        before, _, rest = page.partition(start)
        if stop not in rest:
            raise ValueError(f"the page has {start} and not {stop}")
        return before + block + rest.partition(stop)[2]
    if SECTION not in page:
        raise ValueError(f"the page has no section {SECTION}")
    at = page.find(NEXT, page.index(SECTION) + len(SECTION))
    at = len(page) if at < 0 else at + 1
    return f"{page[:at].rstrip()}\n\n{block}\n\n{page[at:]}".rstrip() + "\n"
