"""Builds the tables of a lab: arms against metrics, what runs with stages retained, and every single run."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from orchestration.analysis.retention import MatrixKey, StageKey
from orchestration.lab.results import ArmResult, LabResults, Spread
from orchestration.report.svg.marks import PALETTE, shade
from orchestration.report.table import Cell, Table
from orchestration.text import duration, label, number, percent, with_sign


class Column(NamedTuple):
    """Holds a heading and the text of an arm's cell under it."""

    heading: str
    text: Callable[[ArmResult], str]


RETAINED = {
    "retained": "at the end",
    "backward": "backward transfer",
    "forward": "forward transfer",
    "forgetting": "forgetting",
}
SINGLE_RUN: Mapping[str, str] = {  # headings of the table of single runs
    "entropy_start": "entropy start",
    "entropy_end": "end",
    "entropy_change": "change",
    "target": "target",
    "rms_last_third": "rms off, last third",
    "rms_last_two_thirds": "last two thirds",
    "max_last_two_thirds": "largest",
    "saturated": "saturated",
    "affected": "tokens affected",
    "reward_start": "reward start",
    "reward_end": "end",
    "distinct_start": "distinct start",
    "distinct_end": "end",
}
SHARES = ("rms_last_third", "rms_last_two_thirds", "max_last_two_thirds", "saturated", "affected")


# ---------------------------------------------------------------- text of cells


def spread_text(value: Spread, style: str = ".3f") -> str:
    """Formats `mean ± std`; the mean alone where one seed has no spread; a dash without a value."""
    return number(value.mean, style) + (f" ± {format(value.std, style)}" if math.isfinite(value.std) else "")


def percent_text(value: Spread, sign: bool = False) -> str:
    """Formats shares as 4.4 ± 1.0 %."""
    if not math.isfinite(value.std):
        return percent(value.mean, sign)
    digits = 1 if abs(value.mean) < 0.0995 or value.std < 0.00995 else 0
    middle, deviation = f"{abs(value.mean) * 100:.{digits}f}", f"{value.std * 100:.{digits}f}"
    middle = with_sign(value.mean, middle) if sign or value.mean < 0.0 else middle
    return f"{middle} ± {deviation}\N{NO-BREAK SPACE}%"


def time_text(value: Spread) -> str:
    """Formats seconds as 2 min 10 s ± 4 s."""
    return duration(value.mean) + (f" ± {duration(value.std)}" if math.isfinite(value.std) else "")


def seeds_text(arm: ArmResult) -> str:
    """Returns how many seeds the means rest on, and of how many where some failed."""
    done, lost = len(arm.finished), len(arm.failed)
    return f"{done} of {done + lost}" if lost else str(done)


def best_text(arm: ArmResult, k: int) -> str:
    """Formats pass@k at the arm's best temperature, with that temperature."""
    best = arm.best.get(f"pass@{k}")
    return f"{spread_text(arm.spread(f'pass@{k}/best'))} (T = {best.temperature:g})" if best else "—"


def temperature_text(results: LabResults) -> str:
    """Returns "T = 1", or words where the arms do not share the first temperature."""
    return "first T" if results.temperature is None else f"T = {results.temperature:g}"


# ---------------------------------------------------------------- tables


def tables(results: LabResults) -> list[Table]:
    """Returns the tables that these results have: of all labs, and of those whose runs have stages."""
    return [arm_table(results), *([kept] if (kept := retention_table(results)) else [])]


def arm_table(results: LabResults) -> Table:
    """Builds a row for every arm, after one for the policy before training where it was evaluated."""
    columns = [
        Column("seeds", seeds_text),
        Column("entropy change", lambda arm: percent_text(arm.spread("entropy_change"), sign=True)),
        Column("rms off target", lambda arm: percent_text(arm.spread("rms_last_two_thirds"))),
        *_pass_columns(results),
        Column("distinct", lambda arm: spread_text(arm.spread("distinct_end"), ".2f")),
        Column("reward", lambda arm: spread_text(arm.spread("reward_end"))),
        Column("time", lambda arm: time_text(arm.spread("seconds"))),
    ]
    return _table(results, columns, start=bool(results.start.metrics))


def _pass_columns(results: LabResults) -> list[Column]:
    columns = []
    for k in results.ks:
        columns += [
            Column(f"pass@{k}, {temperature_text(results)}", lambda arm, k=k: spread_text(arm.spread(f"pass@{k}/end"))),
            Column(f"pass@{k}, best T", lambda arm, k=k: best_text(arm, k)),
        ]
    return columns


