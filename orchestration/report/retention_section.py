"""Builds the section of a report on a run with stages: what it retained, in words, as a heat table, in metrics and curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestration.analysis.retention import Retention, areas, boundaries, matrix, passes
from orchestration.analysis.run_data import RunData
from orchestration.report import charts
from orchestration.report.svg.charts import line_chart
from orchestration.report.svg.marks import Series
from orchestration.report.table import Cell, Table
from orchestration.text import number, with_sign

SMALL = 0.005  # a smaller change of pass@k is called none
DEEPEST = 60  # percent of the colour in a cell of 1: the text has to stay legible on it


@dataclass(frozen=True, slots=True)
class RetentionSection:
    """Holds what the section shows; `matrices` and `transfers` have a table for each k of pass@k."""

    lead: str
    matrices: Mapping[int, Table]
    transfers: Mapping[int, Table]
    stages: Table
    charts: Sequence[str]


def retention_section(run: RunData, k: int) -> RetentionSection | None:
    """Builds the section with pass@1 and pass@k; None for a run without stages."""
    by_k = {at: r for at in dict.fromkeys((1, k)) if (r := matrix(run.rows, at)) is not None and any(r.after)}
    if not by_k:
        return None
    names = stage_names(run, len(by_k[min(by_k)].after))
    return RetentionSection(
        lead=sentences(by_k, names),
        matrices={at: _heat(r, names) for at, r in by_k.items()},
        transfers={at: _transfers(r) for at, r in by_k.items()},
        stages=_stages(run, names),
        charts=[drawing for drawing in _curves(run, list(by_k)) if drawing],
    )


def stage_names(run: RunData, count: int) -> list[str]:
    """Returns the names in the configuration, and numbers where a run folder has none."""
    stages = run.config.get("stages")
    listed = [str(s.get("name")) for s in stages if isinstance(s, Mapping)] if isinstance(stages, list) else []
    return [listed[i] if i < len(listed) else f"stage {i}" for i in range(count)]


def sentences(by_k: Mapping[int, Retention], names: Sequence[str]) -> str:
    """Writes one paragraph about what was lost and gained."""
    text = [
        f"The run trained {len(names)} stage{'s' if len(names) > 1 else ''}, one after the other: {', '.join(names)}."
    ]
    for k, r in by_k.items():
        if math.isfinite(r.average):
            text.append(f"After the last one, mean pass@{k} over all that was trained is {r.average:.2f}.")
        change = r.backward_transfer
        if math.isfinite(change):
            worst = min((e for e in r.environments if math.isfinite(r.backward(e))), key=r.backward)
            own = r.last(worst)
            verb = "cost" if change < 0 else "added to"
            effect = f"Training after its own stage {verb} an environment {abs(change):.2f} of pass@{k} on average"
            if abs(change) < SMALL:
                effect = f"Training after its own stage left an environment's pass@{k} unchanged on average"
            if own is not None and r.backward(worst) < -SMALL:
                effect += f", most in {worst}: from {r.at(own, worst):.2f} to {r.at(len(r.after) - 1, worst):.2f}"
            text.append(
                f"{effect} (backward transfer {change_text(change)}, forgetting {number(r.forgetting, '.2f')})."
            )
        ahead = r.forward_transfer
        if math.isfinite(ahead):
            text.append(
                f"Training before its own stage had already changed it by {change_text(ahead)} (forward transfer)."
            )
    return " ".join(text)


def change_text(value: float) -> str:
    """Formats a change with its sign: +0.12, −0.35, 0.00, or a dash."""
    if not math.isfinite(value):
        return "—"
    return with_sign(value, f"{abs(value):.2f}")


def _heat(r: Retention, names: Sequence[str]) -> Table:
    """Builds a row for the policy before training and for each stage; the cells of what a stage trained are framed."""
    rows = []
    for stage in range(-1 if r.before else 0, len(r.after)):
        row = [Cell("before training" if stage < 0 else f"after {names[stage]}")]
        for env in r.environments:
            value = r.at(stage, env)
            depth = round(DEEPEST * min(max(value, 0.0), 1.0)) if math.isfinite(value) else 0
            trained = stage >= 0 and env in r.trained[stage]
            row.append(Cell(number(value, ".3f"), heat=depth, framed=trained))
        rows.append(row)
    return Table(["", *r.environments], rows)


def _transfers(r: Retention) -> Table:
    columns: tuple[tuple[str, Callable[[str], float], float], ...] = (
        ("at the end", lambda e: r.at(len(r.after) - 1, e), r.average),
        ("backward transfer", r.backward, r.backward_transfer),
        ("forward transfer", r.forward, r.forward_transfer),
        ("forgetting", r.forgotten, r.forgetting),
    )
    values = {env: [of(env) for _, of, _ in columns] for env in r.environments}
    rows = [_numbers(env, values[env]) for env in r.environments]
    rows.append(_numbers("mean", [mean for *_, mean in columns]))
    return Table(["environment", *(title for title, *_ in columns)], rows)


def _numbers(name: str, values: Sequence[float]) -> list[Cell]:
    return [Cell(name), *(Cell(number(value, ".3f")) for value in values)]


def _stages(run: RunData, names: Sequence[str]) -> Table:
    rows = []
    for stage, (name, area) in enumerate(zip(names, areas(run.rows), strict=True)):
        length = sum(row.get("stage/index") == stage and row["iteration"] > 0 for row in run.rows)
        cells = (str(length), number(area.reward, ".3f"), number(area.evaluation, ".3f"))
        rows.append([Cell(name), *map(Cell, cells)])
    return Table(["stage", "iterations", "area under reward", "area under pass@1"], rows)


def _curves(run: RunData, ks: Sequence[int]) -> list[str]:
    """Draws a curve for each environment, with a vertical line where a new stage begins."""
    edges, envs = boundaries(run.rows), run.envs()
    note = "Vertical lines: where a new stage begins." if edges else ""
    rewards = [
        Series(env, run.column("iteration"), run.column(f"reward/{env}"), colour) for colour, env in enumerate(envs)
    ]
    out = [line_chart("Training reward by environment", rewards, y_label="mean reward", lines=edges, note=note)]
    for k in ks:
        points = [(row["iteration"], scores) for row in run.rows if (scores := passes(row, k))]
        series = [
            Series(env, [x for x, _ in points], [scores.get(env, math.nan) for _, scores in points], colour)
            for colour, env in enumerate(envs)
        ]
        out.append(line_chart(f"pass@{k} by environment", series, zero=True, lines=edges, note=note))
    out.append(
        charts.key_chart([run], "entropy/exact", "Exact entropy over the stages", zero=True, lines=edges, note=note)
    )
    return out
