"""Dumps: from members that answer, from those that do not, from processes that are frozen, busy in C, or gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.health.stacks import stacks
from orchestration.cluster.dumps import Member, from_outside, write_dumps

ROOT = Path(__file__).parents[3]
BUSY_IN_C = """
import re, sys
from actors.health.stacks import answer_signal
answer_signal()
print("ready", flush=True)
def held_by_c():
    re.match(r"(a+)+$", "a" * 40 + "b")  # years, without giving the interpreter back
held_by_c()
"""
DEAF = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"


class Answers:
    async def stacks(self) -> str:
        return stacks()


class Silent:
    async def stacks(self) -> str:
        await asyncio.sleep(60)
        return ""


class Dead:
    async def stacks(self) -> str:
        raise ConnectionError("the worker\ndied")


@contextmanager
def process(code: str, log: Path) -> Iterator[int]:
    with log.open("wb") as err:
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=err,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        yield child.pid
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def test_stacks_name_threads_tasks_and_functions() -> None:
    async def waits_for_ever() -> None:
        await asyncio.sleep(60)

    async def run() -> str:
        task = asyncio.create_task(waits_for_ever(), name="rollout 7")
        await asyncio.sleep(0)
        text = stacks()
        task.cancel()
        return text

    text = asyncio.run(run())
    assert "thread MainThread" in text and "test_stacks_name_threads" in text
    assert "task rollout 7" in text and "waits_for_ever" in text
    assert "test_stacks_name_threads" in stacks()  # outside a loop too


def test_every_member_has_its_file_whatever_it_does(tmp_path: Path) -> None:
    members = [Member("generator 0", Answers()), Member("verifier 0", Silent()), Member("learner rank 1", Dead())]
    members.append(Member("judge 0", None, 12, "another-node"))
    began = time.monotonic()
    asyncio.run(write_dumps(tmp_path / "dumps", members, "generate waits", ask_s=0.2))
    assert time.monotonic() - began < 5
    texts = {path.name.rsplit("-", 2)[0]: path.read_text() for path in (tmp_path / "dumps").iterdir()}
    assert set(texts) == {"generator-0", "verifier-0", "learner-rank-1", "judge-0", "driver"}
    assert all(text.startswith("generate waits\n\n") for text in texts.values())
    assert "MainThread" in texts["generator-0"] and "no answer within 0.2 s" in texts["verifier-0"]
    assert "the worker died" in texts["learner-rank-1"] and "on another-node" in texts["judge-0"]
    assert (tmp_path / "dumps").stat().st_mode & 0o077 == 0


def test_a_process_held_by_c_code_gives_its_stacks(tmp_path: Path) -> None:
    with process(BUSY_IN_C, tmp_path / "err") as pid:
        time.sleep(0.3)
        text = asyncio.run(from_outside(pid))
        assert "held_by_c" in text
        os.kill(pid, 0)


def test_a_frozen_process_is_said_to_be(tmp_path: Path) -> None:
    with process(DEAF, tmp_path / "err") as pid:
        os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + 5
        while "frozen by a signal" not in (text := asyncio.run(from_outside(pid))):
            assert time.monotonic() < deadline, text


def test_a_process_that_does_not_listen_is_not_ended_by_the_question(tmp_path: Path) -> None:
    with process(DEAF, tmp_path / "err") as pid:
        assert " resident" in asyncio.run(from_outside(pid))
        time.sleep(0.2)
        assert Path(f"/proc/{pid}/status").read_text().split("State:\t")[1][0] in "SR"
    assert asyncio.run(from_outside(pid)) == f"process {pid} is gone"


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "dumps").write_text("a file")
    asyncio.run(write_dumps(tmp_path / "dumps", [Member("generator 0", Answers())], "x"))
