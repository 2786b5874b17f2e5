"""Builds the tables of run summaries: a row for every run, and one for every environment of a run."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestration.analysis.run_data import RunData
from orchestration.analysis.run_summary import RunSummary, summary_of, widest_k
from orchestration.report.svg.marks import shade
from orchestration.report.table import Cell, Table
from orchestration.text import duration, label, number, percent


class Column(NamedTuple):
    """Holds a heading, in which K stands for the k of pass@K, and the text of a cell for a summary and that k."""

    heading: str
    text: Callable[[RunSummary, int], str]
    per_environment: bool = True  # shown for a single environment as well


COLUMNS = (
    Column("entropy start", lambda s, k: number(s.entropy_start, ".3f")),
    Column("end", lambda s, k: number(s.entropy_end, ".3f")),
    Column("change", lambda s, k: percent(s.entropy_change, sign=True)),
    Column("target", lambda s, k: number(s.target, ".3f"), per_environment=False),
    Column("rms off target", lambda s, k: percent(s.target_rms_last_third), per_environment=False),
    Column("reward", lambda s, k: f"{number(s.reward_start, '.3f')} → {number(s.reward_end, '.3f')}"),
    Column("pass@1", lambda s, k: number(s.pass_1, ".3f")),
    Column("pass@K", lambda s, k: number(s.pass_at.get(k, math.nan), ".3f")),
    Column("distinct", lambda s, k: number(s.distinct, ".1f")),
    Column("time", lambda s, k: duration(s.seconds), per_environment=False),
    Column("tokens", lambda s, k: label(s.tokens) if math.isfinite(s.tokens) else "—", per_environment=False),
)


def summary_table(summaries: Sequence[RunSummary]) -> Table:
    """Builds the table with a row for every run, marked in the run's colour."""
    k = widest_k(summaries)
    rows = [
        [Cell(summary.name, mark=shade(colour)), *(Cell(column.text(summary, k)) for column in COLUMNS)]
        for colour, summary in enumerate(summaries)
    ]
    return Table(["run", *_headings(COLUMNS, k)], rows)


def environment_table(runs: Sequence[RunData], envs: Sequence[str], k: int) -> Table:
    """Builds the table with a row for every environment of every run."""
    columns = [column for column in COLUMNS if column.per_environment]
    rows = []
    for env in envs:
        for colour, run in enumerate(runs):
            if env in run.envs():
                summary = summary_of(run.only(env))
                name = Cell(env, mark=shade(colour), aside=run.name) if len(runs) > 1 else Cell(env)
                rows.append([name, *(Cell(column.text(summary, k)) for column in columns)])
    return Table(["environment", *_headings(columns, k)], rows)


def _headings(columns: Sequence[Column], k: int) -> list[str]:
    return [column.heading.replace("K", str(k)) for column in columns]
