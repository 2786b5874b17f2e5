"""The report: a page that stands alone, survives missing data and untrusted text, and shows every part of a run."""

import base64
import hashlib
import re
from pathlib import Path

import pytest
from support.builders import LEDGER, run_folder
from support.html_page import Page

from orchestration.analysis.run_summary import summarise
from orchestration.report.run_report import write_report


def report(out: Path, *runs: Path) -> Page:
    page = Page(write_report(list(runs), out / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_stands_alone_and_responses_cannot_act(tmp_path: Path) -> None:
    page = report(tmp_path, run_folder(tmp_path / "<b>run</b>", target=0.5, envs=("a", "b")))
    assert page.tags.count("script") == 1
    assert not {"img", "link", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "onerror") or name.startswith("on")]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)" in text
    assert "<b>run" not in text
    assert not re.search("[\x1b\u202e]", text)
    # The one script that the policy admits is the one that is there.
    (digest,) = re.findall("script-src 'sha256-([^']+)'", text)
    (script,) = re.findall("<script>(.*?)</script>", text, re.S)
    assert digest == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "http://" not in text
    assert "https://" not in text


def test_every_section_is_there(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "grpo"), run_folder(tmp_path / "repo", target=0.9, end=0.9, envs=("a", "b"))
    page = report(tmp_path, one, two)
    for shown in (
        "grpo · repo",
        "Exact entropy fell 47",
        "repo, target",
        "Reward",
        "pass@k by temperature",
        "repo, T = 0.3",
        "Quality against coverage",
        "Entropy coefficient",
        "slope 2, r = 1.00",
        "Time of an iteration, grpo",
        "Environment: b",
        "Distinct correct solutions",
        "Configuration of repo",
        "method: {kind: repo}",
    ):
        assert shown in page.text, shown
    for numbers in (value for name, value in page.attributes if name in ("d", "cx", "cy", "x1", "points")):
        assert "nan" not in (numbers or "")
    assert page.tags.count("circle") > 80


def test_a_single_run_is_summarised_in_chapters(tmp_path: Path) -> None:
    page = report(tmp_path, run_folder(tmp_path / "run", target=0.9, end=0.4, envs=("a", "b"), more=LEDGER))
    # Each chapter with its charts, in reading order, and the sections of charts after them.
    order = (
        *("Summary of the run", "1. What entropy did", "Exact entropy", "Entropy of correct and failed responses"),
        *("2. Why", "Predicted change of entropy, summed", "Change of entropy, predicted and realised"),
        *("3. What control did", "Predicted change, with and without control", "Entropy coefficient"),
        *("4. What it cost, what it kept", "Reward", "pass@k over training", "Distinct correct solutions a prompt"),
        *("Distinct responses a prompt, in training", "5. Can the numbers be trusted", "Quantiles of the log-prob gap"),
        *(
            "Effective sample size",
            "The entropy ledger",
            "Tokens the coefficient touches",
            "Withheld by clipping, summed",
        ),
        *("Covariance of advantage and log-prob", "Entropy by position in the response", "Entropy by environment"),
        *("Trainer and engine", "Quantiles of the ratio of new to old probability"),
    )
    assert page.positions(*order) == sorted(page.positions(*order))
    # Environments have charts of their own, with equal titles.
    common = page.pieces[: page.pieces.index("Environment: a")]
    assert [common.count(heading) for heading in order] == [1] * len(order)
    assert "REPO acted on too few tokens: 0.2\xa0%" in page.text
    assert page.pieces.count("Warning.") >= 3  # off target, too few tokens, phantom clipping


