"""A report's section on a run with stages: what it retained, in words, as a heat table, in figures and in curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from orchestration.analysis.retention import Retention, areas, boundaries, matrix, passes
from orchestration.analysis.run_data import RunData
from orchestration.report import charts
from orchestration.report import svg as plots
from orchestration.report.chapters import grid, table
from orchestration.report.svg import Series
from orchestration.text import number

SMALL = 0.005  # a change of pass@k that is called none
DEEPEST = 60  # percent of the colour in a cell of 1: the ink has to stay legible on it


def retention_section(run: RunData, k: int) -> str:
    """HTML; empty text for a run without stages. k: the one shown beside 1."""
    found = {at: r for at in dict.fromkeys((1, k)) if (r := matrix(run.rows, at)) is not None and any(r.after)}
    if not found:
        return ""
    names = stage_names(run, len(found[min(found)].after))
    tables = "".join(f"<h3>pass@{at} after each stage</h3>{_heat(r, names)}" for at, r in found.items())
    figures = "".join(f"<h3>Transfer, pass@{at}</h3>{_transfers(r)}" for at, r in found.items())
    return (
        f'<p class="lead">{escape(sentences(found, names))}</p>{tables}{figures}<h3>The stages</h3>{_stages(run, names)}'
        f"{grid(_curves(run, list(found)))}"
    )


def stage_names(run: RunData, count: int) -> list[str]:
    """From the configuration, which a run folder may lack."""
    given = run.config.get("stages")
    listed = [str(s.get("name")) for s in given if isinstance(s, Mapping)] if isinstance(given, list) else []
    return [listed[i] if i < len(listed) else f"stage {i}" for i in range(count)]


def sentences(found: Mapping[int, Retention], names: Sequence[str]) -> str:
    """One paragraph in plain words."""
    said = [
        f"The run trained {len(names)} stage{'s' if len(names) > 1 else ''}, one after the other: {', '.join(names)}."
    ]
    for k, r in found.items():
        if math.isfinite(r.average):
            said.append(f"After the last one, mean pass@{k} over all that was trained is {r.average:.2f}.")
        change = r.backward_transfer
        if math.isfinite(change):
            worst = min((e for e in r.environments if math.isfinite(r.backward(e))), key=r.backward)
            own = r.last(worst)
            verb = "cost" if change < 0 else "added to"
            text = f"What came after its own stage {verb} an environment {abs(change):.2f} of pass@{k} on average"
            if abs(change) < SMALL:
                text = f"What came after its own stage changed an environment's pass@{k} by nothing on average"
            if own is not None and r.backward(worst) < -SMALL:
                text += f", most in {worst}: from {r.at(own, worst):.2f} to {r.at(len(r.after) - 1, worst):.2f}"
            said.append(f"{text} (backward transfer {signed(change)}, forgetting {number(r.forgetting, '.2f')}).")
        ahead = r.forward_transfer
        if math.isfinite(ahead):
            said.append(f"What came before its own stage had changed it by {signed(ahead)} already (forward transfer).")
    return " ".join(said)


def signed(value: float) -> str:
    """+0.12, −0.35, 0.00, or a dash."""
    if not math.isfinite(value):
        return "—"
    text = f"{abs(value):.2f}"
    return text if float(text) == 0.0 else ("+" if value > 0 else "\N{MINUS SIGN}") + text


def _heat(r: Retention, names: Sequence[str]) -> str:
    """A line for the policy before training and for each stage; the cells of what a stage trained are framed."""
    body = ""
    for stage in range(-1 if r.before else 0, len(r.after)):
        cells = ""
        for env in r.environments:
            value, own = r.at(stage, env), stage >= 0 and env in r.trained[stage]
            depth = round(DEEPEST * min(max(value, 0.0), 1.0)) if math.isfinite(value) else 0
            cells += f'<td class="heat{" own" if own else ""}" style="--h:{depth}%">{number(value, ".3f")}</td>'
        body += f"<tr><th>{escape('before training' if stage < 0 else f'after {names[stage]}')}</th>{cells}</tr>"
    heads = "".join(f"<th>{escape(env)}</th>" for env in r.environments)
    return table("summary", f"<tr><th></th>{heads}</tr>", body)


def _transfers(r: Retention) -> str:
    columns: tuple[tuple[str, Callable[[str], float], float], ...] = (
        ("at the end", lambda e: r.at(len(r.after) - 1, e), r.average),
        ("backward transfer", r.backward, r.backward_transfer),
        ("forward transfer", r.forward, r.forward_transfer),
        ("forgetting", r.forgotten, r.forgetting),
    )
    lines = [(env, [of(env) for _, of, _ in columns]) for env in r.environments]
    lines.append(("mean", [whole for *_, whole in columns]))
    body = ""
    for who, values in lines:
        cells = "".join(f"<td>{number(value, '.3f')}</td>" for value in values)
        body += f"<tr><th>{escape(who)}</th>{cells}</tr>"
    heads = "".join(f"<th>{title}</th>" for title, *_ in columns)
    return table("summary", f"<tr><th>environment</th>{heads}</tr>", body)


def _stages(run: RunData, names: Sequence[str]) -> str:
    body = ""
    for stage, (name, area) in enumerate(zip(names, areas(run.rows), strict=True)):
        length = sum(row.get("stage/index") == stage and row["iteration"] > 0 for row in run.rows)
        cells = f"<td>{length}</td><td>{number(area.reward, '.3f')}</td><td>{number(area.evaluation, '.3f')}</td>"
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    heads = "<th>stage</th><th>iterations</th><th>area under reward</th><th>area under pass@1</th>"
    aside = "Areas are over the stage's length: the mean height of the curve. pass@1 is that of the stage's own environments."
    return table("summary", f"<tr>{heads}</tr>", body) + f'<p class="note">{aside}</p>'


def _curves(run: RunData, ks: Sequence[int]) -> list[str]:
    """Colours are environments; the vertical lines are where a new stage begins."""
    edges, envs = boundaries(run.rows), run.envs()
    note = "Vertical lines: where a new stage begins." if edges else ""
    rewards = [
        Series(env, run.column("iteration"), run.column(f"reward/{env}"), colour) for colour, env in enumerate(envs)
    ]
    out = [plots.line_chart("Training reward by environment", rewards, y_label="mean reward", lines=edges, note=note)]
    for k in ks:
        points = [(row["iteration"], scores) for row in run.rows if (scores := passes(row, k))]
        series = [
            Series(env, [x for x, _ in points], [scores.get(env, math.nan) for _, scores in points], colour)
            for colour, env in enumerate(envs)
        ]
        out.append(plots.line_chart(f"pass@{k} by environment", series, zero=True, lines=edges, note=note))
    out.append(
        charts.key_chart([run], "entropy/exact", "Exact entropy over the stages", zero=True, lines=edges, note=note)
    )
    return out


STYLE = """
td.heat{background:color-mix(in srgb,var(--c0) var(--h),transparent)}
td.heat.own{box-shadow:inset 0 0 0 2px var(--c0);font-weight:600}
"""
