"""The table of run summaries, as the terminal shows it."""

import io

from rich.console import Console

from orchestration.analysis.run_summary import RunSummary
from orchestration.report.summary_table import summary_table


def test_the_terminal_shows_names_as_they_are() -> None:
    summary = RunSummary("[red]x", 1, 1.0, 0.4, -0.6, pass_at={1: 0.5, 8: 0.75}, seconds=4000)
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(summary_table([summary]).to_rich())
    text = console.export_text()
    assert all(shown in text for shown in ("[red]x", "0.400", "−60", "pass@8", "0.750", "67 min"))