def retention_table(results: LabResults) -> Table | None:
    """Builds the table of what the arms kept of their environments, see analysis/retention.py; None without stages."""
    metrics = dict.fromkeys(metric for arm in results.arms for metric in arm.metrics)
    columns = []
    for k in results.ks:
        columns += [
            _spread_column(f"{title}, pass@{k}", f"{name}/pass@{k}")
            for name, title in RETAINED.items()
            if f"{name}/pass@{k}" in metrics
        ]
    parsed = [StageKey.parse(metric) for metric in metrics]
    stages = sorted({key.stage for key in parsed if key is not None and key.metric == "area/reward"})
    columns += [
        _spread_column(f"reward, {results.stage(stage)}", str(StageKey("area/reward", stage))) for stage in stages
    ]
    for stage in stages:
        if (key := str(StageKey("entropy_change", stage))) in metrics:
            columns.append(
                Column(
                    f"entropy, {results.stage(stage)}", lambda arm, key=key: percent_text(arm.spread(key), sign=True)
                )
            )
    return _table(results, columns) if columns else None


def _spread_column(heading: str, metric: str) -> Column:
    return Column(heading, lambda arm: spread_text(arm.spread(metric)))


def _table(results: LabResults, columns: Sequence[Column], start: bool = False) -> Table:
    rows = [[Cell(arm.name, mark=mark(i)), *_cells(arm, columns)] for i, arm in enumerate(results.arms)]
    if start:
        rows.insert(0, [Cell(results.start.name, mark="none"), *_cells(results.start, columns)])
    failures = [
        f"failed: {arm.name}, seed {seed}: {reason}" for arm in results.arms for seed, reason in arm.failed.items()
    ]
    return Table(["arm", *(column.heading for column in columns)], rows, footnotes=failures)


def _cells(arm: ArmResult, columns: Sequence[Column]) -> list[Cell]:
    return [Cell(column.text(arm)) for column in columns]


def matrices(results: LabResults) -> list[Table]:
    """Builds the retention matrix for pass@1 and pass@K: a row for every arm and stage, a column for every environment."""
    parsed = [MatrixKey.parse(metric) for arm in results.arms for metric in arm.metrics]
    made = []
    for k in results.ks:
        keys = [key for key in parsed if key is not None and key.k == k]
        stages = dict.fromkeys(key.stage for key in keys)
        environments = list(dict.fromkeys(key.env for key in keys))
        rows = []
        for arm in results.arms:
            for stage in stages:
                after = "before training" if stage is None else results.stage(stage)
                scores = [spread_text(arm.spread(str(MatrixKey(k, stage, env)))) for env in environments]
                rows.append([Cell(arm.name), Cell(after), *map(Cell, scores)])
        if rows:
            made.append(Table([f"pass@{k}", "after", *environments], rows, labels=2))
    return made


def run_table(results: LabResults, links: Mapping[tuple[int, int], str]) -> Table:
    """Builds a row for every finished run; `links` has the address of its report by (index of the arm, seed)."""
    headings = dict(SINGLE_RUN)
    for k in results.ks:
        headings |= {f"pass@{k}/end": f"pass@{k}", f"pass@{k}/best": f"pass@{k} best T"}
    runs = [(i, arm.name, seed, run) for i, arm in enumerate(results.arms) for seed, run in arm.finished.items()]
    keys = [key for key in headings if any(key in metrics for *_, metrics in runs)]
    rows = []
    for i, name, seed, metrics in runs:
        texts = [_metric_text(key, metrics.get(key, math.nan)) for key in keys]
        texts += [duration(metrics.get("seconds", math.nan)), label(metrics.get("tokens", math.nan))]
        link = links.get((i, seed), "")
        report = Cell("report", link=link) if link else Cell("—")
        rows.append([Cell(name, mark=mark(i)), Cell(str(seed)), report, *map(Cell, texts)])
    return Table(["arm", "seed", "run", *(headings[key] for key in keys), "time", "tokens"], rows)


def _metric_text(key: str, value: float) -> str:
    if key in SHARES or key == "entropy_change":
        return percent(value, sign=key == "entropy_change")
    return number(value, ".2f" if key.startswith("distinct") else ".3f")


def note_table(results: LabResults) -> Table:
    """Builds a row for every arm that has a note."""
    rows = [[Cell(arm.name, mark=mark(i)), Cell(arm.note)] for i, arm in enumerate(results.arms) if arm.note]
    return Table(["arm", "what it is"], rows)


def mark(index: int) -> str:
    """Returns the CSS classes of an arm's dot, as in the charts; hollow in the second round of the palette."""
    return shade(index) + (" hollow" if index >= PALETTE else "")
