"""Runs pools of fake members on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from actors.health.lifeline import MemberDied
from actors.inference import Request, SamplingParams
from actors.pool import GeneratorPool
from support.fakes import FakeGeneratorMember


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine to its end, for 20 seconds at most."""
    return asyncio.run(asyncio.wait_for(work, 20))


def generators(*members: FakeGeneratorMember) -> tuple[GeneratorPool, list[MemberDied]]:
    """Returns a pool of these members and the list that its deaths go to."""
    deaths: list[MemberDied] = []
    return GeneratorPool(members, deaths.append), deaths


async def settle() -> None:
    """Lets everything run that is ready to."""
    for _ in range(30):
        await asyncio.sleep(0)


def requests(name: str, count: int) -> list[Request]:
    return [Request(f"{name}/{i}", (1, 2), SamplingParams(4), i) for i in range(count)]
