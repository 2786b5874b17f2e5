"""Implements `isentrope demo`: one model trained twice on countdown, with and without entropy control, and one table."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from orchestration.analysis.run_summary import summarise
from orchestration.commands import init_model
from orchestration.config.run_config import load_config
from orchestration.report.run_report import write_report
from orchestration.report.summary_table import summary_table
from orchestration.run.lifecycle import in_turn, prepare

ARMS = ("demo-grpo", "demo-repo-r")
WARM_START = ["steps=1000"]


def run(seed: int, runs: Path) -> Path:
    """Trains both arms and returns the path of the report. The arms' recipes differ only in their entropy section."""
    started = time.monotonic()
    console = Console()
    model = init_model.run(ARMS[0], [], WARM_START, None, Path("models/cache"))
    configs = [load_config(a, [f"run.seed={seed}", f"run.dir={runs}", f"model.path={model}"]) for a in ARMS]
    in_turn(
        [prepare(config, overwrite=True) for config in configs],
        announce=lambda job: console.rule(f"[bold]{job.config.run.name}"),
    )
    folders = [config.folder for config in configs]
    # Without a terminal rich assumes 80 columns and truncates the table's words.
    Console(width=max(console.width, 120)).print(summary_table([summarise(f) for f in folders]).to_rich())
    report = write_report(folders, runs / "demo.html")
    console.print(f"report: {report}   ({time.monotonic() - started:.0f} s in all)", highlight=False)
    return report
