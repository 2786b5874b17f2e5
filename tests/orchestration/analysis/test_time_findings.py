"""Checks that the report names what holds a run up, from rows of runs that take turns and of runs that overlap."""

from __future__ import annotations

import math

import pytest

from orchestration.analysis.diagnosis import diagnose
from orchestration.analysis.run_data import RunData


def sentence(*rows: dict[str, float]) -> str | None:
    run = RunData("run", [{"time/eval": 3.0}, *({f"time/{k}": v for k, v in row.items()} for row in rows)], [], {}, "")
    return next((finding.text for finding in diagnose(run) if finding.topic == "bottleneck"), None)


def row(generate: float, verify: float, train: float, sync: float, **more: float) -> dict[str, float]:
    iteration = max(generate, verify) + train + sync
    return {
        "generate": generate,
        "verify": verify,
        "train": train,
        "sync": sync,
        "iteration": iteration,
        **more,
    }


@pytest.mark.parametrize(
    ("times", "waits", "advice"),
    [
        (row(8, 1, 1, 1), "the learner waited 80 % of the time, the generators 10 %", "(generators.count)"),
        (row(2, 8, 1, 1), "the learner waited 80 % of the time, the generators 70 %", "(verifiers.count)"),
        (row(1, 0, 8, 1), "the learner waited 10 % of the time, the generators 80 %", "(learner.ranks)"),
        (row(4, 0, 2, 4), "sending weights took 40 %", "(batch.prompts)"),
        (row(5, 0, 5, 0), "the learner waited 50 % of the time, the generators 50 %", "take turns"),
        (row(8, 1, 1, 1, turns=1), "changes of turn took 10 %", "(learner.ranks and generators.count)"),
        (row(3, 1, 3, 4, turns=5), "changes of turn took 50 %", "(batch.prompts)"),
        (row(2, 8, 1, 1, turns=1), "the learner waited 80 % of the time", "(verifiers.count)"),
        # Overlapping: what is measured counts, whatever the other times add up to.
        (
            row(9, 1, 9, 1, iteration=10, learner_waits=0.5, generators_wait=4),
            "the learner waited 5 % of the time, the generators 40 %",
            "(learner.ranks)",
        ),
        (
            row(9, 1, 5, 1, iteration=10, learner_waits=4, generators_wait=0),
            "the learner waited 40 % of the time, the generators 0 %",
            "(generators.count)",
        ),
        (
            row(9, 1, 9, 1, iteration=10, learner_waits=0.5, generators_wait=0.5),
            "the learner waited 5 % of the time, the generators 5 %",
            "are balanced",
        ),
    ],
)
def test_what_holds_a_run_up_is_named(times: dict[str, float], waits: str, advice: str) -> None:
    text = sentence(times, times)
    assert text is not None
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert waits in text and advice in text


def test_nothing_is_said_without_times() -> None:
    assert sentence() is None
    assert sentence({"iteration": math.nan, "train": 1.0}) is None
    assert sentence({"iteration": 3.0}) is None


def test_a_row_that_lacks_a_time_counts_all_the_same() -> None:
    text = sentence({"iteration": 10.0, "train": 9.5})
    assert text is not None and "(learner.ranks)" in text
