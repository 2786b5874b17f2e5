"""Kills, freezes and slows processes, holds a run in a phase, fills a disk, corrupts checkpoints."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from chaos.harness import Failed, Run

HOLDS = 30  # tries to meet a phase


def kill(process: psutil.Process) -> None:
    """Kills a process and waits until it is gone."""
    process.kill()
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(10)


def kill_tree(run: Run) -> None:
    """Kills the driver, waits for Ray's own end of what hung on it, and ends what is left."""
    run.process.kill()
    run.process.wait(10)
    run.survivors(20)
    run.end()


def freeze(process: psutil.Process) -> None:
    """Stops a process as if its machine hung."""
    process.suspend()


def thaw(process: psutil.Process) -> None:
    """Lets a frozen process go on; one that was killed meanwhile stays dead."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()  # psutil knows when the id belongs to another process by now


def hold(run: Run, names: list[str], phases: tuple[str, ...]) -> list[psutil.Process]:
    """Freezes actors, and returns when the run stands in one of the phases for them: a phase of this recipe is over in less than a
    second, too soon for a fault to meet it otherwise. Where it stands in another phase it may go on a little, and again."""
    processes, rng, found = [run.named(name) for name in names], random.Random(0), []
    for _ in range(HOLDS):
        for process in processes:
            freeze(process)
        found.append(run.until_standing())
        if found[-1] in phases:
            return processes
        for process in processes:
            thaw(process)
        time.sleep(rng.uniform(0.02, 0.4))  # less than an iteration
    raise Failed(f"it stood in {', '.join(found)} and never in {' or '.join(phases)}")


def hold_in_sync(run: Run, generators: list[str]) -> list[psutil.Process]:
    """Freezes generators while the learner is held in its update, and lets the learner go on: they are missed in the transfer."""
    learner = hold(run, run.names("learner rank")[:1], ("train",))
    processes = [run.named(name) for name in generators]
    for process in processes:
        freeze(process)
    for rank in learner:
        thaw(rank)
    if (phase := run.until_standing()) != "sync":
        raise Failed(f"it stands in {phase}, not in sync")
    return processes


def slow(process: psutil.Process, seconds: float, running: float = 0.05, stopped: float = 0.2) -> threading.Thread:
    """Lets a process run for a fifth of the time, `seconds` long, in a thread of its own."""

    def play() -> None:
        end = time.monotonic() + seconds
        with contextlib.suppress(psutil.NoSuchProcess):
            while time.monotonic() < end:
                process.suspend()
                time.sleep(stopped)
                process.resume()
                time.sleep(running)

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mounts a disk of a few megabytes at `folder`. Raises Failed where this is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "isentrope-chaos", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise Failed("skipped: a small disk needs the right to mount one (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fills the disk at `folder` but for `leave` bytes; returns the file that does it."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65_536)
    if leave:
        os.truncate(ballast, max(0, ballast.stat().st_size - leave))
    return ballast


def newest(run: Run) -> Path:
    """Returns the newest checkpoint."""
    steps = sorted((run.run / "checkpoints").glob("step_??????"))
    if not steps:
        raise Failed("there is no checkpoint")
    return steps[-1]


def flip(checkpoint: Path, part: str, count: int = 64) -> Path:
    """Flips `count` bytes in the second half of the largest file below hf/ or engine/, where the numbers are."""
    target = max((p for p in (checkpoint / part).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data, rng = bytearray(target.read_bytes()), random.Random(0)
    for place in rng.sample(range(len(data) // 2, len(data)), count):
        data[place] ^= 0xFF
    target.write_bytes(data)
    return target


def cut(checkpoint: Path, part: str) -> Path:
    """Cuts the largest file below hf/ or engine/ in half."""
    target = max((p for p in (checkpoint / part).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(target, target.stat().st_size // 2)
    return target
