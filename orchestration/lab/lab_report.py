"""The report of a lab: many arms under several seeds each, on one self-contained page.

Shell, style and policy are those of `report.py`. Names, notes and reasons come from a grid file and from errors: they are
cleaned once, here, and escaped wherever they meet markup.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestration.analysis.control import steered
from orchestration.analysis.run_data import load_run
from orchestration.lab import charts as lab_charts
from orchestration.lab.charts import Tracks
from orchestration.lab.narrative import story
from orchestration.lab.results import ArmRuns, Matrix, columns, first_temperature, lines, matrices, retention_columns
from orchestration.report import svg as plots
from orchestration.report.chapters import table
from orchestration.report.run_report import clean, page
from orchestration.text import duration, label, number, one_line, percent

TITLES: Mapping[str, str] = {  # of the table of single runs
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


@dataclass(frozen=True, slots=True)
class _Folders:
    """Run folders by arm and seed, as the page links to them; None where there is no report to go to."""

    at: Mapping[tuple[int, str], Path]
    page: Path

    def link(self, arm: int, seed: str) -> str:
        folder = self.at.get((arm, seed))
        if folder is None or not (folder / "report.html").exists():
            return "—"
        to = os.path.relpath(folder / "report.html", self.page.parent)
        # Quoted and begun with ./ : a folder's name is never read as an address of its own.
        return f'<a href="./{escape(quote(Path(to).as_posix()))}">report</a>'


def write_lab_report(title: str, arms: Sequence[ArmRuns], results: Mapping[str, Any], out: Path) -> Path:
    """Write the report of a lab to `out` and return it. `results` is what `lab_results.collect` gave for these arms.

    The runs are read again for their tracks; one that `results` counts as failed is not.
    """
    shown = _cleaned(results)
    tracks, folders = [], {}
    for place, (arm, found) in enumerate(zip(arms, shown["arms"], strict=True)):
        mine = {seed: path for seed, path in arm.runs.items() if str(seed) in found["seeds"]}
        folders |= {(place, str(seed)): path for seed, path in mine.items()}
        runs = [load_run(path) for path in mine.values()]
        tracks.append(Tracks(found["name"], place, runs, any(map(steered, runs))))
    text = _render(clean(title), shown, tracks, _Folders(folders, out.absolute()))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out


def _cleaned(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with every text in them fit to be shown: visible, and on one line."""
    arms = []
    for arm in results["arms"]:
        failed = {seed: _line(reason) for seed, reason in arm["failed"].items()}
        arms.append({**arm, "name": _line(arm["name"]), "note": _line(arm["note"]), "failed": failed})
    return {**results, "arms": arms}


def _line(text: str) -> str:
    return clean(one_line(text))


def _render(title: str, results: Mapping[str, Any], tracks: Sequence[Tracks], folders: _Folders) -> str:
    head = "".join(
        f'<p class="lead">{f"<b>{escape(subject)}.</b> " if subject else ""}{escape(text)}</p>'
        for subject, text in story(results)
    )
    parts = [_table(results), _retention(results), _failures(results)]
    for heading, charts in _sections(results, tracks):
        drawn = "".join(charts)
        parts.append(f'<h2>{escape(heading)}</h2><div class="grid">{drawn}</div>' if drawn else "")
    parts += [_notes(results), _runs(results, folders)]
    return page("Isentrope lab", title, head, "".join(parts), style=STYLE)


def _sections(results: Mapping[str, Any], tracks: Sequence[Tracks]) -> list[tuple[str, list[str]]]:
    k, heat = results["k"], first_temperature(results)
    fronts = []
    if k > 1:
        own = "Each figure at the temperature that is best for it, chosen on these prompts: the two may differ."
        fronts = [
            lab_charts.pareto_chart(results, "pass@1/end", f"pass@{k}/end", f"pass@1 against pass@{k} at {heat}"),
            lab_charts.pareto_chart(
                results, "pass@1/best", f"pass@{k}/best", f"pass@1 against pass@{k}, each at its best temperature", own
            ),
        ]
    return [
        ("Quality against coverage", fronts),
        ("Entropy", [lab_charts.entropy_tracks(tracks), lab_charts.coefficient_tracks(tracks)]),
        ("Reward and pass@k", [lab_charts.reward_tracks(tracks), lab_charts.pass_by_k(results)]),
    ]


def _dot(place: int) -> str:
    """The arm's mark in the charts; hollow in the second round of the palette."""
    return f'<i class="run {plots.shade(place)}{" hollow" if place >= plots.PALETTE else ""}"></i>'


def _table(results: Mapping[str, Any]) -> str:
    cells, body = columns(results), ""
    extra = len(lines(results)) - len(results["arms"])  # the policy before training
    for row, arm in enumerate(lines(results)):
        dot = _dot(row - extra) if row >= extra else '<i class="run none"></i>'
        body += f"<tr><th>{dot}{escape(arm['name'])}</th>{''.join(f'<td>{_two_lines(c.cell(arm))}</td>' for c in cells)}</tr>"
    # A heading breaks after its comma, not inside the temperature.
    heads = "".join(f"<th>{escape(c.title).replace(', ', ',<br>')}</th>" for c in cells)
    aside = (
        "Mean ± standard deviation over seeds, after training. Off target: over the last two thirds of the iterations."
    )
    return table("summary lab", f"<tr><th>arm</th>{heads}</tr>", body) + f'<p class="note">{aside}</p>'


