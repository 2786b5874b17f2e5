"""Plays a few hundred fuzzed inputs, those of the first seeds; `make fuzz` plays thousands."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from fuzz import cases, runner
from fuzz.cases import KINDS, Material, play_case
from fuzz.mutations import bytes_changed, mutated

from orchestration.defects import MARK

INPUTS = 360


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_input_ends_with_a_traceback_a_hang_or_a_message_of_kilobytes() -> None:
    outcomes = list(runner.play(range(INPUTS)))
    assert {outcome.kind for outcome in outcomes} == set(KINDS)
    assert not [outcome for outcome in outcomes if outcome.problem], runner.summary(outcomes)
    refused = sum(outcome.code == 2 for outcome in outcomes)
    assert INPUTS / 4 < refused < INPUTS  # most changes break something, and some do not


def test_a_seed_is_the_same_input_again() -> None:
    tree = {"a": [1, 2, {"b": "text"}], "c": None}
    for seed in range(50):
        assert repr(mutated(random.Random(seed), tree)) == repr(mutated(random.Random(seed), tree))
        assert bytes_changed(random.Random(seed), b"abc" * 9) == bytes_changed(random.Random(seed), b"abc" * 9)
    assert tree == {"a": [1, 2, {"b": "text"}], "c": None}


@pytest.mark.parametrize(
    ("ending", "problem"),
    [
        ((0, ""), ""),
        ((2, "isentrope: no such thing"), ""),
        ((2, ""), "no message"),
        ((7, "isentrope: odd"), "exit code 7 is not documented"),
        ((1, f"isentrope: {MARK}: KeyError"), "a traceback"),
        ((1, "Traceback (most recent call last)"), "a traceback"),
        ((2, "x" * 3000), "a message of 3,000 characters"),
        (KeyError("x"), "KeyError: 'x'"),
        (SystemExit(1), "SystemExit: 1"),
    ],
)
def test_what_counts_as_a_failure(monkeypatch: pytest.MonkeyPatch, ending: Any, problem: str) -> None:
    def ends(rng: random.Random, material: Material) -> tuple[int, str]:
        if isinstance(ending, BaseException):
            raise ending
        return ending

    monkeypatch.setitem(cases.KINDS, "recipe", ends)
    here = Path.cwd()
    assert play_case(0, Material.__new__(Material), ["recipe"]).problem == problem
    assert Path.cwd() == here


class _Process:
    """Stands for a process whose processor time is this one's."""

    pid = os.getpid()


def test_an_input_that_takes_seconds_of_a_core_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _theirs = runner.multiprocessing.Pipe()
    process: Any = _Process()
    monkeypatch.setattr(runner, "SECONDS", 0.2)
    clock = iter(range(100))
    monkeypatch.setattr(runner, "cpu_seconds", lambda process: float(next(clock)))
    assert not runner.in_time(process, ours)
    monkeypatch.setattr(runner, "cpu_seconds", lambda process: 0.0)
    monkeypatch.setattr(runner, "WAITED_S", 0.1)
    assert not runner.in_time(process, ours)
    _theirs.send(1)
    assert runner.in_time(process, ours)


def test_processor_time_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    process: Any = _Process()
    began, before = time.process_time(), runner.cpu_seconds(process)
    while time.process_time() - began < 0.1:
        pass
    assert 0.05 <= runner.cpu_seconds(process) - before < 5
    process.pid = 2**30
    assert runner.cpu_seconds(process) == 0.0
