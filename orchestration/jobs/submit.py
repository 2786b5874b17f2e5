"""Implements `isentrope submit`: sends a run to a Ray cluster as a job, follows its log, and returns its exit code."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.config.run_config import RunConfig, load_config
from orchestration.errors import ConfigError
from orchestration.jobs import variables
from orchestration.jobs.packing import Item, Package, pack
from orchestration.text import size

STOP_WAIT_S = 600  # for a driver that was asked to stop, to write its checkpoint; Ray's own limit is 3 s
NOT_FOUND = (126, 127)  # exit codes of a shell that does not find the program


@dataclass(frozen=True, slots=True)
class Submission:
    """Holds what a user asked for.

    recipe, overrides  as of `isentrope train`
    address            of the job server; None: Ray's variables, or this machine
    working_dir        a folder that goes along as a whole; None: only what the run needs
    variables          names of environment variables that go along
    python             on the nodes; None: the one that runs Ray on the head
    overwrite          begin anew; else the run goes on from its latest checkpoint, if it has one
    wait               follow the log, and return the job's exit code
    """

    recipe: str
    overrides: Sequence[str]
    address: str | None = None
    working_dir: Path | None = None
    variables: Sequence[str] = ()
    python: str | None = None
    overwrite: bool = False
    wait: bool = True


def run(submission: Submission, *, dry_run: bool, note: Callable[[str], None]) -> int:
    """Submits a run; returns the exit code of the job, 0 where it is not waited for. Raises IsentropeError."""
    config = load_config(submission.recipe, submission.overrides)
    values = variables.chosen(submission.variables)
    package = pack(submission.recipe, config, submission.working_dir)
    for line in describe(config, package, list(values)):
        note(line)
    if dry_run:
        return 0
    return _send(submission, config, package, values, note)


def _send(
    submission: Submission, config: RunConfig, package: Package, values: dict[str, str], note: Callable[[str], None]
) -> int:
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    from orchestration.jobs.client import FOLDER, RUN, STARTING_S, connect

    check_size(package, GCS_STORAGE_MAX_SIZE)
    jobs = connect(submission.address, STARTING_S, note)
    python = submission.python or jobs.python()
    job = f"{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    with tempfile.TemporaryDirectory(prefix="isentrope-submit-") as temporary:  # mode 0700
        folder = Path(temporary)
        package.write(folder)
        if values:
            variables.write(folder, values)
        environment = runtime_env(folder if package.files or values else None, bool(values), submission.python)
        jobs.submit(
            job, command(submission, package, python), environment, {RUN: config.run.name, FOLDER: str(config.folder)}
        )
    at = "" if submission.address is None else f" --address={submission.address}"
    note(f"job {job} on {jobs.url}, with {python}")
    note(f"isentrope status|logs|stop {job} --address={jobs.url}")
    if not submission.wait:
        return 0
    return _followed(jobs, job, python, f"isentrope logs {job}{at or ' --address=' + jobs.url} --follow", note)


def _followed(jobs: Any, job: str, python: str, again: str, note: Callable[[str], None]) -> int:
    from orchestration.jobs.client import exit_code

    printed: list[str] = []

    def out(text: str) -> None:
        printed[:] = [("".join(printed) + text)[-4000:]]
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        info = jobs.follow(job, out)
    except KeyboardInterrupt:
        note(f"\nthe job goes on: {again}")
        return 130
    code = exit_code(info)
    lacking = code in NOT_FOUND or "No module named orchestration" in "".join(printed)
    if code and lacking:
        note(
            f"isentrope: {python} on the head has no isentrope: install it there, on every node at the same path, and start Ray "
            "with that environment's `ray start`; or give --python=PATH"
        )
    elif code and not printed:
        note(f"isentrope: the job did not start: {' '.join(str(info.message).split())[:500]}")
    note(f"job {job}: {str(info.status.value).lower()}, exit code {code}")
    return code


def command(submission: Submission, package: Package, python: str) -> str:
    """Returns the job's command line. It begins the run or goes on with it, so that the same job can be submitted again."""
    mode = "--overwrite" if submission.overwrite else "--auto-resume"
    words = [python, "-P", "-m", "orchestration", "train", package.recipe, mode, *submission.overrides]
    return "exec " + shlex.join(words)  # so that a signal reaches the driver, and its exit code is the job's


def runtime_env(folder: Path | None, with_variables: bool, python: str | None) -> dict[str, Any]:
    """Returns the runtime environment of the job."""
    names = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    found: dict[str, Any] = {"env_vars": names}
    if folder is not None:
        found["working_dir"] = str(folder)
    if with_variables:
        names[variables.WHERE] = variables.FILE
        found["worker_process_setup_hook"] = variables.HOOK
    if python is not None:
        found["py_executable"] = python  # of the actors: else they would be Ray's own
    return found


def check_size(package: Package, most: int) -> None:
    """Raises ConfigError where more would be uploaded than Ray takes."""
    if package.size > most:
        largest = max((item for item in package.items if item.files), key=lambda item: _bytes(item, package))
        raise ConfigError(
            f"{size(package.size)} would be uploaded, {size(_bytes(largest, package))} of it for {largest.key}={largest.value}, "
            f"and Ray takes {size(most)}: put it where every node sees it and give its absolute path"
        )


def describe(config: RunConfig, package: Package, names: Sequence[str]) -> list[str]:
    """Returns the lines that say what the run needs and how each part gets to the cluster."""
    lines = [f"run {config.run.name}, in {config.folder}"]
    for item in package.items:
        how = f"uploaded, {len(item.files)} files, {size(_bytes(item, package))}" if item.files else item.note
        lines.append(f"  {item.key:<24} {item.value:<32} {how}")
    if names:
        lines.append(f"  {'variables':<24} {', '.join(names):<32} of this shell, in a file of mode 600")
    return lines


def _bytes(item: Item, package: Package) -> int:
    return sum(package.files[name].stat().st_size for name in item.files)