def test_several_runs_have_a_diagnosis_each(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", target=0.9, end=0.4, more=LEDGER)
    page = report(tmp_path, one, run_folder(tmp_path / "two", target=0.5))
    assert "Summary of the run" not in page.text
    diagnosis = page.pieces[page.pieces.index("The diagnosis") :]
    first, second = diagnosis.index("one"), diagnosis.index("two")
    assert first < second
    text = "".join(diagnosis[first:second])
    assert "REPO acted on too few tokens" in text
    assert "phantom clipping" in text
    assert "Mean reward" not in text
    assert "too few tokens" not in "".join(diagnosis[second : diagnosis.index("Exact entropy")])


def test_names_in_the_diagnosis_are_escaped(tmp_path: Path) -> None:
    names = {"entropy/<u>": 0.2, "entropy/b": 0.9}
    page = report(tmp_path, run_folder(tmp_path / "run", more=names))
    assert "from 0.20 nats per token in <u> to 0.90 in b." in page.text
    assert "u" not in page.tags


def test_charts_of_the_wider_ledger_name_what_they_show(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", more=LEDGER | {"entropy/controlled": 0.7})
    single, several = report(tmp_path, one), report(tmp_path, one, run_folder(tmp_path / "two"))
    for shown in ("under control", "correct responses", "first token", "clipped from above", "50 %", "99.9 %", "0.1 %"):
        assert shown in single.pieces, shown
    for shown in ("one, under control", "one, correct responses", "one, clipped from below", "one, 99.9 %"):
        assert shown in several.pieces, shown
    assert "one, 50 %" not in several.pieces  # side by side only the tails
    same = run_folder(tmp_path / "same", more=LEDGER | {"entropy/controlled": 1.0, "entropy/exact": 1.0})
    assert "under control" not in report(tmp_path, same).pieces


def test_the_number_of_solutions_is_shown_with_its_target(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", more={"diversity/solutions": 3.0, "diversity/target": 2.5})
    page = report(tmp_path, one)
    assert page.pieces.count("Effective number of solutions") == 1
    assert {"measured", "target"} <= set(page.pieces[page.pieces.index("Effective number of solutions") :])
    assert "Effective number of solutions" not in report(tmp_path, run_folder(tmp_path / "two")).pieces


def test_the_terms_of_a_reward_are_shown_together_and_a_gamed_one_is_a_warning(tmp_path: Path) -> None:
    gamed = {"drift/hacking": 1.0, "drift/reward": 0.4, "drift/check": -0.1}
    one = run_folder(tmp_path / "one", more={"term/verdict": 0.2, "term/judge": 0.9, "term/judge/a": 0.9} | gamed)
    page = report(tmp_path, one)
    assert page.pieces.count("Terms of the reward") == 1
    shown = page.pieces[page.pieces.index("Terms of the reward") :]
    assert {"verdict", "judge"} <= set(shown)
    assert "judge/a" not in shown
    assert "the reward may be gamed" in page.text
    several = report(tmp_path, one, run_folder(tmp_path / "two"))
    assert "Terms of the reward" not in several.pieces  # a colour is a run there
    assert "the reward may be gamed" in several.text


def test_a_run_without_a_ledger_has_only_the_chapters_it_has_numbers_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    rows = [f'{{"iteration": {i}, "reward/mean": 0.5}}' for i in range(9)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    page = report(tmp_path, tmp_path / "run")
    assert [piece for piece in page.pieces if re.match(r"\d\. ", piece)] == ["4. What it cost, what it kept"]


def test_environments_are_shown_one_by_one_where_there_are_several(tmp_path: Path) -> None:
    families = ("reasoning_gym/gcd", "reasoning_gym/chain_sum")
    one, two = run_folder(tmp_path / "one", envs=families), run_folder(tmp_path / "two", envs=families[:1])
    single = report(tmp_path, one)
    several = report(tmp_path, one, two)
    for shown in (*families, "0.110 → 0.290", "Environment: reasoning_gym/gcd"):
        assert shown in single.text, shown
    assert "reasoning_gym/gcd two" in several.text
    assert "reasoning_gym/chain_sum two" not in several.text
    assert "Environment:" not in report(tmp_path, two).text


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    page = report(tmp_path, run_folder(tmp_path / "x" / "run"), run_folder(tmp_path / "y" / "run"))
    assert "run (1) · run (2)" in page.text


@pytest.mark.parametrize(
    "line",
    [
        '{"iteration": 0}',
        '{"iteration": 1, "entropy/exact": null, "reward/mean": null, "loss": null}',
        '{"iteration": 1, "entropy/exact": 1.0, "entropy/target": 0.0, "entropy/coefficient": 0.0}',
        '{"iteration": 0, "eval/a/pass@1/T=1": 0.5}',
        '{"iteration": 1, "entropy/exact": 0.0, "reward/mean": -1e300, "foreign key": 3, "note": "text"}',
    ],
)
def test_a_run_of_one_row_with_almost_nothing_in_it(tmp_path: Path, line: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(line + "\n")
    page = report(tmp_path, tmp_path / "run")
    assert "Isentrope report" in page.text
    summarise(tmp_path / "run")
