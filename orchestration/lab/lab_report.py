"""Writes the report of a lab: many arms under several seeds each, on one self-contained page.

Names, notes and reasons come from a grid file and from errors; the templates escape them like every other text.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from orchestration.analysis.control import steered
from orchestration.analysis.run_data import load_run
from orchestration.lab import charts
from orchestration.lab.charts import ArmTracks, Panel
from orchestration.lab.collect import ArmRuns
from orchestration.lab.narrative import narrative
from orchestration.lab.results import LabResults
from orchestration.lab.tables import arm_table, matrices, note_table, retention_table, run_table, temperature_text
from orchestration.report import page

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Section:
    """Holds a heading and the panels under it."""

    heading: str
    panels: Sequence[Panel]


def write_lab_report(title: str, arms: Sequence[ArmRuns], results: LabResults, out: Path) -> Path:
    """Writes the report of a lab to `out` and returns it. `results` is what `collect` returned for these arms.

    The runs are read again for their tracks, except those that `results` counts as failed.
    """
    tracks, links = [], {}
    for index, (arm, result) in enumerate(zip(arms, results.arms, strict=True)):
        folders = {seed: path for seed, path in arm.runs.items() if seed in result.finished}
        links |= {(index, seed): link for seed, path in folders.items() if (link := _link(path, out.absolute()))}
        runs = [load_run(path) for path in folders.values()]
        tracks.append(ArmTracks(result.name, index, runs, any(map(steered, runs))))
    text = page.render(
        "lab_report.html.j2",
        templates=HERE / "templates",
        style=(HERE / "assets" / "lab.css").read_text("utf-8"),
        kind="Isentrope lab",
        title=title,
        body_class="several",
        lead=narrative(results),
        arms=arm_table(results),
        retention=retention_table(results),
        matrices=matrices(results),
        failures=[(arm.name, seed, reason) for arm in results.arms for seed, reason in arm.failed.items()],
        sections=_sections(results, tracks),
        notes=note_table(results),
        runs=run_table(results, links),
    )
    return page.write_page(out, text)


def _link(folder: Path, page_path: Path) -> str:
    """Returns the address of a run's report from the lab's page; empty text where the run has no report."""
    if not (folder / "report.html").exists():
        return ""
    relative = os.path.relpath(folder / "report.html", page_path.parent)
    # Quoted and begun with ./ so that a folder's name is never read as an address with a scheme.
    return f"./{quote(Path(relative).as_posix())}"


def _sections(results: LabResults, tracks: Sequence[ArmTracks]) -> list[Section]:
    sections = [
        _section("Quality against coverage", _fronts(results)),
        _section("Entropy", [charts.entropy_tracks(tracks), charts.coefficient_tracks(tracks)]),
        _section("Reward and pass@k", [charts.reward_tracks(tracks), charts.pass_by_k(results)]),
    ]
    return [section for section in sections if section.panels]


def _section(heading: str, panels: Iterable[Panel | None]) -> Section:
    return Section(heading, [panel for panel in panels if panel is not None])


def _fronts(results: LabResults) -> list[Panel | None]:
    k = results.k
    if k == 1:
        return []
    note = "Each metric at the temperature that is best for it, chosen on these prompts: the two may differ."
    both, first = f"pass@1 against pass@{k}", temperature_text(results)
    return [
        charts.pareto_chart(results, "pass@1/end", f"pass@{k}/end", f"{both} at {first}"),
        charts.pareto_chart(results, "pass@1/best", f"pass@{k}/best", f"{both}, each at its best temperature", note),
    ]
