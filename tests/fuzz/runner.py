"""Plays fuzzed inputs in a process that can be killed: an input may take five seconds of a core.

python tests/fuzz/runner.py 5000                  seeds 0 to 4999, every kind in turn
python tests/fuzz/runner.py --seeds 17,4031       only these, with what was said: the same seed is the same input
python tests/fuzz/runner.py 500 --kinds model     only inputs of this kind; seeds are then those of this kind alone
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from fuzz.cases import KINDS, Material, Outcome, play_case, quiet

SECONDS = 5.0  # of a core, which on a busy machine are more of a clock, but never more than
WAITED_S = 30.0
START_S = 600.0


def serve(connection: Connection, kinds: list[str]) -> None:
    """Plays the seeds that come, in a process of its own, until there is none."""
    quiet()
    import transformers  # noqa: F401 - what takes seconds to import is not counted to the first input

    material = Material()
    for seed in range(-3 * len(kinds), 0):  # nor what a command imports when it first runs
        play_case(seed, material, kinds)
    connection.send(None)
    while (seed := connection.recv()) is not None:
        connection.send(play_case(seed, material, kinds))
    material.close()


def play(seeds: Iterable[int], kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Outcome]:
    """Yields the outcome of each seed. One that takes too long is ended with its process, and the next begin in another."""
    context, kinds = multiprocessing.get_context("spawn"), list(kinds)
    process, connection = None, None
    for seed in seeds:
        if connection is None:
            connection, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, kinds), daemon=True)
            process.start()
            theirs.close()
            if not connection.poll(START_S):
                raise TimeoutError(f"the process that plays inputs was not ready within {START_S:g} s")
            connection.recv()
        assert process is not None
        connection.send(seed)
        problem = ""
        if not in_time(process, connection):
            problem = f"no end within {SECONDS:g} s"
        else:
            try:
                yield connection.recv()
            except EOFError:
                problem = "the process died"
        if problem:
            process.kill()
            process.join()
            connection = None
            yield Outcome(kinds[seed % len(kinds)], seed, 1, "", problem)
    if connection is not None and process is not None:
        connection.send(None)
        process.join()


def in_time(process: BaseProcess, connection: Connection) -> bool:
    """Waits for an answer; returns whether there is one, or the process ended, before its time was up."""
    began, spent = time.monotonic(), cpu_seconds(process)
    while not connection.poll(0.2):
        if cpu_seconds(process) - spent > SECONDS or time.monotonic() - began > WAITED_S:
            return False
    return True


def cpu_seconds(process: BaseProcess) -> float:
    """Returns the seconds of a core that a process has had, or 0 for one that has ended."""
    with contextlib.suppress(OSError):
        after_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def summary(outcomes: Sequence[Outcome]) -> str:
    """Returns counts by kind and exit code, and a line for every input that ended in another way than it may."""
    counts = Counter((outcome.kind, outcome.code) for outcome in outcomes)
    kinds = dict.fromkeys(outcome.kind for outcome in outcomes)
    lines = []
    for kind in kinds:
        codes = ", ".join(f"{n} ended with {code}" for (name, code), n in sorted(counts.items()) if name == kind)
        lines.append(f"{kind:14}{codes}")
    bad = [outcome for outcome in outcomes if outcome.problem]
    lines += [f"seed {o.seed} ({o.kind}): {o.problem}: {o.said[:300]}".rstrip(": \n") for o in bad]
    return "\n".join([*lines, f"{len(outcomes)} inputs, {len(bad)} failures"])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=5000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seeds", default="")
    options = parser.parse_args()
    chosen = [int(seed) for seed in options.seeds.split(",") if seed]
    outcomes = []
    for outcome in play(chosen or range(options.count), options.kinds.split(",")):
        outcomes.append(outcome)
        if chosen or outcome.problem:
            print(
                f"seed {outcome.seed} ({outcome.kind}) ended with {outcome.code}: {outcome.problem}\n{outcome.said}",
                flush=True,
            )
    print(summary(outcomes))
    return int(any(outcome.problem for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
