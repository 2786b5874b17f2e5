"""Starts a run as a user does, finds its processes, waits with a bound, and ends everything that it started.

A run is a process of its own with a Ray cluster of its own and a folder of its own. All its processes carry a marker in their
environment, by which they are found again, whatever became of their parents.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
MARKER = "ISENTROPE_TEST"
START_S = 300.0  # for a run to reach its first iteration, on two busy cores
POLL_S = 0.1
TAIL = 3000

ITERATIONS = 40
RECIPE = """
run: {name: chaos, iterations: 40, sinks: [jsonl, console], samples_per_iteration: 64}
model: {path: MODEL}
environments: [{name: arithmetic}]
batch: {prompts: 8, responses: 8}
sampling: {max_tokens: 4}
generators: {count: 2, max_model_len: 32, max_num_seqs: 64, kv_cache_mb: 16, cpus: 0.3}
verifiers: {count: 1}
learner: {lr: 3.0e-4, updates: 2, ranks: 2, cpus: 0.3, threads: 1}
objective: {advantage: rloo, surrogate: ppo}
entropy:
  method: {kind: repo}
  controller: {kind: doubling, start: 0.1, low: 0.01, high: 1.0}
  target: {fraction: 0.9}
evaluation: {prompts: 0}
checkpoint: {every: 2}
"""


class Failed(Exception):
    """Reports, in one sentence, what did not come as a row expects."""


@dataclass
class Run:
    """Holds one `isentrope` process with its folder."""

    folder: Path  # where it was started
    process: subprocess.Popen[bytes]
    marker: str
    name: str
    began: float = field(default_factory=time.monotonic)

    @property
    def run(self) -> Path:
        return self.folder / "runs" / self.name

    def output(self) -> str:
        """Returns stdout and stderr so far."""
        return "".join((self.folder / f"{self.marker}.{kind}").read_text("utf-8", "replace") for kind in ("out", "err"))

    def errors(self) -> str:
        return (self.folder / f"{self.marker}.err").read_text("utf-8", "replace")

    def tail(self) -> str:
        """Returns the end of everything that the run has said, for a row that failed."""
        parts = [f"kept in {self.folder}"]
        files = [self.folder / f"{self.marker}.{kind}" for kind in ("out", "err")]
        for path in (*files, self.run / "events.log", self.run / "status.json"):
            if path.is_file():
                parts.append(f"--- {path.name}\n{path.read_text('utf-8', 'replace')[-TAIL:]}")
        return "\n".join(parts)

    # ------------------------------------------------------------ what it says of itself

    def status(self) -> dict[str, Any]:
        """Returns status.json; empty before there is one."""
        try:
            return json.loads((self.run / "status.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}

    def events(self) -> str:
        """Returns events.log; empty before there is one."""
        path = self.run / "events.log"
        return path.read_text("utf-8", "replace") if path.is_file() else ""

    def rows(self) -> list[dict[str, Any]]:
        path = self.run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []

    def iteration(self) -> int:
        """Returns the last iteration that is done."""
        return int(self.status().get("iteration", 0))

    # ------------------------------------------------------------ its processes

    def processes(self) -> list[psutil.Process]:
        """Returns all that carry the marker and live."""
        return marked(self.marker)

    def named(self, name: str) -> psutil.Process:
        """Returns the process of an actor: "generator 0". Its children carry the name too, and are not meant."""
        for process in self.actors(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.environ().get("ISENTROPE_NAME") == name:
                    return process
        raise Failed(f"there is no process of {name}")

    def actors(self, kind: str = "") -> list[psutil.Process]:
        """Returns the processes of all actors whose name begins with `kind`."""
        found = []
        for process in self.processes():
            try:
                name, line = process.environ().get("ISENTROPE_NAME", ""), process.cmdline()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if name and name.startswith(kind) and line and line[0].startswith("ray::"):
                found.append(process)
        return found

    def names(self, kind: str) -> list[str]:
        found = []
        for process in self.actors(kind):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(process.environ()["ISENTROPE_NAME"])
        return sorted(found, key=lambda name: int(name.split()[-1]))

    def ray(self, program: str) -> psutil.Process:
        """Returns the raylet or the gcs_server of the run's own cluster."""
        for process in self.processes():
            line = process.cmdline()
            if line and Path(line[0]).name == program:
                return process
        raise Failed(f"there is no {program}")

    # ------------------------------------------------------------ waits

    def until(self, what: str, condition: Callable[[], Any], limit_s: float, ended: bool = False) -> Any:
        """Returns the first true value of `condition`. Raises Failed after `limit_s`, or when the run ends and may not have."""
        deadline = time.monotonic() + limit_s
        while not (value := condition()):
            if not ended and self.process.poll() is not None:
                said = " ".join(self.errors().split())[-200:]
                raise Failed(f"the run ended with {self.process.returncode} before {what}: {said}")
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {limit_s:g} s, the run is at {self.where()}")
            time.sleep(POLL_S)
        return value

    def where(self) -> str:
        """Says where the run stands, for a sentence."""
        status = self.status()
        phase = status.get("phase") or {}
        return f"iteration {status.get('iteration')}, {phase.get('name')} {phase.get('done')}/{phase.get('total')}"

    def until_iteration(self, number: int, limit_s: float = START_S) -> None:
        self.until(f"iteration {number} is done", lambda: self.iteration() >= number, limit_s)

    def until_event(self, text: str, limit_s: float) -> float:
        """Returns the seconds until an event has `text` in it."""
        began = time.monotonic()
        self.until(f"the event '{text}'", lambda: text in self.events(), limit_s)
        return time.monotonic() - began

    def until_replaced(self, kind: str, count: int, limit_s: float) -> float:
        """Returns the seconds until `count` actors of a kind, of all so far, were replaced by others that work: a generator with
        the current weights. These have names of their own."""
        began, words = time.monotonic(), "serves from version" if kind == "generator" else "replaces one that is gone"
        there = re.compile(rf"\b{kind} \d+ {words}")
        self.until(f"replacement {count} of a {kind}", lambda: len(there.findall(self.events())) >= count, limit_s)
        return time.monotonic() - began

    def until_standing(self, limit_s: float = 60.0) -> str:
        """Returns the phase in which the run has stood still for two beats of its status, "probe" after a whole transfer."""
        seen: list[Any] = []

        def stands() -> str:
            status = self.status()
            at = (status.get("phase") or {}, status.get("iteration"))
            if not at[0] or not seen or seen[-1][1] != at:
                seen[:] = [(status.get("beats", 0), at)]
            still = status.get("beats", 0) >= seen[-1][0] + 2
            return str(at[0].get("name")) if still else ""

        name = self.until("it stands still", stands, limit_s)
        phase = self.status().get("phase") or {}
        return "probe" if name == "sync" and phase.get("done") == phase.get("total") else name

    def wait(self, limit_s: float) -> int:
        """Returns the exit code. Raises Failed after `limit_s`."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"not ended within {limit_s:g} s, it is at {self.where()}") from None

    def end(self) -> None:
        """Ends every process of the run, by its id; returns when none is left."""
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(left, timeout=2)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def survivors(self, limit_s: float = 30.0) -> list[str]:
        """Returns the command lines of what is left of an ended run after `limit_s`."""
        deadline = time.monotonic() + limit_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        lines = []
        for process in left:
            try:
                lines.append(" ".join(process.cmdline())[:100])
            except psutil.NoSuchProcess:
                continue
        return lines


def marked(marker: str) -> list[psutil.Process]:
    """Returns the processes that carry a marker and live."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def new_marker() -> str:
    return uuid.uuid4().hex[:12]


