"""Says what has to hold of an ending, of rows, of samples, and of a checkpoint. Each raises Failed with one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chaos.harness import Failed, Run
from learner.checkpoint import CheckpointError, Checkpoints, read_state, verify
from orchestration.telemetry.sinks.jsonl import read_samples

NOT_COMPARED = ("time/", "tokens/per_second", "cluster/")
CODES = (0, 1, 2, 3, 4, 130, 143)
LONGEST = 2000  # bytes of a message


def ending(run: Run, expected: Sequence[int], limit_s: float) -> int:
    """Waits for the end; returns the exit code. Checks it, that stderr is a sentence, and that no process is left."""
    code = run.wait(limit_s)
    said = run.errors()
    if code not in expected:
        raise Failed(f"exit {code}, not {' or '.join(map(str, expected))}: {said.strip()[-300:]}")
    one_sentence(code, said)
    if left := run.survivors():
        raise Failed(f"exit {code}, and {len(left)} processes are left: {left[0]}")
    return code


def one_sentence(code: int, said: str) -> None:
    """Checks that an ending is one line of ours, and that a good one says nothing."""
    if "Traceback" in said or len(said.encode()) > LONGEST:
        raise Failed(f"exit {code} with {len(said)} characters of error: {said.strip()[:200]}")
    lines = [line for line in said.splitlines() if line.strip()]
    if code and (len(lines) != 1 or not lines[0].startswith("isentrope: ")):
        raise Failed(f"exit {code} ends with {len(lines)} lines: {said.strip()[:200]}")


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row without what a clock says, and without the counts of actors, which a fault changes."""
    return {key: value for key, value in row.items() if not key.startswith(NOT_COMPARED)}


def same_rows(run: Run, reference: Run, until: int | None = None) -> int:
    """Checks that every iteration is there once with the numbers of the undisturbed run; returns how many.

    What only the disturbed one has is not compared, nor a count of actors. until: the last iteration that is compared.
    """
    rows, expected = ([row for row in r.rows() if until is None or row["iteration"] <= until] for r in (run, reference))
    numbers = [row["iteration"] for row in rows]
    if numbers != [row["iteration"] for row in expected]:
        raise Failed(f"the iterations are {numbers}, {len(expected)} were expected, each once")
    for row, other in zip(rows, expected, strict=True):
        for key, value in timeless(other).items():
            if not close(row.get(key), value):
                raise Failed(f"iteration {row['iteration']:g}: {key} is {row.get(key)}, undisturbed {value}")
    return len(rows)


def close(one: Any, other: Any) -> bool:
    """Compares two numbers, null included; another number of threads rounds otherwise, and gaps are rounding alone."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-4, abs_tol=2e-5)


def same_samples(run: Run, reference: Run, until: int | None = None) -> None:
    """Checks that the same prompts were answered with the same responses: none lost, none twice."""
    mine, theirs = (
        Counter(identity(s) for s in read_samples(r.run) if until is None or s["iteration"] <= until)
        for r in (run, reference)
    )
    if mine != theirs:
        lost, more = (theirs - mine).total(), (mine - theirs).total()
        raise Failed(f"{lost} responses of the undisturbed run are lost and {more} were not in it")


def identity(sample: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what makes a response one and the same."""
    return sample["iteration"], sample["env"], sample["prompt"], sample["response"], sample["status"]


def all_judged(run: Run) -> None:
    """Checks that no iteration was trained on responses without a verdict."""
    for row in run.rows():
        if row.get("status/error") or row.get("status/timeout"):
            raise Failed(f"iteration {row['iteration']:g}: {row['status/error']:.0%} of the verdicts are errors")


def whole_checkpoint(run: Run, at_least: int = 1) -> int:
    """Checks that the newest checkpoint is whole and of iteration `at_least` or later; returns its iteration."""
    latest = Checkpoints(run.run / "checkpoints", 2).latest()
    if latest is None:
        raise Failed("there is no whole checkpoint")
    try:
        state = read_state(latest)
        verify(latest, state)
    except CheckpointError as error:
        raise Failed(str(error)) from None
    if state["iteration"] < at_least:
        raise Failed(f"the newest checkpoint is of iteration {state['iteration']}, {at_least} was expected")
    return int(state["iteration"])


def says(run: Run, *words: str) -> None:
    """Checks that events or output have each of the words."""
    text = run.events() + run.output()
    for word in words:
        if word not in text:
            raise Failed(f"nothing says '{word}'")
