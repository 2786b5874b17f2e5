"""Break every formula once and see a test fail: `python tests/mutation/runner.py [--only NAME] [--list] [-j N]`.

The table has curated entries, changes of meaning that somebody thought of, and generated ones: flipped signs and swapped operands,
made from the syntax trees of the formula modules (generated.py). For each of them the packages are copied into a temporary folder,
the one change is made there and the tests named for it are run; without a change they have to pass. Prints killed or SURVIVED for
each. Exit code 1 if a mutation survived, the unchanged tests fail, or a text of the table is no longer in the sources exactly once.

A child process is forked for each run, after the libraries have been imported: they are what takes the time. The packages under
test are imported by the children alone, out of their own folders.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

HERE = Path(__file__).parent
TESTS = HERE.parent
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS))

from mutation.entries import Mutation, Span  # noqa: E402
from mutation.table import MUTATIONS  # noqa: E402

COPIED = ("envs", "learner", "actors", "orchestration", "tests", "pyproject.toml")
TIMEOUT_S = 300.0
# The same examples every time, fewer of them where a test does not say how many, and no time spent on the smallest failure.
HYPOTHESIS = ("--hypothesis-seed=0", "--hypothesis-profile=mutation")
KILLED, SURVIVED, BROKEN, SLOW = "killed", "SURVIVED", "BROKEN: no test ran", "killed (time-out)"


def stale(mutations: Sequence[Mutation | Span]) -> list[str]:
    """Returns a sentence for each entry that no longer fits the sources."""
    return [
        f"{m.name}: {problem}: bring the table in tests/mutation/ up to date"
        for m in mutations
        if (problem := m.problem((ROOT / m.file).read_text("utf-8")))
    ]


def change(before: str, after: str) -> list[str]:
    """Returns the lines that differ, marked with - and +."""
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), n=0)
    return [f"    {line}" for line in lines if not line.startswith(("---", "+++", "@@"))]


def copy(folder: Path) -> None:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "integration"))
        else:
            shutil.copy(ROOT / name, folder / name)


def child(folder: Path, tests: str) -> None:
    """In a forked process: pytest on the copy. Never returns."""
    code = 99
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        sys.path[:] = [
            str(folder),
            str(folder / "tests"),
            *(p for p in sys.path if Path(p).resolve() not in (ROOT, TESTS, HERE)),
        ]
        import pytest

        file, _, pattern = tests.partition(" -k ")
        chosen = ["-k", pattern] if pattern else []
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *HYPOTHESIS, *file.split(), *chosen])
        import learner

        if not str(learner.__path__[0]).startswith(str(folder)):
            code = 98
    finally:
        sys.stdout.flush()
        os._exit(int(code))


@dataclass
class Job:
    """One run under way: a mutation, or the unchanged sources."""

    mutation: Mutation | Span | None
    tests: str
    folder: Path
    pid: int = 0
    began: float = 0.0

    def start(self) -> None:
        copy(self.folder)
        if self.mutation is not None:
            path = self.folder / self.mutation.file
            path.write_text(self.mutation.apply(path.read_text("utf-8")), "utf-8")
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            child(self.folder, self.tests)

    def poll(self) -> str | None:
        """The verdict, or None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            if time.monotonic() - self.began < TIMEOUT_S:
                return None
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return SLOW
        code = os.waitstatus_to_exitcode(status)
        # 1: a test failed. Anything else, an import that fails or a -k that chooses nothing, says nothing of the tests.
        return {0: SURVIVED, 1: KILLED}.get(code, f"{BROKEN} ({code})")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", errors="replace")


def preload() -> None:
    """Imports what every child needs and none may change."""
    import hypothesis
    import numpy
    import pydantic
    import pytest
    import torch
    import transformers

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    checks = (hypothesis.HealthCheck.too_slow,)
    hypothesis.settings.register_profile(
        "mutation", max_examples=40, deadline=None, database=None, phases=phases, suppress_health_check=checks
    )
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    _ = (numpy, pydantic, pytest, transformers.AutoModelForCausalLM)


def run_all(jobs: Sequence[Job], parallel: int) -> dict[str, int]:
    """Run them, at most `parallel` at once, and print each verdict. Returns how often each was given."""
    waiting, running, counts = list(jobs), [], {}
    while waiting or running:
        while waiting and len(running) < parallel:
            running.append(waiting.pop(0))
            running[-1].start()
        time.sleep(0.02)
        for job in list(running):
            verdict = job.poll()
            if verdict is None:
                continue
            running.remove(job)
            name = job.mutation.name if job.mutation else f"unchanged: {job.tests}"
            if job.mutation is None:
                verdict = "passes" if verdict == SURVIVED else "FAILS"
            print(f"{verdict:<10} {time.monotonic() - job.began:5.1f} s  {name}", flush=True)
            if verdict == "FAILS" or verdict.startswith(BROKEN):
                print("\n".join(job.log.splitlines()[-25:]), flush=True)
            counts[verdict] = counts.get(verdict, 0) + 1
            shutil.rmtree(job.folder)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the table and stop")
    parser.add_argument("-j", type=int, default=1, help="runs at the same time")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only in m.name]
    if options.list:
        for m in chosen:
            source = (ROOT / m.file).read_text("utf-8")
            print("".join([f"{m.name}\n", *change(source, m.apply(source))]), end="")
        return 0
    if problems := stale(chosen):
        print("\n".join(problems))
        return 1
    preload()
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        base = Path(scratch)
        unchanged = [Job(None, t, base / f"unchanged{i}") for i, t in enumerate(dict.fromkeys(m.tests for m in chosen))]
        if set(run_all(unchanged, options.j)) - {"passes"}:
            print("the unchanged sources fail: nothing can be said of the mutations")
            return 1
        counts = run_all([Job(m, m.tests, base / f"m{i}") for i, m in enumerate(chosen)], options.j)
    killed = counts.get(KILLED, 0) + counts.get(SLOW, 0)
    print(f"{len(chosen)} mutations, {killed} killed, {len(chosen) - killed} survived")
    return int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