def environment(folder: Path, marker: str) -> dict[str, str]:
    """Returns the variables of a process of a run with this marker."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}  # never into a cluster of others
    return environ | {
        "PYTHONPATH": f"{folder}:{ROOT}", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0", MARKER: marker
    }  # fmt: skip


class Lab:
    """Starts runs in folders of its own, and has the run that nothing disturbs, which others are compared with."""

    def __init__(self, work: Path | None = None) -> None:
        self.work = work or Path(tempfile.mkdtemp(prefix="isentrope-chaos-"))
        self.runs: list[Run] = []
        self.killed: dict[tuple[object, ...], Run] = {}  # what rows take a copy of, by how it came about
        self._references: dict[tuple[str, ...], Run] = {}
        self._model: Path | None = None

    def start(
        self, *overrides: str, name: str = "chaos", folder: Path | None = None, resume: bool = False, **how: Any
    ) -> Run:
        """Starts `isentrope train` with the recipe of this folder, or `--resume` in the folder of an earlier run.

        how: `marker` and `within` of `command`.
        """
        folder = folder or self.new_folder()
        flags = ("--resume",) if resume else ()
        words = ("train", "recipe.yaml", f"run.name={name}", *overrides, *flags)
        return self.command(*words, folder=folder, name=name, **how)

    def new_folder(self) -> Path:
        """Returns a new folder with the recipe."""
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.work))
        (folder / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(self.model())))
        return folder

    def command(
        self, *arguments: str, folder: Path, name: str = "chaos", marker: str | None = None, within: Sequence[str] = ()
    ) -> Run:
        """Starts any `isentrope` command in a folder. within: a command that runs the command given to it, as `ip netns exec`."""
        marker = marker or new_marker()
        with (folder / f"{marker}.out").open("wb") as out, (folder / f"{marker}.err").open("wb") as err:
            process = subprocess.Popen(
                [*within, sys.executable, "-m", "orchestration", *arguments], cwd=folder, stdout=out, stderr=err,
                stdin=subprocess.DEVNULL, env=environment(folder, marker), start_new_session=True,
            )  # fmt: skip
        run = Run(folder, process, marker, name)
        self.runs.append(run)
        return run

    def ask(self, *arguments: str, folder: Path, limit_s: float = 60.0) -> tuple[int, str]:
        """Runs a short command; returns exit code and output."""
        run = self.command(*arguments, folder=folder)
        return run.wait(limit_s), run.output()

    def model(self) -> Path:
        """Returns a model that knows a little arithmetic, so that rewards differ; made once for all work folders."""
        if self._model is None:
            folder = self.work / "arithmetic"
            arguments = ("init-model", "--env", "arithmetic", "steps=60", "--cache", str(ROOT / "models" / "cache"))
            code, out = self.ask(*arguments, "--out", str(folder), folder=self.work, limit_s=300)
            if code:
                raise Failed(f"the model was not made: {out[-500:]}")
            self._model = folder
        return self._model

    def begin_reference(self, *overrides: str) -> Run:
        """Starts the undisturbed run with these overrides, once, beside what the caller does; anew where it was ended."""
        run = self._references.get(overrides)
        if run is None or run.process.poll():
            run = self._references[overrides] = self.start(*overrides)
        return run

    def reference(self, *overrides: str) -> Run:
        """Returns the undisturbed run with these overrides, once it has ended."""
        run = self.begin_reference(*overrides)
        code = run.wait(START_S + 120)
        if code:
            raise Failed(f"the undisturbed run ended with {code}: {run.output()[-500:]}")
        run.end()
        return run

    def close(self, keep: bool) -> None:
        """Ends every process that is left. keep: leaves the folders for a person to look at."""
        for run in self.runs:
            run.end()
        if not keep:
            shutil.rmtree(self.work, ignore_errors=True)


def interrupted(number: int, frame: object) -> None:
    """Turns SIGTERM into the exception of Ctrl-C, so that `finally` ends what was started."""
    raise KeyboardInterrupt


def end_on_signals() -> None:
    """Lets SIGTERM end this program as Ctrl-C does."""
    signal.signal(signal.SIGTERM, interrupted)
