"""Runs pools of fake members on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from actors.pool import GeneratorPool
from support.fakes import FakeGeneratorMember


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine to its end, for 20 seconds at most."""
    return asyncio.run(asyncio.wait_for(work, 20))


def generators(*members: FakeGeneratorMember) -> tuple[GeneratorPool, list[str]]:
    """Returns a pool of these members and the list that its events go to."""
    events: list[str] = []
    return GeneratorPool(members, events.append), events


async def settle() -> None:
    """Lets everything run that is ready to."""
    for _ in range(30):
        await asyncio.sleep(0)
