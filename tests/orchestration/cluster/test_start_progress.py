"""Checks what a person and status.json see while the actors of a run start."""

from __future__ import annotations

import asyncio

from orchestration.cluster.start_progress import StartProgress


def lines(numbers: dict[str, int]) -> tuple[list[str], list[tuple[str, float, float]]]:
    said: list[str] = []
    at: list[tuple[str, float, float]] = []
    now = 10.0

    async def start(seconds: float) -> float:
        nonlocal now
        now += seconds
        return seconds

    async def run() -> None:
        shown = StartProgress(numbers, said.append, lambda *args: at.append(args), lambda: now)
        for kind, count in numbers.items():
            for _ in range(count):
                assert await shown.follow(kind, start(1.5)) == 1.5

    asyncio.run(run())
    return said, at


def test_every_actor_of_few_has_a_line_with_its_seconds() -> None:
    said, at = lines({"generator": 2, "learner": 1})
    assert said == [
        "generator: 1 of 2 ready after 1.5 s",
        "generator: 2 of 2 ready after 3.0 s",
        "learner: 1 of 1 ready after 4.5 s",
    ]
    assert at == [("loading", 0, 3), ("loading", 1, 3), ("loading", 2, 3), ("loading", 3, 3)]


def test_of_many_the_last_has_a_line() -> None:
    said, at = lines({"generator": 6})
    assert said == ["generator: 6 of 6 ready after 9.0 s"]
    assert at[-1] == ("loading", 6, 6) and len(at) == 7
