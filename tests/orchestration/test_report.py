"""The report: a page that stands alone, survives missing data and untrusted text, and shows every part of a run."""

import html.parser
import re
from pathlib import Path

import pytest
from builders import run_folder

from orchestration.report import write_report
from orchestration.summary import summarise


class Page(html.parser.HTMLParser):
    """Tags, addresses and texts of a page; complains about a tag closed out of order."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(out: Path, *runs: Path) -> Page:
    page = Page(write_report(list(runs), out / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_stands_alone_and_replies_cannot_act(tmp_path: Path) -> None:
    page = report(tmp_path, run_folder(tmp_path / "<b>run</b>", target=0.5, envs=("a", "b")))
    assert page.tags.count("script") == 1
    assert not {"img", "link", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "onerror") or name.startswith("on")]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in text
    assert "<b>run" not in text
    assert not re.search("[\x1b\u202e]", text)
    assert "script-src 'sha256-" in text
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
        "Entropy knob",
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
        '{"iteration": 1, "entropy/exact": 1.0, "entropy/target": 0.0, "entropy/knob": 0.0}',
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
