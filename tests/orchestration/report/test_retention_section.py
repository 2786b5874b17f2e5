"""Tests how retention is shown: the section of a run's report, and the metrics and the table of a lab."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from support.builders import run_folder, staged_rows

from orchestration.analysis.run_data import load_run
from orchestration.lab.collect import ArmRuns, collect
from orchestration.lab.lab_report import write_lab_report
from orchestration.lab.tables import retention_table
from orchestration.report import page
from orchestration.report.retention_section import change_text, retention_section
from orchestration.report.run_report import write_report


def staged_folder(folder: Path, shift: float = 0.0, names: tuple[str, ...] = ("first", "second", "third")) -> Path:
    """Writes a run with the hand-made rows; pass@k after the last stage is moved by `shift`."""
    folder.mkdir(parents=True)
    rows = staged_rows()
    rows[-1] |= {key: value + shift for key, value in rows[-1].items() if key.startswith("eval/")}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"stages": [{"name": name} for name in names]}))
    return folder


def section_html(folder: Path, k: int) -> str:
    return page.render("retention.html.j2", section=retention_section(load_run(folder), k))


def test_the_section_says_what_was_lost_and_shows_the_matrix(tmp_path: Path) -> None:
    text = section_html(staged_folder(tmp_path / "run"), 4)
    lead = re.sub("<[^>]+>", "", text.partition("</p>")[0]).strip()
    assert lead.startswith("The run trained 3 stages, one after the other: first, second, third.")
    assert "After the last one, mean pass@1 over all that was trained is 0.57." in lead
    assert (
        "cost an environment 0.35 of pass@1 on average, most in b: from 0.80 to 0.40 (backward transfer −0.35" in lead
    )
    assert "had already changed it by +0.25 (forward transfer)" in lead
    heat = re.findall(r'<td class="heat( own)?" style="--h:(\d+)%">([\d.]+)</td>', text)
    assert len(heat) == 2 * 4 * 3
    assert heat[:4] == [("", "6", "0.100"), ("", "12", "0.200"), ("", "0", "0.000"), (" own", "54", "0.900")]
    assert text.count('class="heat own"') == 2 * 3
    assert "<th>a</th><td>0.600</td><td>-0.300</td><td>—</td><td>0.300</td>" in text
    assert "<th>second</th><td>2</td><td>0.600</td><td>0.550</td>" in text
    # Two boundaries in each of the pictures that have data: reward, pass@1 and pass@4.
    assert text.count('class="edge"') == 2 * 3


def test_a_gain_and_no_change_have_words_of_their_own(tmp_path: Path) -> None:
    gain = section_html(staged_folder(tmp_path / "gain", 0.5), 1)
    assert "added to an environment 0.15 of pass@1" in gain
    same = section_html(staged_folder(tmp_path / "same", 0.35), 1)
    assert "left an environment&#39;s pass@1 unchanged on average" in same
    assert [change_text(v) for v in (0.123, -0.123, 0.001, float("nan"))] == ["+0.12", "−0.12", "0.00", "—"]


def test_a_run_without_stages_has_no_such_section(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "plain")
    assert retention_section(load_run(run), 4) is None
    assert "What was retained" not in write_report([run], tmp_path / "a.html").read_text()


def test_the_report_has_the_section_and_escapes_its_names(tmp_path: Path) -> None:
    run = staged_folder(tmp_path / "run", names=("first", "second", "</td><script>alert(1)</script>"))
    text = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>What was retained</h2>" in text
    assert "<script>alert" not in text
    assert ".chart .edge{" in text
    assert "td.heat{" in text
    both = write_report([run, staged_folder(tmp_path / "other")], tmp_path / "both.html").read_text(encoding="utf-8")
    assert "<h2>What was retained, other</h2>" in both


def test_a_lab_has_the_metrics_with_mean_and_spread(tmp_path: Path) -> None:
    arms = [
        ArmRuns("grpo", {0: staged_folder(tmp_path / "g0"), 1: staged_folder(tmp_path / "g1", 0.2)}, {}),
        ArmRuns("plain", {0: run_folder(tmp_path / "p0")}, {}),
    ]
    results = collect(arms)
    metrics = results.arms[0].metrics
    assert metrics["backward/pass@1"].mean == pytest.approx(-0.25)
    assert metrics["backward/pass@1"].std == pytest.approx(0.2 / 2**0.5)
    assert metrics["forward/pass@4"].n == 2
    table = retention_table(results)
    assert table is not None
    assert list(table.headings[1:5]) == [
        f"{title}, pass@1" for title in ("at the end", "backward transfer", "forward transfer", "forgetting")
    ]
    assert table.headings[-1] == "reward, stage 2"
    column = table.headings.index("backward transfer, pass@1")
    assert [row[column].text for row in table.rows] == ["-0.250 ± 0.141", "—"]
    text = write_lab_report("lab", arms, results, tmp_path / "lab.html").read_text(encoding="utf-8")
    assert "<h2>What was retained</h2>" in text
    only = collect(arms[1:])
    assert retention_table(only) is None
    assert "What was retained" not in write_lab_report("lab", arms[1:], only, tmp_path / "l.html").read_text(
        encoding="utf-8"
    )
