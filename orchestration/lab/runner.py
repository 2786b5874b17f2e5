"""`isentrope lab`: a grid of runs, one after the other on warm actors, several lanes side by side; a table and one report.

A lane holds a cluster's worth of actors and takes the next run of the grid when it is free. Engines are started once a lane:
the next run renews the learner, the environments and the weights. A run that fails is named, its lane starts anew, and the
others go on; a lab that was stopped goes on where it was, finished runs being left alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from learner.checkpoint import Checkpoints, write_whole
from orchestration.cluster.placement import plan, totals
from orchestration.commands import init_model as warmstart
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError, IsentropeError, Stopped
from orchestration.lab.grid import Cell, Grid, cells, load_grid, notes, to_yaml
from orchestration.lab.lab_report import write_lab_report
from orchestration.lab.results import ArmRuns, collect, lab_table, markdown_matrix, markdown_table, matrices, tables
from orchestration.run.lifecycle import Job, conduct, connected, prepare
from orchestration.run.resume import is_finished
from orchestration.run.stop import StopSignal, signals
from orchestration.telemetry.sinks import read_rows

if TYPE_CHECKING:
    from orchestration.cluster.cluster import Cluster


class LabError(IsentropeError):
    """Some runs of a lab failed; the message names them."""


@dataclass
class Progress:
    """What has become of the cells so far."""

    total: int
    say: Callable[[str], None]
    done: list[Cell] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # name -> reason

    def finished(self, cell: Cell, seconds: float | None) -> None:
        self.done.append(cell)
        self._line(cell, "was there" if seconds is None else f"{seconds:.0f} s{_outcome(cell)}")

    def broke(self, cell: Cell, reason: str) -> None:
        self.failed[cell.name] = reason
        self._line(cell, f"FAILED: {reason}")

    def _line(self, cell: Cell, what: str) -> None:
        self.say(f"[{len(self.done) + len(self.failed)}/{self.total}] {cell.name}: {what}")


def run(path: str, runs: Path, *, overwrite: bool = False, dry_run: bool = False) -> Path | None:
    """Returns the report. Raises ConfigError before anything is started, LabError at the end where runs failed."""
    grid = load_grid(path)
    root = runs / grid.name
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    all_cells = cells(grid, root / "arms", None)
    good = [c for c in all_cells if c.config is not None]
    if not good:
        raise ConfigError(f"no run of the grid {grid.name} can start: {all_cells[0].name}: {all_cells[0].problem}")
    if dry_run:
        say(describe(grid, all_cells))
        return None
    if grid.warm_start is not None:
        first = good[0].config
        assert first is not None
        environments = [{"name": e.name, "params": e.params} for e in first.all_environments]
        model = warmstart.make({**grid.warm_start, "environments": environments}, None, Path("models/cache"))
        all_cells = cells(grid, root / "arms", str(model))
    progress = Progress(len(all_cells), say)
    todo = [job for cell in all_cells if (job := _todo(cell, progress, overwrite)) is not None]
    root.mkdir(parents=True, exist_ok=True)
    write_whole(root / "grid.yaml", to_yaml(grid))
    try:
        if todo:
            first = todo[0][1].config
            with connected(first, min(grid.lanes, len(todo))):
                asyncio.run(_lanes(todo, grid.lanes, progress))
    finally:
        report = publish(grid, root, progress, console)
    if progress.failed:
        names = "; ".join(f"{name} ({reason})" for name, reason in progress.failed.items())
        raise LabError(f"{len(progress.failed)} of {progress.total} runs failed, the others are in {report}: {names}")
    return report


def describe(grid: Grid, all_cells: list[Cell]) -> str:
    """What a grid would run, for --dry-run."""
    lines = [f"{grid.name}: {len(all_cells)} runs, {grid.lanes} side by side"]
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
    """What is left to do for a cell; None where it is finished or cannot run. Raises ConfigError where its folder holds
    another run."""
    if cell.config is None:
        progress.broke(cell, cell.problem)
        return None
    config, folder = cell.config, cell.config.folder
    there = folder / "config.yaml"
    if overwrite or not there.is_file():
        return _checked(cell, progress, config, resume=False)
    if there.read_text("utf-8") != config.to_yaml():
        raise ConfigError(
            f"{folder} holds a run of other settings: give --overwrite, another grid name, or remove the folder"
        )
    whole = read_rows(folder) and read_rows(folder)[-1].get("iteration") == config.iterations
    # An advance rule may end a run before its iterations are used up.
    if whole or (config.stages and is_finished(config)):
        progress.finished(cell, None)
        return None
    resumable = Checkpoints(folder / "checkpoints", config.checkpoint.keep).latest() is not None
    return _checked(cell, progress, config, resume=resumable)


def _checked(cell: Cell, progress: Progress, config: RunConfig, resume: bool) -> tuple[Cell, Job] | None:
    try:
        return cell, prepare(config, resume=resume, overwrite=True)
    except ConfigError as error:
        progress.broke(cell, str(error))
        return None


async def _lanes(todo: list[tuple[Cell, Job]], lanes: int, progress: Progress) -> None:
    """Raises Stopped once every lane has checkpointed and ended."""
    stop, queue = StopSignal(), list(reversed(todo))
    with signals(stop, progress.say):
        tasks = [asyncio.ensure_future(_lane(queue, progress, stop)) for _ in range(min(lanes, len(todo)))]
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        except asyncio.CancelledError:  # the second signal
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
    for error in results:
        if isinstance(error, BaseException) and not isinstance(error, Stopped):
            raise error
    if stop.number is not None:
        raise Stopped(stop.number)


async def _lane(queue: list[tuple[Cell, Job]], progress: Progress, stop: StopSignal) -> None:
    """Runs off the common queue until it is empty or a stop is asked for."""
    from orchestration.cluster.actor_settings import layout_key
    from orchestration.cluster.cluster import Cluster
    from orchestration.sampling.codec import load_codecs

    cluster: Cluster | None = None
    try:
        while queue and stop.number is None:
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
                progress.broke(
                    cell, str(error) if known else f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
                )
                await cluster.close()  # whatever state its actors were left in
                cluster = None
            else:
                progress.finished(cell, time.monotonic() - began)
    finally:
        if cluster is not None:
            await cluster.close()


def _outcome(cell: Cell) -> str:
    """The last figures of a finished run, for its line."""
    assert cell.config is not None
    rows = read_rows(cell.config.folder)
    wanted = {"H": "entropy/exact", "reward": "reward/mean"}
    parts = [f"{label} {rows[-1][key]:.3f}" for label, key in wanted.items() if rows and key in rows[-1]]
    parts += [f"{k[5:]} {v:.3f}" for k, v in rows[-1].items() if k.startswith("eval/") and "/T=" not in k]
    return "  " + "  ".join(parts) if parts else ""


def publish(grid: Grid, root: Path, progress: Progress, console: Console) -> Path:
    """results.json, report.html and the table, of whatever is finished."""
    about = notes(grid)
    arms = []
    for name, note in about.items():
        runs = {c.seed: c.config.folder for c in progress.done if c.arm == name and c.config is not None}
        failed = {
            int(cell.rpartition("-s")[2]): reason
            for cell, reason in progress.failed.items()
            if cell.rpartition("-s")[0] == name
        }
        arms.append(ArmRuns(name, runs, failed, note))
    results: dict[str, Any] = collect(arms)
    write_whole(root / "results.json", json.dumps(results, indent=1))
    written = [markdown_table(results, shown) for shown in tables(results)]
    write_whole(root / "results.md", "\n".join([*written, *map(markdown_matrix, matrices(results))]))
    report = write_lab_report(grid.name, arms, results, root / "report.html")
    for shown in tables(results):
        Console(width=max(console.width, 160)).print(lab_table(results, shown), "")
    console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)
    return report
