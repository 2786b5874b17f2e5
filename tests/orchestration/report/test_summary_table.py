"""The table of run summaries, as the demo prints it and the report shows it."""

import io
from pathlib import Path

from rich.console import Console
from support.builders import run_folder

from orchestration.analysis.run_data import load_run
from orchestration.analysis.run_summary import RunSummary
from orchestration.report.summary_table import environment_table, summary_table


def test_a_row_has_the_numbers_of_its_run() -> None:
    table = summary_table([RunSummary("[red]x", 1, 1.0, 0.4, -0.6, pass_at={1: 0.5, 8: 0.75}, seconds=4000)])
    row = dict(zip(table.headings, (cell.text for cell in table.rows[0]), strict=True))
    expected = {
        "run": "[red]x",
        "end": "0.400",
        "change": "−60\N{NO-BREAK SPACE}%",
        "pass@8": "0.750",
        "time": "67 min",
    }
    assert {heading: row[heading] for heading in expected} == expected
    assert table.rows[0][0].mark == "c0"


def test_environments_have_a_row_for_every_run_that_has_them(tmp_path: Path) -> None:
    runs = [
        load_run(run_folder(tmp_path / "one", envs=("a", "b"))),
        load_run(run_folder(tmp_path / "two", envs=("a",))),
    ]
    table = environment_table(runs, ["a", "b"], 4)
    assert [(row[0].text, row[0].aside) for row in table.rows] == [("a", "one"), ("a", "two"), ("b", "one")]
    assert "target" not in table.headings
    assert environment_table(runs[:1], ["a", "b"], 4).rows[1][0].aside == ""


def test_the_terminal_shows_names_as_they_are() -> None:
    summary = RunSummary("[red]x", 1, 1.0, 0.4, -0.6, pass_at={1: 0.5, 8: 0.75}, seconds=4000)
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(summary_table([summary]).to_rich())
    text = console.export_text()
    assert all(shown in text for shown in ("[red]x", "0.400", "−60", "pass@8", "0.750", "67 min"))
