"""The summary of a run in numbers, and the numbers in words."""

import math
from pathlib import Path

import pytest
from support.builders import run_folder

from orchestration.analysis.run_data import load_run
from orchestration.analysis.run_summary import (
    RunSummary,
    comparison,
    sentences,
    summarise,
    summary_of,
)
from orchestration.report.run_report import write_report


def test_runs_that_cannot_be_reported_say_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "out.html")
    with pytest.raises(ValueError, match="is not a folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "out.html")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="no finished iteration"):
        summarise(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n')
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        summarise(tmp_path)


def test_the_summary_follows_its_definitions(tmp_path: Path) -> None:
    s = summarise(run_folder(tmp_path / "run", n=40, end=0.6, target=0.5))
    assert (s.name, s.iterations) == ("run", 40)
    assert s.entropy_start == pytest.approx(0.99)  # mean of 1.00, 0.99, 0.98
    assert s.entropy_end == pytest.approx(0.62)  # mean of 0.64 .. 0.60
    assert s.entropy_change == pytest.approx(0.62 / 0.99 - 1)
    late = [abs(1 - 0.01 * i - 0.5) / 0.5 for i in range(27, 41)]  # the last third of 41 rows
    assert s.target_error_last_third == pytest.approx(sum(late) / len(late))
    assert s.target_rms_last_third == pytest.approx(math.sqrt(sum(v * v for v in late) / len(late)))
    assert (s.pass_1, s.pass_at[4], s.distinct) == pytest.approx((0.5, 0.8, 3.0))
    assert s.pass_at_start == pytest.approx({1: 0.1, 4: 0.4})
    assert math.isnan(s.pass_16)
    assert (s.seconds, s.tokens) == (82.0, 4100.0)
    assert s.reward_end == pytest.approx(0.58)


def test_off_target_is_what_the_controller_observes_while_it_controls(tmp_path: Path) -> None:
    summary = summarise(run_folder(tmp_path / "seen", end=0.5, target=1.0, more={"entropy/controlled": 0.9}))
    assert summary.target_rms_last_third == pytest.approx(0.1)
    assert math.isnan(summary.released)
    run = load_run(run_folder(tmp_path / "run", n=40, end=0.6, target=1.0))
    for row in run.rows[10:]:
        row["entropy/released"] = 1.0
    let_go = summary_of(run)
    late = [0.01 * i for i in (6, 7, 8, 9)]  # the last third of the 10 rows before the release
    assert let_go.target_rms_last_third == pytest.approx(math.sqrt(sum(v * v for v in late) / len(late)))
    assert let_go.released == 10.0
    assert "in the last third before its release it was" in sentences(let_go)


def test_sentences_say_what_the_numbers_say() -> None:
    s = RunSummary("x", 300, entropy_start=1.21, entropy_end=0.45, entropy_change=0.45 / 1.21 - 1)
    assert sentences(s) == "Exact entropy fell 63\xa0% from 1.21 to 0.45 nats per token in 300 iterations."
    held = RunSummary(
        "x", 9, 1.0, 1.01, 0.01, target=1.0, target_rms_last_third=0.06, saturated=0.5, not_finite=("loss",)
    )
    assert "stayed near 1.01" in sentences(held)
    assert "6\xa0% rms off its target (1.00)" in sentences(held)
    assert "at its bound" in sentences(held)
    assert "loss" in sentences(held)
    assert sentences(RunSummary("x", 1)) == ""


def test_comparison_names_the_leader_and_a_tie() -> None:
    a = RunSummary("a", 1, pass_at={1: 0.5, 16: 0.8}, distinct=2.0)
    b = RunSummary("b", 1, pass_at={1: 0.5, 16: 0.9}, distinct=4.0)
    text = "Highest pass@1: a tie (0.50); pass@16: b (0.90); distinct correct solutions: b (4.0)."
    assert comparison([a, b]) == text
    assert comparison([a, RunSummary("c", 1)]) == ""


def test_a_run_seen_as_one_of_its_environments(tmp_path: Path) -> None:
    """Task families have a slash in their name, and one name may begin with another."""
    run = load_run(run_folder(tmp_path / "run", n=40, envs=("gym", "gym/gcd")))
    assert run.envs() == ["gym", "gym/gcd"]
    full, one, two = (summary_of(part) for part in (run, run.only("gym"), run.only("gym/gcd")))
    assert (one.reward_end, two.reward_end) == pytest.approx((full.reward_end, full.reward_end / 2))
    assert one.entropy_end == pytest.approx(full.entropy_end)
    assert (one.pass_at, one.distinct, one.iterations) == (full.pass_at, 3.0, 40)
    assert {p.env for p in run.only("gym").evals()} == {"gym"}
