"""Watches the resident memory of every process of a long run: `make soak`, or `make soak ITERATIONS=200`.

After a warm-up of a fifth of the run, the mean over the first fifth of what is left is compared with that over the last.
Exit code 1 where a process has grown by more than 5 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from chaos import checks
from chaos.harness import START_S, Failed, Lab, Run, end_on_signals

WARM_UP = 0.2
PART = 0.2  # of what is left, at each end
GROWTH = 0.05
SMALL_MB = 2.0  # growth that is noise in whatever process
EVERY_S = 2.0
ITERATION_S = 20.0  # the most that one may take before the run counts as stuck
SETTINGS = (
    "generators.count=1", "learner.ranks=1", "learner.updates=1", "batch.prompts=4", "batch.responses=4", "checkpoint.every=100",
    "run.samples_per_iteration=4", "run.sinks=[jsonl]",
)  # fmt: skip


@dataclass
class Memory:
    """Holds the resident megabytes of one process, with the share of the run that was done at each look."""

    name: str
    samples: list[tuple[float, float]] = field(default_factory=list)

    def growth(self) -> tuple[float, float] | None:
        """Returns the means of both ends after the warm-up, in MB; None where it was not there all the time."""
        room = 1 - WARM_UP
        first = [mb for at, mb in self.samples if WARM_UP <= at < WARM_UP + PART * room]
        last = [mb for at, mb in self.samples if at >= 1 - PART * room]
        return (statistics.fmean(first), statistics.fmean(last)) if first and last else None


def label(process: psutil.Process) -> str:
    """Names a process: an actor, a program of Ray's, or its command."""
    line = process.cmdline()
    name = process.environ().get("ISENTROPE_NAME", "")
    if name and line and not line[0].startswith("ray::"):
        return f"{name}, its subprocess"
    short = Path(line[0]).name if line else process.name()
    return name or (
        " ".join([short, *(Path(word).name for word in line[1:3])])[:40] if short.startswith("python") else short[:40]
    )


def watch(run: Run, iterations: int) -> dict[int, Memory]:
    """Looks at every process every few seconds until the run ends. Raises Failed where it stands still."""
    found: dict[int, Memory] = {}
    moved, last = time.monotonic(), 0
    while run.process.poll() is None:
        at = run.iteration()
        if at > last:
            moved, last = time.monotonic(), at
        if time.monotonic() - moved > (START_S if last == 0 else ITERATION_S * 6):
            raise Failed(f"it stands still: {run.where()}")
        for process in run.processes():
            try:
                memory = found.setdefault(process.pid, Memory(""))
                memory.name = label(process)  # an actor's process is one of Ray's own at first
                memory.samples.append((at / iterations, process.memory_info().rss / 2**20))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        time.sleep(EVERY_S)
    return found


def table(found: Mapping[int, Memory]) -> tuple[list[str], list[str]]:
    """Returns the lines of the table, and the names of those that grew too much."""
    lines, grown = ["| process | MB after warm-up | MB at the end | growth | peak MB |", "|---|---|---|---|---|"], []
    for memory in sorted(found.values(), key=lambda m: m.name):
        ends = memory.growth()
        if ends is None:
            continue
        share = ends[1] / ends[0] - 1
        peak = max(mb for _, mb in memory.samples)
        lines.append(f"| {memory.name} | {ends[0]:.0f} | {ends[1]:.0f} | {share:+.1%} | {peak:.0f} |")
        if share > GROWTH and ends[1] - ends[0] > SMALL_MB:
            grown.append(memory.name)
    return lines, grown


def soak(lab: Lab, iterations: int) -> tuple[Sequence[str], Sequence[str]]:
    """Plays it; returns the table's lines and who grew. Raises Failed where the run does not end well."""
    run = lab.start(f"run.iterations={iterations}", *SETTINGS)
    try:
        found = watch(run, iterations)
        checks.ending(run, (0,), 10)
    finally:
        run.end()
    lines, grown = table(found)
    if len(lines) < 6:
        raise Failed(f"only {len(lines) - 2} processes were there all the time")
    return lines, grown


def main(argv: Sequence[str]) -> int:
    """Prints the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--iterations", type=int, default=2000)
    given = parser.parse_args(argv)
    end_on_signals()
    lab, ok = Lab(), False
    try:
        lines, grown = soak(lab, given.iterations)
        print(f"{given.iterations} iterations\n" + "\n".join(lines))
        print(f"grown by more than {GROWTH:.0%}: {', '.join(grown) or 'none'}")
        ok = not grown
    except Failed as error:
        print(f"{error}\n{lab.runs[-1].tail() if lab.runs else ''}")
    finally:
        lab.close(keep=not ok)
    return int(not ok)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
