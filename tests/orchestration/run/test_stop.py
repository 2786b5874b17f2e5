"""A stop: what it interrupts, and what the second signal does."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from orchestration.run.stop import StopSignal, signals


async def forever(events: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        events.append("ended")


def test_work_that_is_done_first_gives_its_result() -> None:
    async def work() -> int:
        return 3

    async def main() -> int | None:
        return await StopSignal().interrupts(work())

    assert asyncio.run(main()) == 3


def test_a_stop_ends_the_work_and_waits_until_it_has_ended() -> None:
    async def main() -> None:
        stop, events = StopSignal(), list[str]()
        asyncio.get_running_loop().call_soon(stop.set, 15)
        assert await stop.interrupts(forever(events)) is None
        assert (stop.number, events) == (15, ["ended"])

    asyncio.run(asyncio.wait_for(main(), 10))


def test_the_first_signal_asks_and_the_second_cancels() -> None:
    async def main() -> None:
        stop, texts = StopSignal(), list[str]()
        with signals(stop, texts.append):
            os.kill(os.getpid(), signal.SIGTERM)
            while stop.number is None:
                await asyncio.sleep(0)
            assert stop.number == signal.SIGTERM
            assert texts == ["stopping: the last whole iteration is checkpointed first; once more to stop at once"]
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(10)

    asyncio.run(main())
