"""Runs a recipe as `isentrope train` does, in this process, and notes when each stage of an iteration began and ended.

Actors write what they did into a file of their own, in a folder that the environment variable FOLDER names; all clocks are the
machine's monotonic one, so that the difference between two processes' times is what a message took.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ray

from actors.inference import Completion, Request
from actors.remote import GeneratorActor, LearnerActor
from learner.types import RankBatch, StepMetrics
from learner.weights.protocol import WeightManifest

T = TypeVar("T")
FOLDER = "ISENTROPE_BENCH_STAGES"
# A part of an iteration that is of the engine or the learner itself; all else is the fixed cost.
ENGINE, LEARNER = "engine steps", "learner passes"
PROBE_STEPS = "engine steps of the probe"


@contextmanager
def noted(name: str) -> Any:
    """Writes when the context began and ended, in an actor."""
    began = time.monotonic()
    yield
    _note(name, began, time.monotonic())


def _note(name: str, began: float, ended: float) -> None:
    with (Path(os.environ[FOLDER]) / str(os.getpid())).open("a") as file:
        file.write(json.dumps([name, began, ended]) + "\n")


def _own(method: Any) -> Any:
    """Returns a method as its class has it: Ray's types know it as a remote call alone."""
    return method


class TimedLearnerActor(LearnerActor):
    """Notes its own work."""

    @ray.method
    def train(self, batch: RankBatch) -> StepMetrics:
        with noted(LEARNER):
            return _own(super().train)(batch)

    @ray.method
    def manifest(self, version: int) -> WeightManifest:
        with noted("manifest"):
            return _own(super().manifest)(version)

    @ray.method
    def publish(
        self, manifest: WeightManifest, sequences: Sequence[Sequence[int]]
    ) -> tuple[int | None, list[list[float]]]:
        with noted("publish"):
            return _own(super().publish)(manifest, sequences)

    @ray.method
    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        with noted("probe of the trainer"):
            return _own(super().sequence_logprobs)(sequences)


class TimedGeneratorActor(GeneratorActor):
    """Notes its own work."""

    _steps_before = 0.0  # seconds of engine steps when weights were last there

    @ray.method(num_returns="streaming")
    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        with noted("stream"):
            async for completions in _own(super().stream)(requests):
                yield completions

    @ray.method
    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        with noted("probe of the engine"):
            scores = await _own(super().sequence_logprobs)(sequences)
        _note(PROBE_STEPS, 0.0, self._generator.stats().engine.step_s - self._steps_before)
        return scores

    @ray.method
    async def receive_weights(
        self, manifest: WeightManifest, timeout_s: float, sequences: Sequence[Sequence[int]]
    ) -> int:
        with noted("receive"):
            checksum = await _own(super().receive_weights)(manifest, timeout_s, sequences)
        self._steps_before = self._generator.stats().engine.step_s  # what comes next is of the probe
        return checksum


@dataclass
class Stages:
    """Holds the seconds of each stage, iteration by iteration."""

    rows: list[dict[str, float]] = field(default_factory=list)
    now: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)  # stage of this iteration -> when
    before: dict[str, float] = field(default_factory=dict)  # what the engine had counted
    began: float = 0.0

    def add(self, name: str, began: float, ended: float) -> None:
        self.now[name] += ended - began
        first, last = self.spans.get(name, (began, ended))
        self.spans[name] = min(first, began), max(last, ended)

    def close(self, counted: dict[str, float], actors: Sequence[tuple[str, float, float]], ended: float) -> None:
        """Ends an iteration. counted: what the slowest engine has counted since its start; actors: what actors noted."""
        for name, began, end in actors:
            self.add(name, began, end)
        now, spans = self.now, self.spans
        now["iteration"] = ended - self.began
        for name, value in counted.items():
            now[name] = value - self.before.get(name, 0.0)
        if "stream" in spans and "sample" in spans:
            now["before the engine"] = spans["stream"][0] - spans["sample"][0]
            now["after the engine"] = spans["sample"][1] - spans["stream"][1]
            # The engine's counter has the steps of the probe too, which are of that stage.
            now["probe"] -= now[PROBE_STEPS]
            now["engine, between steps"] = spans["stream"][1] - spans["stream"][0] - (now[ENGINE] - now[PROBE_STEPS])
        if LEARNER in spans and "update" in spans:
            now["to the learner"] = spans[LEARNER][0] - spans["update"][0] - now["batches"]
            now["from the learner"] = spans["update"][1] - spans[LEARNER][1]
        now["fixed"] = now["iteration"] - now[ENGINE] - now[LEARNER]
        self.rows.append(dict(now))
        # From here: what was asked and read since `ended` is the benchmark's own work, and of no iteration.
        self.now, self.spans, self.before, self.began = defaultdict(float), {}, counted, time.monotonic()


