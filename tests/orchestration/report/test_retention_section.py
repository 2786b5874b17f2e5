"""What was retained, as it is shown: the section of a run's report, and the figures and the table of a lab."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from support.builders import run_folder, staged_rows

from orchestration.analysis.run_data import load_run
from orchestration.lab.lab_report import write_lab_report
from orchestration.lab.results import ArmRuns, collect, retention_columns
from orchestration.report.retention_section import retention_section, signed
from orchestration.report.run_report import write_report


def staged_folder(folder: Path, shift: float = 0.0, names: tuple[str, ...] = ("first", "second", "third")) -> Path:
    """A run with the hand-made rows; pass@k after the last stage moved by `shift`."""
    folder.mkdir(parents=True)
    rows = staged_rows()
    rows[-1] |= {key: value + shift for key, value in rows[-1].items() if key.startswith("eval/")}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"stages": [{"name": name} for name in names]}))
    return folder


def test_the_section_says_what_was_lost_and_shows_the_matrix(tmp_path: Path) -> None:
    text = retention_section(load_run(staged_folder(tmp_path / "run")), 4)
    lead = re.sub("<[^>]+>", "", text.partition("</p>")[0])
    assert lead.startswith("The run trained 3 stages, one after the other: first, second, third.")
    assert "After the last one, mean pass@1 over all that was trained is 0.57." in lead
    assert (
        "cost an environment 0.35 of pass@1 on average, most in b: from 0.80 to 0.40 (backward transfer −0.35" in lead
    )
    assert "changed it by +0.25 already (forward transfer)" in lead
    heat = re.findall(r'<td class="heat( own)?" style="--h:(\d+)%">([\d.]+)</td>', text)
    assert len(heat) == 2 * 4 * 3
    assert heat[:4] == [("", "6", "0.100"), ("", "12", "0.200"), ("", "0", "0.000"), (" own", "54", "0.900")]
    assert text.count('class="heat own"') == 2 * 3
    assert "<th>a</th><td>0.600</td><td>-0.300</td><td>—</td><td>0.300</td>" in text
    assert "<th>second</th><td>2</td><td>0.600</td><td>0.550</td>" in text
    # Two boundaries in each of the pictures that have data: reward, pass@1 and pass@4.
    assert text.count('class="edge"') == 2 * 3


def test_a_gain_and_no_change_have_words_of_their_own(tmp_path: Path) -> None:
    gain = retention_section(load_run(staged_folder(tmp_path / "gain", 0.5)), 1)
    assert "added to an environment 0.15 of pass@1" in gain
    same = retention_section(load_run(staged_folder(tmp_path / "same", 0.35)), 1)
    assert "changed an environment's pass@1 by nothing on average".replace("'", "&#x27;") in same
    assert [signed(v) for v in (0.123, -0.123, 0.001, float("nan"))] == ["+0.12", "−0.12", "0.00", "—"]


def test_a_run_without_stages_has_no_such_section(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "plain")
    assert retention_section(load_run(run), 4) == ""
    assert "What was retained" not in write_report([run], tmp_path / "a.html").read_text()


def test_the_report_has_the_section_and_escapes_its_names(tmp_path: Path) -> None:
    run = staged_folder(tmp_path / "run", names=("first", "second", "</td><script>alert(1)</script>"))
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>What was retained</h2>" in page
    assert "<script>alert" not in page
    assert ".chart .edge{" in page
    assert "td.heat{" in page
    both = write_report([run, staged_folder(tmp_path / "other")], tmp_path / "both.html").read_text(encoding="utf-8")
    assert "<h2>What was retained, other</h2>" in both


def test_a_lab_has_the_figures_with_mean_and_spread(tmp_path: Path) -> None:
    arms = [
        ArmRuns("grpo", {0: staged_folder(tmp_path / "g0"), 1: staged_folder(tmp_path / "g1", 0.2)}, {}),
        ArmRuns("plain", {0: run_folder(tmp_path / "p0")}, {}),
    ]
    results = collect(arms)
    found = results["arms"][0]["figures"]
    assert found["backward/pass@1"]["mean"] == pytest.approx(-0.25)
    assert found["backward/pass@1"]["std"] == pytest.approx(0.2 / 2**0.5)
    assert found["forward/pass@4"]["n"] == 2
    titles = [c.title for c in retention_columns(results)]
    assert titles[:4] == [f"{t}, pass@1" for t in ("at the end", "backward transfer", "forward transfer", "forgetting")]
    assert titles[-1] == "reward, stage 2"
    cells = {c.title: [c.cell(arm) for arm in results["arms"]] for c in retention_columns(results)}
    assert cells["backward transfer, pass@1"] == ["-0.250 ± 0.141", "—"]
    page = write_lab_report("lab", arms, results, tmp_path / "lab.html").read_text(encoding="utf-8")
    assert "<h2>What was retained</h2>" in page
    only = collect(arms[1:])
    assert retention_columns(only) == []
    assert "What was retained" not in write_lab_report("lab", arms[1:], only, tmp_path / "l.html").read_text(
        encoding="utf-8"
    )