def _retention(results: Mapping[str, Any]) -> str:
    """What the arms kept of the environments they were trained on one after the other; empty text without stages."""
    cells = retention_columns(results)
    if not cells:
        return ""
    body = "".join(
        f"<tr><th>{_dot(place)}{escape(arm['name'])}</th>{''.join(f'<td>{_two_lines(c.cell(arm))}</td>' for c in cells)}</tr>"
        for place, arm in enumerate(results["arms"])
    )
    heads = "".join(f"<th>{escape(c.title).replace(', ', ',<br>')}</th>" for c in cells)
    aside = (
        "Mean ± standard deviation over seeds. Backward transfer: what came after an environment's own stage did to it; "
        "forward: what came before; forgetting: from the best it had been. Reward: its mean over the stage; entropy: from the "
        "stage's first 3 iterations to its last 5."
    )
    shown = table("summary lab", f"<tr><th>arm</th>{heads}</tr>", body)
    return f"<h2>What was retained</h2>{shown}<p class='note'>{aside}</p>{''.join(map(_matrix, matrices(results)))}"


def _matrix(matrix: Matrix) -> str:
    heads = "".join(f"<th>{escape(env)}</th>" for env in matrix.environments)
    body = "".join(
        f"<tr><th>{escape(arm)}</th><td>{escape(after)}</td>{''.join(f'<td>{_two_lines(cell)}</td>' for cell in cells)}</tr>"
        for arm, after, cells in matrix.lines
    )
    return table("summary lab", f"<tr><th>pass@{matrix.k}</th><th>after</th>{heads}</tr>", body)


def _failures(results: Mapping[str, Any]) -> str:
    found = [(arm["name"], seed, reason) for arm in results["arms"] for seed, reason in arm["failed"].items()]
    body = "".join(
        f"<li><b>{escape(name)}</b>, seed {escape(str(seed))}: {escape(reason)}</li>" for name, seed, reason in found
    )
    return f'<h2>Runs that failed</h2><ul class="failed">{body}</ul>' if found else ""


def _notes(results: Mapping[str, Any]) -> str:
    body = "".join(
        f"<tr><th>{_dot(place)}{escape(arm['name'])}</th><td>{escape(arm['note'])}</td></tr>"
        for place, arm in enumerate(results["arms"])
        if arm["note"]
    )
    return f"<h2>The arms</h2>{table('arms', '<tr><th>arm</th><th>what it is</th></tr>', body)}" if body else ""


def _runs(results: Mapping[str, Any], folders: _Folders) -> str:
    k = results["k"]
    titles = dict(TITLES)
    for n in dict.fromkeys((1, k)):
        titles |= {f"pass@{n}/end": f"pass@{n}", f"pass@{n}/best": f"pass@{n} best T"}
    keys = [key for key in titles if any(key in values for arm in results["arms"] for values in arm["seeds"].values())]
    body = ""
    for place, arm in enumerate(results["arms"]):
        for seed, values in arm["seeds"].items():
            cells = [_cell(key, values.get(key, math.nan)) for key in keys]
            cells += [duration(values.get("seconds", math.nan)), label(values.get("tokens", math.nan))]
            row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            who = f"<th>{_dot(place)}{escape(arm['name'])}</th><td>{escape(seed)}</td>"
            body += f"<tr>{who}<td>{folders.link(place, seed)}</td>{row}</tr>"
    if not body:
        return ""
    heads = "".join(
        f"<th>{escape(title)}</th>" for title in ("seed", "run", *(titles[key] for key in keys), "time", "tokens")
    )
    return f"<details><summary>Every run</summary>{table('summary', f'<tr><th>arm</th>{heads}</tr>', body)}</details>"


def _cell(key: str, value: float) -> str:
    if key in SHARES or key == "entropy_change":
        return percent(value, sign=key == "entropy_change")
    return number(value, ".2f" if key.startswith("distinct") else ".3f")


def _two_lines(cell: str) -> str:
    """The mean over its spread: side by side, a dozen columns would not fit a page."""
    middle, plus, around = cell.partition(" ± ")
    unit = "\N{NO-BREAK SPACE}%" if plus and around.endswith("%") else ""
    return escape(middle + unit) + (f"<br><small>± {escape(around)}</small>" if plus else "")


STYLE = """
.grid>.broad,.grid>.broad:only-child{grid-column:1/-1;max-width:none;min-width:0}
.broad h3{margin:6px 0 2px}.broad>.note{margin:0 0 8px}
.small{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:14px}.small .legend{display:none}
.small figcaption{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
@media (max-width:900px){.small{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media (max-width:560px){.small{grid-template-columns:1fr}}
i.run.hollow{background:none;border:2px solid var(--c)}i.run.none{background:none}
.summary tbody th{max-width:230px;overflow:hidden;text-overflow:ellipsis}
.lab th,.lab td{padding:6px 8px}.lab tbody>tr>*{vertical-align:middle;line-height:1.35}.lab thead th{white-space:normal}
.failed{margin:0;padding-left:20px}.failed li{overflow-wrap:anywhere}.arms th{white-space:nowrap}a{color:var(--c0)}
"""
