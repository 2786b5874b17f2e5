"""Checks the harness of the benchmarks, and that every part of it can be started; no benchmark is run here."""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import measure, run, runs
from benchmarks.trl.compare import Rounds
from benchmarks.workloads.reply_lengths import ReplyLengths, score
from hypothesis import given
from hypothesis import strategies as st

from envs.types import Verdict

PAGE = "# Page\n\n## `make bench`\n\nIntroduction.\n\n## Another section\n\nIts text.\n"
WHERE = {"cores": 2, "processor": "some", "card": "none"}


def test_what_takes_turns_is_called_in_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    seconds = measure.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warm=1)
    assert order == ["a", "b"] * 4
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}
    assert all(value >= 0 for found in seconds.values() for value in found)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=9))
def test_spread_is_of_the_median_and_0_for_equal_values(values: list[float]) -> None:
    assert measure.spread([values[0]] * len(values)) == 0
    assert measure.spread(values) == pytest.approx((max(values) - min(values)) / sorted_middle(values))


def sorted_middle(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def test_a_ratio_says_whether_its_goal_was_reached() -> None:
    held = measure.ratio("x", 9.0, goal="at least 8", held=True, ours="1 s", other="9 s", values=[8.0, 9.0, 10.0])
    assert held["verdict"] == "held" and held["spread"] == pytest.approx(2 / 9)
    assert measure.ratio("x", 7.0, goal="at least 8", held=False)["verdict"] == "missed"
    assert measure.ratio("x", 7.0)["verdict"] == ""
    assert "| x | 9 | at least 8 | held | 1 s against 9 s; spread 22% |" in measure.table([held])


def test_other_over_ours_is_taken_pair_by_pair() -> None:
    assert measure.paired([1.0, 2.0], [3.0, 3.0]) == [3.0, 1.5]
    with pytest.raises(ValueError, match="longer"):
        measure.paired([1.0], [3.0, 3.0])


def test_a_passage_is_added_once_and_then_replaced_and_the_rest_of_the_page_stays() -> None:
    first = measure.with_section(PAGE, "head", "one")
    assert first.index("Introduction.") < first.index("one") < first.index("## Another section")
    assert first.endswith("## Another section\n\nIts text.\n")
    second = measure.with_section(measure.with_section(first, "trl", "other"), "head", "two")
    assert "one" not in second and second.count("<!-- bench head: begin -->") == 1
    assert second.index("two") < second.index("other") < second.index("## Another section")
    assert second.endswith("## Another section\n\nIts text.\n")
    assert measure.with_section(second, "head", "two") == second


def test_a_page_without_the_section_or_without_an_end_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="no section"):
        measure.with_section("# Page\n", "head", "one")
    with pytest.raises(ValueError, match="and not"):
        measure.with_section(PAGE + measure.begin("head"), "head", "one")


def test_the_page_of_results_has_the_section() -> None:
    assert "new" in measure.with_section(run.PAGE.read_text("utf-8"), "head", "new")


def test_the_share_in_use_is_a_share() -> None:
    assert 0 <= measure.busy_share(0.05) <= 1
    busy, every = measure.cpu_ticks()
    assert 0 < busy < every


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a part whose module is a script of the test's own."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(run, "busy_share", lambda: 0.5)

    def make(text: str, limit_s: float = 30) -> run.Part:
        (tmp_path / "bench_part.py").write_text(text)
        importlib.invalidate_caches()
        return run.Part("own", "bench_part", "its own", limit_s)

    return make


WRITES = """
import json, sys
print("measured")
lines = [{"what": "a / b", "ratio": 2.0, "goal": "at most 3", "verdict": "held", "ours": "", "other": ""}]
open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps({"part": "own", "ratios": lines, "more": 1}))
"""


def test_a_part_that_ends_well_is_written_to_page_and_data(module: Any, tmp_path: Path) -> None:
    outcome = run.play(module(WRITES))
    assert outcome.problem == "" and outcome.printed == "measured\n" and outcome.data["more"] == 1
    page, data = tmp_path / "page.md", tmp_path / "data" / "bench.json"
    page.write_text(PAGE)
    (tmp_path / "data").mkdir()
    data.write_text(json.dumps({"another": {"date": "before"}}))
    run.keep(outcome, WHERE, "2026-01-02", page, data)
    text = page.read_text()
    assert "2026-01-02, 2 cores (some)" in text and "| a / b | 2 |" in text and "## Another section" in text
    assert "others using 50% of the cores" in text and "| at most 3 | disturbed |" in text
    kept = json.loads(data.read_text())
    assert kept["another"] == {"date": "before"}
    assert kept["own"]["ratios"][0]["ratio"] == 2.0 and kept["own"]["machine"] == WHERE


@pytest.mark.parametrize(
    ("text", "limit_s", "said"),
    [
        ("raise SystemExit(3)", 30, "exit code 3"),
        ("import time; print('so far', flush=True); time.sleep(60)", 2, "longer than 2 s"),
    ],
    ids=["fails", "hangs"],
)
def test_a_part_that_fails_or_hangs_is_not_measured(
    module: Any, tmp_path: Path, text: str, limit_s: float, said: str
) -> None:
    outcome = run.play(module(text, limit_s))
    assert said in outcome.problem and not outcome.data
    page, data = tmp_path / "page.md", tmp_path / "bench.json"
    page.write_text(PAGE)
    run.keep(outcome, WHERE, "2026-01-02", page, data)
    assert "Not measured on 2026-01-02" in page.read_text() and not data.exists()


def test_a_part_that_is_missing_is_said_to_be_and_fails_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "PARTS", (run.Part("none", "benchmarks.not_there", "nothing", 5),))
    monkeypatch.setattr(sys, "argv", ["run", "--dry"])
    assert run.main() == 1
    assert "missing: there is no module benchmarks.not_there" in capsys.readouterr().out


@pytest.mark.parametrize("part", run.PARTS, ids=lambda part: part.name)
def test_every_part_that_is_there_can_be_started(part: run.Part) -> None:
    if not run.exists(part):
        pytest.skip(f"{part.module} is not there, and `make bench` says so")
    assert callable(importlib.import_module(part.module).main)


@pytest.mark.parametrize("name", ["heavy", "short"])
def test_reply_lengths_are_those_that_a_recipe_asks_for(name: str) -> None:
    declared = runs.recipe(name)
    environment = ReplyLengths(0, **declared["environments"][0]["params"])
    prompt, rng = environment.prompt("train", 0), random.Random(0)
    lengths = [len(environment.demonstration(prompt, rng)) + 1 for _ in range(4000)]
    assert max(lengths) == declared["sampling"]["max_tokens"]
    assert sum(lengths) / len(lengths) == pytest.approx({"heavy": 83, "short": 13}[name], rel=0.08)


def test_the_reward_of_reply_lengths_is_the_share_of_first_letters() -> None:
    assert score("abcd").reward == 0.25 and score("aeim").reward == 1 and score("").reward == 0
    verdict = ReplyLengths(0, shares=[1.0], means=[4], limit=8).open(None).reply("aab")  # type: ignore[arg-type]
    assert isinstance(verdict, Verdict) and verdict.reward == pytest.approx(2 / 3)


def test_the_time_to_a_reward_is_of_the_first_window_that_reaches_it() -> None:
    rounds = Rounds([1.0] * 6, [10.0] * 6, [0.1, 0.9, 0.2, 0.5, 0.6, 0.7])
    assert rounds.until(0.5) == 3 + 1 and rounds.until(0.6) == 6 and rounds.until(0.9) is None
    assert rounds.rate == 10 and math.isclose(rounds.second, 1.0)
