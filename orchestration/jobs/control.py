"""Implements `isentrope status`, `logs` and `stop` with --address: of a job on a cluster, by its id or its run's name."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError, PlacementError
from orchestration.jobs.client import FOLDER, ended, exit_code
from orchestration.jobs.client import connect as connect_to
from orchestration.text import duration

STOPPING_S = 1800.0  # for an iteration and its checkpoint
AGAIN_S = 1.0
TAIL = 5  # lines of the log that a status shows


def status(name: str, address: str) -> str:
    """Returns where a job stands: its state, its last lines, and which folder its run has."""
    jobs = connect_to(address)
    job = jobs.find(name)
    identity = str(job.submission_id)
    began, until = (job.start_time or 0) / 1000, (job.end_time or 0) / 1000
    lasted = duration((until if ended(job) and until else time.time()) - began) if began else "not started"
    lines = [f"{identity}: {job.status.value.lower()}, {lasted}"]
    if ended(job):
        lines[0] += f", exit code {exit_code(job)}"
    if folder := (job.metadata or {}).get(FOLDER):
        seen = "" if Path(folder).is_dir() else ", which is not seen from here"
        lines.append(f"run: {folder}{seen}")
    lines += [f"  {line}" for line in jobs.log(identity).splitlines()[-TAIL:]]
    return "\n".join(lines)


def logs(name: str, address: str, follow: bool, out: Callable[[str], Any] = sys.stdout.write) -> int:
    """Prints what a job's driver has printed; `follow` goes on until the job ends, and returns its exit code."""
    jobs = connect_to(address)
    job = jobs.find(name)
    if not follow:
        out(jobs.log(str(job.submission_id)))
        return 0
    return exit_code(jobs.follow(str(job.submission_id), out))


def stop(name: str, address: str, now: bool, out: Callable[[str], Any] = sys.stdout.write) -> str:
    """Stops a job after a checkpoint of its last whole iteration, and waits until it has ended. Returns a sentence.

    Raises PlacementError where it has not ended after STOPPING_S.
    """
    if now:
        raise ConfigError("a job is stopped after a checkpoint: --now is for a run whose folder is seen from here")
    jobs = connect_to(address)
    job = jobs.find(name)
    identity = str(job.submission_id)
    if ended(job):
        return f"{identity} has ended already: {job.status.value.lower()}, exit code {exit_code(job)}"
    before = len(jobs.log(identity))
    jobs.stop(identity)
    deadline = time.monotonic() + STOPPING_S
    while not ended(job):
        if time.monotonic() > deadline:
            raise PlacementError(
                f"{identity} was asked to stop and has not ended after {duration(STOPPING_S)}: see `isentrope logs {identity}`"
            )
        time.sleep(AGAIN_S)  # another host: there is nothing to wait on
        job = jobs.info(identity)
    out(jobs.log(identity)[before:])
    return f"{identity}: {job.status.value.lower()}"
