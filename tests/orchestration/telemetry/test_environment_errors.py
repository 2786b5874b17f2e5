"""Tests when an environment that raises is shown, and when it ends a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from support.builders import make_trajectory

from envs.types import Status, Trajectory, Verdict
from orchestration.telemetry.environment_errors import EnvironmentErrorWatch

DETAIL = 'mine.py, line 3: KeyError: 7\n  File "mine.py", line 3, in reply\n    return table[7]'


def batch(failed: int, of: int = 8, env: str = "mine") -> list[Trajectory]:
    bad = Verdict(0.0, status=Status.ERROR, detail=DETAIL)
    made = [make_trajectory(seed=i, env=env) for i in range(of)]
    return [replace(t, verdict=bad) if i >= of - failed else t for i, t in enumerate(made)]


def told(watch: EnvironmentErrorWatch, batches: Sequence[list[Trajectory]]) -> list[str]:
    return [watch.look(i, trajectories).too_many for i, trajectories in enumerate(batches, 1)]


def test_the_first_error_of_a_run_is_shown_with_its_traceback_and_kept() -> None:
    watch = EnvironmentErrorWatch(0.5, 3)
    assert not watch.look(1, batch(0)).event
    first = watch.look(2, batch(1))
    assert (
        first.event == f"scoring failed for 1 of 8 responses of iteration 2; the first, of environment 'mine': {DETAIL}"
    )
    (kept,) = first.samples
    assert (kept["iteration"], kept["status"], kept["detail"]) == (2, "error", DETAIL)
    later = watch.look(3, batch(1))
    assert (later.event, later.samples) == ("", ())


def test_a_run_ends_above_the_share_for_so_many_iterations_in_a_row() -> None:
    assert told(EnvironmentErrorWatch(0.5, 3), [batch(5), batch(8), batch(4), batch(5), batch(5)]) == [""] * 5
    *before, last = told(EnvironmentErrorWatch(0.5, 3), [batch(5), batch(5), batch(6)])
    assert before == ["", ""]
    assert last == (
        "scoring failed for 75% of the responses of environment 'mine', and for more than verifiers.max_error_share = 0.5 of "
        "them in 3 iterations in a row: correct the environment and go on with --resume; the first error of the run: mine.py, line "
        "3: KeyError: 7"
    )


def test_a_share_of_one_never_ends_a_run() -> None:
    assert told(EnvironmentErrorWatch(1.0, 1), [batch(8)] * 3) == [""] * 3


def test_an_environment_counts_by_itself() -> None:
    mixed = batch(8, env="bad") + batch(0, of=24, env="good")
    assert "environment 'bad'" in told(EnvironmentErrorWatch(0.5, 1), [mixed])[0]


def test_a_verdict_that_took_too_long_is_no_error() -> None:
    slow = Verdict(0.0, status=Status.TIMEOUT, detail="no verdict")
    assert told(EnvironmentErrorWatch(0.1, 1), [[replace(t, verdict=slow) for t in batch(0)]]) == [""]
