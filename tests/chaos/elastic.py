"""Lets generators come and go while a run goes on, with `isentrope scale`: 1, 4, 2."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from chaos import checks
from chaos.harness import START_S, Failed, Lab, Run
from orchestration.telemetry.sinks.jsonl import read_samples

STEPS = (4, 2)
QUIET = 10  # iterations between two requests
JOIN_S = 240.0  # for three engines to start, on two busy cores
MAX_PAUSE = 2.0  # iterations' time that a change may add to an iteration
MAX_GAP = 1e-4  # nats between trainer and every generator, after each transfer
SETTINGS = (
    "run.iterations=100000", "generators.count=1", "generators.min=1", "generators.max=4", "learner.ranks=1", "checkpoint.every=0",
    "run.sample_tokens=true", "run.samples_per_iteration=64",
    "batch.prompts=16", "generators.max_num_seqs=2",  # so that sampling takes most of an iteration, as with a model of some size
)  # fmt: skip


def elastic(lab: Lab) -> str:
    """Plays it; returns what happened in words."""
    run = lab.start(*SETTINGS)
    run.until_iteration(QUIET, START_S)
    said, marks = [], [run.iteration()]
    for wanted in STEPS:
        code, answer = lab.ask("scale", "chaos", f"generators={wanted}", folder=run.folder)
        if code:
            raise Failed(f"isentrope scale: exit {code}, {answer.strip()[-300:]}")
        run.until(f"{wanted} generators serve", lambda n=wanted: serving(run) == n, JOIN_S)
        marks.append(run.iteration())
        run.until_iteration(marks[-1] + QUIET, 120)
        marks.append(run.iteration())
        said.append(f"{wanted} after {marks[-2] - marks[-3]} iterations")
    code, answer = lab.ask("scale", "chaos", "generators=5", folder=run.folder)
    if code != 1 or "there have to be 1 to 4" not in answer:
        raise Failed(f"5 generators, above the most of 4: exit {code}, {answer.strip()[-200:]}")
    lab.ask("stop", "chaos", folder=run.folder)
    checks.ending(run, (143,), 120)
    rows = run.rows()
    pause = longest_pause(rows)
    if pause > MAX_PAUSE:
        raise Failed(f"a change cost {pause:.1f} iterations' time, {MAX_PAUSE:g} are allowed")
    current(run, rows)
    speeds = [
        statistics.median(row["tokens/per_second"] for row in rows[at - QUIET : at]) for at in (marks[0], *marks[2::2])
    ]
    if min(speeds[1:]) <= speeds[0]:
        raise Failed(f"tokens/s with 1, {STEPS[0]} and {STEPS[1]} generators: {speeds}")
    return (
        f"{', '.join(said)}; longest pause {pause:.1f} iterations; tokens/s {' -> '.join(f'{s:.0f}' for s in speeds)}"
    )


def serving(run: Run) -> int:
    """Returns how many generators are healthy."""
    members = run.status().get("members") or []
    return sum(m.get("kind") == "generator" and m.get("state") == "healthy" for m in members)


def longest_pause(rows: Sequence[Mapping[str, Any]], around: int = 5) -> float:
    """Returns the most that an iteration was longer than those around it, in iterations' time.

    Those around it, since engines that start take cores from all others: that is slower work, not a pause.
    """
    gaps = [after["time/unix"] - before["time/unix"] for before, after in itertools.pairwise(rows)]
    pauses = [gap / statistics.median(gaps[max(0, i - around) : i + around + 1]) - 1 for i, gap in enumerate(gaps)]
    return max(pauses, default=0.0)


def current(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Checks that every response was of the version before its iteration's update, and every generator's weights the trainer's."""
    if off := [row["iteration"] for row in rows if row["sync/logprob_gap_max"] > MAX_GAP]:
        raise Failed(f"engine and trainer disagree after iterations {off[:5]}")
    version = {row["iteration"]: row["policy_version"] - 1 for row in rows}
    for sample in read_samples(run.run):
        if sample["iteration"] in version and set(sample["versions"]) != {version[sample["iteration"]]}:
            raise Failed(f"a response of iteration {sample['iteration']} has versions {sample['versions']}")


ELASTIC = (
    "elastic", "generators 1 -> 4 -> 2", "isentrope scale, every 10 iterations",
    "no pause over two iterations, more tokens/s, joiners have the current weights", elastic,
)  # fmt: skip
