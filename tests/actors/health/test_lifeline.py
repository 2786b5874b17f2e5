"""Every wait for an actor ends: by its answer, its time, its death, or because the actor was given up."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Coroutine
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from support.pools import run

from actors.health.lifeline import CouldNotStart, LearnerDied, Lifeline, MemberDied
from actors.inference import EngineDead

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: A
\tactor_id: 2b5582849fe9bf2d0f0f7d2a01000000
\tpid: 7169
\tip: 10.0.0.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits."""
REFUSED = """The actor died because of an error raised in its creation task, ray::B.__init__() (pid=7236, ip=10.0.0.2)
  File "err.py", line 7, in __init__
ValueError: no model here
second line"""


async def never() -> None:
    await asyncio.sleep(3600)


async def fails(error: BaseException) -> None:
    raise error


class Told(RayActorError):
    """Says what it was made with, as the errors that Ray makes do."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def __str__(self) -> str:
        return self.text


def death(work: Coroutine[Any, Any, Any], timeout_s: float | None = 5.0, **more: Any) -> MemberDied:
    async def wait() -> MemberDied:
        line = Lifeline("generator 3", **more)
        with pytest.raises(MemberDied) as raised:
            await line.answer(work, timeout_s, "some.key")
        assert line.death is raised.value
        with pytest.raises(MemberDied) as later:  # who died once is asked nothing more
            await line.answer(asyncio.sleep(0), 1.0)
        assert later.value is raised.value
        return raised.value

    return run(wait())


def test_a_process_that_was_killed_is_said_in_one_short_line() -> None:
    died = death(fails(Told(KILLED)))
    assert (
        str(died) == "generator 3 is gone: its process (pid 7169 on 10.0.0.2) was killed or crashed; "
        "`dmesg` tells whether the machine was out of memory"
    )
    assert not isinstance(died, CouldNotStart)


def test_an_actor_whose_own_code_refused_to_start_says_what_it_raised() -> None:
    died = death(fails(Told(REFUSED)))
    assert isinstance(died, CouldNotStart)
    assert died.detail == "ValueError: no model here second line"


def test_a_real_error_of_ray_is_one_line_whatever_it_says() -> None:
    died = death(fails(ActorDiedError()))
    assert 0 < len(died.detail) <= 300 and "\n" not in died.detail


def test_an_answer_that_does_not_come_in_time_names_the_key() -> None:
    assert death(never(), 0.01).detail == "no answer within 0.01 s (some.key)"


def test_an_engine_that_ended_is_a_death_and_any_other_error_comes_out_as_itself() -> None:
    dead = RayTaskError("stream", "tb", EngineDead("out of memory"))
    assert death(fails(dead)).detail == "out of memory"

    async def work() -> None:
        line = Lifeline("generator 3")
        with pytest.raises(ValueError, match="bad token"):
            await line.answer(fails(RayTaskError("stream", "tb", ValueError("bad token"))), 1.0)
        assert line.death is None
        assert await line.answer(asyncio.sleep(0, 7), None) == 7

    run(work())


def test_giving_up_ends_every_wait_at_once_with_the_same_error() -> None:
    async def work() -> None:
        line = Lifeline("learner rank 1", LearnerDied)
        waits = [asyncio.ensure_future(line.answer(never(), None)) for _ in range(3)]
        await asyncio.sleep(0)
        why = LearnerDied("learner rank 0", "frozen")
        line.cut(why)
        line.cut(LearnerDied("learner rank 1", "later"))
        assert await asyncio.gather(*waits, return_exceptions=True) == [why] * 3

    run(work())


def test_a_wait_that_is_cancelled_is_no_death() -> None:
    async def work() -> None:
        line = Lifeline("g")
        wait = asyncio.ensure_future(line.answer(never(), None))
        await asyncio.sleep(0)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        assert line.death is None

    run(work())


def test_calls_that_have_to_make_progress_are_counted() -> None:
    line = Lifeline("g")
    with line.working(), line.working():
        assert line.work == 2
    assert line.work == 0


@pytest.mark.parametrize("kind", [MemberDied, LearnerDied, CouldNotStart])
def test_a_death_crosses_processes(kind: type[MemberDied]) -> None:
    again = pickle.loads(pickle.dumps(kind("g0", "no answer within 3 s")))
    assert (type(again), str(again)) == (kind, "g0 is gone: no answer within 3 s")


@pytest.mark.parametrize(
    "error",
    [OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node was 31 GB"),
     RuntimeEnvSetupError("no such folder"), ActorUnschedulableError("its node is gone")],
)  # fmt: skip
def test_whatever_else_ray_ends_an_actor_for_is_a_death_too(error: RayError) -> None:
    """Its memory monitor kills an actor, and the calls of that one raise no RayActorError."""
    found = death(fails(error))
    assert found.name == "generator 3" and "\n" not in found.detail
    assert any(words in found.detail for words in ("low on memory", "no such folder", "its node is gone"))


MEMORY = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.2, ID: 5b) where the lease was running was 15.21GB / 16.00GB (0.950625), which exceeds the memory
usage threshold of 0.95. Ray killed this worker (ID: 7e) because it was the most recently scheduled task."""


@pytest.mark.parametrize("error", [OutOfMemoryError(MEMORY), Told(MEMORY)])
def test_an_actor_that_was_ended_for_memory_says_so_with_the_numbers_and_what_takes_less(error: RayError) -> None:
    died = death(fails(error))
    assert not isinstance(died, CouldNotStart) and "\n" not in died.detail
    assert "was ended because the node ran low on memory, which had 15.21GB of 16.00GB in use: a smaller" in died.detail
    assert "learner.micro_batch_tokens" in died.detail and "--dry-run" in died.detail
