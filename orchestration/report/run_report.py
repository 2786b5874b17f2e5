"""Writes one self-contained report.html from a run folder, or from several side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestration.analysis.run_data import RunData, load_run
from orchestration.analysis.run_summary import comparison, sentences, summary_of, widest_k
from orchestration.report import page
from orchestration.report.chapters import Selection, chapters, diagnoses, sections
from orchestration.report.page import Paragraph
from orchestration.report.retention_section import retention_section
from orchestration.report.settings_line import settings_lines
from orchestration.report.summary_table import environment_table, summary_table

SAMPLES_SHOWN = 6  # responses of the first and of the last iteration
TEXT_LIMIT = 4000  # characters of one prompt or response


@dataclass(frozen=True, slots=True)
class ShownSample:
    """Holds a response as the page shows it; all texts are untrusted and of bounded length."""

    iteration: str
    env: str
    prompt: str
    response: str
    reward: str
    correct: bool
    status: str
    detail: str  # why it was not scored


@dataclass(frozen=True, slots=True)
class ShownSamples:
    """Holds the responses of one run."""

    name: str
    samples: Sequence[ShownSample]


def write_report(runs: list[Path], out: Path) -> Path:
    """Writes the report of one run folder or several to `out` and returns it.

    Raises ValueError in a sentence when `runs` is empty, a run has no iteration, or a file in it is broken.
    """
    if not runs:
        raise ValueError("A report needs at least one run folder.")
    return page.write_page(out, render([load_run(run) for run in runs]))


def render(runs: Sequence[RunData]) -> str:
    """Returns the whole page. Runs of equal name get a number each."""
    runs = _numbered(runs)
    several = len(runs) > 1
    summaries = [summary_of(run) for run in runs]
    lead = [Paragraph(summary.name if several else "", sentences(summary)) for summary in summaries]
    if several and (compared := comparison(summaries)):
        lead.append(Paragraph("", compared))
    shown = Selection(runs, list(dict.fromkeys(env for run in runs for env in run.envs())), widest_k(summaries))
    retained = [(run.name, retention_section(run, shown.k)) for run in runs]
    samples = [ShownSamples(run.name, _first_and_last_samples(run)) for run in runs]
    return page.render(
        "run_report.html.j2",
        kind="Isentrope report",
        title=" · ".join(run.name for run in runs),
        body_class="several" if several else "single",
        several=several,
        lead=lead,
        settings=settings_lines(runs),
        summary=summary_table(summaries),
        environments=environment_table(runs, shown.envs, shown.k) if len(shown.envs) > 1 else None,
        narrative_heading="The diagnosis" if several else "Summary of the run",
        narrative=diagnoses(runs) if several else chapters(shown),
        sections=sections(shown),
        retained=[(name, section) for name, section in retained if section is not None],
        responses=[run for run in samples if run.samples],
        runs=runs,
    )


def _numbered(runs: Sequence[RunData]) -> list[RunData]:
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({names[: i + 1].count(run.name)})") if names.count(run.name) > 1 else run
        for i, run in enumerate(runs)
    ]


def _first_and_last_samples(run: RunData) -> list[ShownSample]:
    """Returns responses of the first and of the last iteration that has any."""
    given = (sample.get("iteration", 0) for sample in run.samples)
    iterations = [iteration for iteration in given if isinstance(iteration, int | float)]
    if not iterations:
        return []
    out = []
    for iteration in sorted({min(iterations), max(iterations)}):
        samples = [sample for sample in run.samples if sample.get("iteration", 0) == iteration]
        out += [_shown(iteration, sample) for sample in samples[:SAMPLES_SHOWN]]
    return out


def _shown(iteration: Any, sample: dict[str, Any]) -> ShownSample:
    reward = sample.get("reward")
    texts = {name: _bounded(sample.get(name, "")) for name in ("env", "prompt", "response")}
    return ShownSample(
        iteration=_bounded(iteration),
        reward=f"{reward:.3g}" if isinstance(reward, int | float) else "—",
        correct=bool(sample.get("correct")),
        status=_bounded(sample.get("status", "ok")),
        detail=_bounded(sample.get("detail", "")),
        **texts,
    )


def _bounded(value: Any) -> str:
    """Returns a value of samples.jsonl as text of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > TEXT_LIMIT:
        text = f"{text[:TEXT_LIMIT]} … ({len(text) - TEXT_LIMIT:,} more characters)"
    return text
