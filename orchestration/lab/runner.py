"""Runs a grid for `isentrope lab`, one run after the other on warm actors, by several workers; then the tables and the report.

A worker holds a cluster's worth of actors and takes the next run of the grid when it is free. Engines are started once a
worker: the next run renews the learner, the environments and the weights. A run that fails is named, its worker starts new
actors, and the others go on; a lab that was stopped goes on where it was, without repeating finished runs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from learner.checkpoint import Checkpoints, write_whole
from orchestration.cluster.placement import plan, totals
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError, IsentropeError, Stopped
from orchestration.lab.collect import ArmRuns, collect
from orchestration.lab.grid import Cell, Grid, cells, load_grid, notes, to_yaml, warm_start
from orchestration.lab.headline import headline
from orchestration.lab.lab_report import write_lab_report
from orchestration.lab.tables import matrices, tables
from orchestration.run.lifecycle import Job, conduct, prepare, watched
from orchestration.run.resume import is_finished
from orchestration.run.stop import StopSignal, signals
from orchestration.run.warm_start import make_model
from orchestration.telemetry.sinks.jsonl import read_rows
from orchestration.telemetry.typed_keys import short_evals
from orchestration.text import one_line

if TYPE_CHECKING:
    from orchestration.cluster.cluster import Cluster
    from orchestration.cluster.session import Session


class LabError(IsentropeError):
    """Ends a lab in which some runs failed; the message names them."""


@dataclass
class Progress:
    """Holds the finished and the failed cells so far, and prints a line for each."""

    total: int
    say: Callable[[str], None]
    done: list[Cell] = field(default_factory=list)
    failed: list[tuple[Cell, str]] = field(default_factory=list)  # with the reason

    def finished(self, cell: Cell, seconds: float | None) -> None:
        """Records a finished cell; `seconds` is None for one that an earlier call finished."""
        self.done.append(cell)
        self._line(cell, "was there" if seconds is None else f"{seconds:.0f} s{_outcome(cell)}")

    def broke(self, cell: Cell, reason: str) -> None:
        """Records a failed cell."""
        self.failed.append((cell, reason))
        self._line(cell, f"FAILED: {reason}")

    def _line(self, cell: Cell, what: str) -> None:
        self.say(f"[{len(self.done) + len(self.failed)}/{self.total}] {cell.name}: {what}")


def run(path: str, runs: Path, *, overwrite: bool = False, dry_run: bool = False) -> Path | None:
    """Runs the grid and returns its report; None for a dry run.

    Raises ConfigError before anything is started, LabError at the end where runs failed.
    """
    grid = load_grid(path)
    root = runs / grid.name
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    all_cells = cells(grid, root / "arms", None)
    configs = [cell.config for cell in all_cells if cell.config is not None]
    if not configs:
        raise ConfigError(f"no run of the grid {grid.name} can start: {all_cells[0].name}: {all_cells[0].problem}")
    if dry_run:
        say(describe(grid, all_cells))
        return None
    if grid.warm_start is not None:
        model = make_model(warm_start(grid.warm_start, configs[0]), None, Path("models/cache"))
        all_cells = cells(grid, root / "arms", str(model))
    progress = Progress(len(all_cells), say)
    todo = [job for cell in all_cells if (job := _todo(cell, progress, overwrite)) is not None]
    root.mkdir(parents=True, exist_ok=True)
    write_whole(root / "grid.yaml", to_yaml(grid))
    try:
        if todo:
            from orchestration.cluster.session import connected

            first = todo[0][1].config
            with connected(first, min(grid.workers, len(todo)), progress.say) as session:
                asyncio.run(_work(todo, grid.workers, progress, session))
    finally:
        report = publish(grid, root, progress, console)
    if progress.failed:
        names = "; ".join(f"{cell.name} ({reason})" for cell, reason in progress.failed)
        raise LabError(f"{len(progress.failed)} of {progress.total} runs failed, the others are in {report}: {names}")
    return report


def describe(grid: Grid, all_cells: list[Cell]) -> str:
    """Describes the runs of a grid, for --dry-run."""
    lines = [f"{grid.name}: {len(all_cells)} runs, {grid.workers} side by side"]
    for cell in all_cells:
        if cell.config is None:
            lines.append(f"  {cell.name}: CANNOT RUN: {cell.problem}")
        else:
            asked = totals(plan(cell.config))
            c = cell.config
            lines.append(
                f"  {cell.name}: {c.iterations} iterations of {c.batch.prompts} x {c.batch.responses}, "
                f"{asked['CPU']:g} CPU {asked['GPU']:g} GPU"
            )
    return "\n".join(lines)


def _todo(cell: Cell, progress: Progress, overwrite: bool) -> tuple[Cell, Job] | None:
    """Returns the job that is left to do for a cell; None where it is finished or cannot run.

    Raises ConfigError where its folder holds another run.
    """
    if cell.config is None:
        progress.broke(cell, cell.problem)
        return None
    config, folder = cell.config, cell.config.folder
    config_file = folder / "config.yaml"
    if overwrite or not config_file.is_file():
        return _checked(cell, progress, config, resume=False, overwrite=overwrite)
    if config_file.read_text("utf-8") != config.to_yaml():
        raise ConfigError(
            f"{folder} holds a run of other settings: give --overwrite, another grid name, or remove the folder"
        )
    resumable = Checkpoints(folder / "checkpoints", config.checkpoint.keep).latest() is not None
    rows = read_rows(folder)
    # The last row may be there before the last evaluation is: the checkpoint knows.
    if is_finished(config) if resumable else bool(rows) and rows[-1].get("iteration") == config.iterations:
        progress.finished(cell, None)
        return None
    return _checked(cell, progress, config, resume=resumable, overwrite=False)


def _checked(
    cell: Cell, progress: Progress, config: RunConfig, resume: bool, overwrite: bool
) -> tuple[Cell, Job] | None:
    try:
        # Rows without a checkpoint do not keep a run from beginning anew.
        job = prepare(config, resume=resume, overwrite=True)
        return cell, replace(job, overwrite=overwrite)
    except ConfigError as error:
        progress.broke(cell, str(error))
        return None


async def _work(todo: list[tuple[Cell, Job]], workers: int, progress: Progress, session: Session) -> None:
    """Runs the jobs. Raises Stopped once every worker has checkpointed and ended."""
    stop, queue = StopSignal(), list(reversed(todo))
    async with watched(session, stop):
        with signals(stop, progress.say):
            results = await _all_workers(queue, progress, stop, min(workers, len(todo)))
    for error in results:
        if isinstance(error, BaseException) and not isinstance(error, Stopped):
            raise error
    if stop.error is not None:
        raise stop.error
    if stop.number is not None:
        raise Stopped(stop.number)


async def _all_workers(
    queue: list[tuple[Cell, Job]], progress: Progress, stop: StopSignal, workers: int
) -> list[BaseException | None]:
    """Returns what every worker raised, once all have ended."""
    tasks = [asyncio.ensure_future(_worker(queue, progress, stop)) for _ in range(workers)]
    try:
        return await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:  # the second signal
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)


async def _worker(queue: list[tuple[Cell, Job]], progress: Progress, stop: StopSignal) -> None:
    """Takes runs off the common queue until it is empty or a stop is asked for."""
    from orchestration.cluster.actor_settings import layout_key
    from orchestration.cluster.cluster import Cluster
    from orchestration.sampling.codec import load_codecs

    cluster: Cluster | None = None
    try:
        while queue and not stop.asked:
            cell, job = queue.pop()
            if cluster is not None and layout_key(cluster.config) != layout_key(job.config):
                await cluster.close()
                cluster = None
            cluster = cluster or Cluster(job.config, progress.say)
            began = time.monotonic()
            try:
                await conduct(job, cluster, load_codecs(job.config), stop, job.config.run.sinks)
            except Stopped:
                raise
            except Exception as error:  # noqa: BLE001 - the declared boundary: one run's failure, of any kind, costs it alone
                known = isinstance(error, IsentropeError)
                progress.broke(cell, str(error) if known else f"{type(error).__name__}: {one_line(error)[:500]}")
                await cluster.close()  # whatever state its actors were left in
                cluster = None
            else:
                progress.finished(cell, time.monotonic() - began)
    finally:
        if cluster is not None:
            await cluster.close()


def _outcome(cell: Cell) -> str:
    """Returns the last metrics of a finished run, for its line."""
    assert cell.config is not None
    rows = read_rows(cell.config.folder)
    names = {"H": "entropy/exact", "reward": "reward/mean"}
    parts = [f"{label} {rows[-1][key]:.3f}" for label, key in names.items() if rows and key in rows[-1]]
    evals = short_evals(rows[-1]) if rows else {}
    parts += [f"{key} {value:.3f}" for key, value in evals.items()]
    return "  " + "  ".join(parts) if parts else ""


def publish(grid: Grid, root: Path, progress: Progress, console: Console) -> Path:
    """Writes results.json, results.md and report.html of whatever is finished, and prints the tables."""
    arms = [_arm_runs(name, note, progress) for name, note in notes(grid).items()]
    results = collect(arms)
    shown = tables(results)
    write_whole(root / "results.json", json.dumps(results.to_json(), indent=1))
    write_whole(root / "results.md", "\n".join(table.to_markdown() for table in [*shown, *matrices(results)]))
    report = write_lab_report(grid.name, arms, results, root / "report.html")
    if found := headline(results):
        console.print(found, style="bold", highlight=False, markup=False)
    for table in shown:
        Console(width=max(console.width, 160)).print(table.to_rich(), "")
    console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)
    return report


def _arm_runs(name: str, note: str, progress: Progress) -> ArmRuns:
    runs = {cell.seed: cell.config.folder for cell in progress.done if cell.arm == name and cell.config is not None}
    failed = {cell.seed: reason for cell, reason in progress.failed if cell.arm == name}
    return ArmRuns(name, runs, failed, note)
