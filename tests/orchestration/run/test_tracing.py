"""Checks what is gathered for a run's trace while it goes on: from whom, until when, and what a failure costs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from learner.tracing.spans import Recorded, Span, span, take
from orchestration.run import tracing as module
from orchestration.run.tracing import tracing


class Actor:
    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.asked, self.error = name, 0, error

    async def spans(self) -> Recorded:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return Recorded([Span(f"work {self.asked}", 1000, 2000, 0)], 0)


def run(folder: Path, actors: list[Actor], every_s: float = 0.01) -> list[str]:
    said: list[str] = []

    async def go() -> None:
        async with tracing(folder, lambda: actors, said.append, every_s):
            with span("update"):
                await asyncio.sleep(0.05)

    asyncio.run(go())
    return said


def spans(folder: Path) -> list[tuple[str, str]]:
    found: list[dict[str, Any]] = json.loads((folder / "trace.json").read_text())
    names = {e["pid"]: e["args"]["name"] for e in found if e["name"] == "process_name"}
    return [(names[e["pid"]], e["name"]) for e in found if e["ph"] == "X"]


def test_the_driver_and_every_actor_that_answers_are_there_to_the_end(tmp_path: Path) -> None:
    actors = [Actor("generator 0"), Actor("learner rank 0", RuntimeError("it is gone"))]
    assert run(tmp_path, actors) == []
    found = spans(tmp_path)
    assert ("driver", "update") in found and ("generator 0", f"work {actors[0].asked}") in found
    assert {name for name, _ in found} == {"driver", "generator 0"}
    assert actors[0].asked >= 2 and actors[1].asked == actors[0].asked
    with span("later"):
        pass
    assert take().spans == []


def test_a_run_shorter_than_a_round_has_a_trace(tmp_path: Path) -> None:
    run(tmp_path, [Actor("verifier 0")], every_s=60.0)
    assert sorted(spans(tmp_path)) == [("driver", "update"), ("verifier 0", "work 1")]


def test_a_full_disk_ends_the_trace_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.TraceFile, "write", full)
    (said,) = run(tmp_path, [])
    assert said.startswith("the trace ends here: ") and "No space left on device" in said


def test_an_actor_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_S", 0.01)

    class Silent(Actor):
        async def spans(self) -> Recorded:
            await asyncio.sleep(60)
            raise AssertionError

    run(tmp_path, [Silent("generator 0"), Actor("generator 1")])
    assert {name for name, _ in spans(tmp_path)} == {"driver", "generator 1"}
