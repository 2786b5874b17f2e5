"""Tables: the same cells as Markdown, for the terminal and as HTML."""

import io

from rich.console import Console
from support.html_page import Page

from orchestration.report import page
from orchestration.report.table import Cell, Table

NAMES = Table(["arm", "pass@1, T = 1"], [[Cell("a|b <i>", mark="c1"), Cell("4.4 ± 1.0\N{NO-BREAK SPACE}%")]])


def test_markdown_escapes_its_own_marks_and_keeps_a_row_on_one_line() -> None:
    table = Table(["arm", "after", "[x]"], [[Cell("a\nb"), Cell("c\x1b"), Cell("1")]], labels=2, footnotes=["*"])
    assert table.to_markdown().splitlines() == [
        "| arm | after | \\[x\\] |",
        "|---|---|---:|",
        "| a b | c\N{REPLACEMENT CHARACTER} | 1 |",
        "",
        "- \\*",
    ]
    assert "| 4.4 ± 1.0\N{NO-BREAK SPACE}% |" in NAMES.to_markdown()


def test_a_text_that_utf_8_cannot_hold_is_written_all_the_same() -> None:
    Table(["arm"], [[Cell("\ud800")]], footnotes=["\ud800"]).to_markdown().encode("utf-8")


def test_the_terminal_shows_names_as_they_are() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(Table(["run", "[b]"], [[Cell("[red]x\x1b"), Cell("1.0")]], footnotes=["[red]lost"]).to_rich())
    shown = console.export_text()
    assert all(part in shown for part in ("[b]", "[red]x\N{REPLACEMENT CHARACTER}", "1.0", "[red]lost"))


def test_html_escapes_and_puts_the_spread_under_the_mean() -> None:
    markup = (
        page._environment(None).from_string('{% from "table.html.j2" import table %}{{ table(t) }}').render(t=NAMES)
    )
    assert '<th><i class="run c1"></i>a|b &lt;i&gt;</th>' in markup
    assert "<td>4.4\N{NO-BREAK SPACE}%<br><small>± 1.0\N{NO-BREAK SPACE}%</small></td>" in markup
    assert "<th>pass@1, <br>T = 1</th>" in markup
    assert Page(markup).open == []


def test_html_has_the_marks_of_its_cells() -> None:
    row = [Cell("run", aside="a & b"), Cell("0.9", heat=54, framed=True), Cell("report", link='./a b/"x".html')]
    template = page._environment(None).from_string('{% from "table.html.j2" import table %}{{ table(t, "lab") }}')
    markup = template.render(t=Table(["", "", ""], [row]))
    assert "<th>run <small>a &amp; b</small></th>" in markup
    assert '<td class="heat own" style="--h:54%">0.9</td>' in markup
    assert '<a href="./a b/&#34;x&#34;.html">report</a>' in markup
    assert 'class="lab"' in markup