def record(config: Any, watch: AbstractContextManager[Any] | None = None) -> Stages:
    """Trains `config` to its end and returns what its iterations took. watch: a context around all of it, such as a profiler's."""
    from orchestration.cluster import actor_makers
    from orchestration.cluster import cluster as cluster_module
    from orchestration.run import lifecycle
    from orchestration.run.loop import Run

    stages = Stages()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        notes = Notes(Path(folder))

        def report(call: Any) -> Any:
            @functools.wraps(call)
            async def wrapper(run: Run, done: Any, evaluation: Any) -> None:
                began = time.monotonic()
                await call(run, done, evaluation)
                ended = time.monotonic()
                stages.add("row and sinks", began, ended)
                members: Sequence[Any] = run.cluster.generators.members  # type: ignore[attr-defined]
                engines = [(await member.stats()).engine for member in members]
                counted = {ENGINE: max(e.step_s for e in engines), "steps": max(e.steps for e in engines)}
                stages.now |= {"tokens": sum(t.response_tokens for g in done.groups for t in g.trajectories)}
                stages.close(counted, notes.new(), ended)

            return wrapper

        def of_loop(name: str) -> Callable[[Any], Any]:
            return functools.partial(_timed, stages, name)

        changes = (
            (cluster_module, "LearnerActor", lambda _: TimedLearnerActor),
            (actor_makers, "GeneratorActor", lambda _: TimedGeneratorActor),
            (Run, "_batches", functools.partial(_timed_here, stages, "batches")),
            (Run, "_update", of_loop("update")),
            (Run, "_sync", of_loop("sync")),
            (Run, "_probe", of_loop("probe")),
            (Run, "_judged", functools.partial(_began, stages)),
            (Run, "_report", report),
        )
        with _changed(changes), _variable(FOLDER, folder), watch or nullcontext():
            lifecycle.train(config, overwrite=True)
    return stages


class Notes:
    """Reads what actors wrote, each line once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def new(self) -> list[tuple[str, float, float]]:
        found = []
        for path in self._folder.iterdir():
            with path.open() as file:
                file.seek(self._read.get(path, 0))
                found += [tuple(json.loads(line)) for line in file]
                self._read[path] = file.tell()
        return found


def _began(stages: Stages, call: Callable[..., T]) -> Callable[..., T]:
    """Takes the moment at which the loop has its batch: from the end of the iteration before until then is the stage `sample`."""

    @functools.wraps(call)
    def wrapper(*args: Any) -> T:
        stages.add("sample", stages.began, time.monotonic())
        return call(*args)

    return wrapper


def _timed(stages: Stages, name: str, call: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    @functools.wraps(call)
    async def wrapper(*args: Any, **kwargs: Any) -> T:
        began = time.monotonic()
        try:
            return await call(*args, **kwargs)
        finally:
            stages.add(name, began, time.monotonic())

    return wrapper


def _timed_here(stages: Stages, name: str, call: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> T:
        began = time.monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            stages.add(name, began, time.monotonic())

    return wrapper


@contextmanager
def _changed(changes: Sequence[tuple[Any, str, Callable[[Any], Any]]]) -> Any:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, make in changes:
            setattr(owner, name, make(getattr(owner, name)))
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextmanager
def _variable(name: str, value: str) -> Any:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
