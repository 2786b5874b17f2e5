"""Runs a configuration to its exit: folder, sinks, cluster, loop, report, and the release of all of it.

`train` is one run on a cluster of its own, `in_turn` several on the same one; `conduct` is a run on a cluster that its caller
holds, as the laboratory does.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.checkpoint import CheckpointError, Checkpoints, write_whole
from orchestration.cluster import placement
from orchestration.config import preflight
from orchestration.config.loader import local
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError, IsentropeError, NumericsError, Stopped
from orchestration.report.run_report import write_report
from orchestration.run.resume import checkpoints_of, resume_state
from orchestration.run.stop import StopSignal, signals
from orchestration.sampling.curriculum import Curriculum, stages_of
from orchestration.telemetry.sinks.base import FanOut, RunInfo
from orchestration.telemetry.sinks.build import build_sinks

if TYPE_CHECKING:
    from orchestration.cluster.actor_settings import Start
    from orchestration.cluster.cluster import Cluster
    from orchestration.run.state import RunState
    from orchestration.sampling.codec import Codecs


def describe_plan(config: RunConfig) -> str:
    """Describes the resolved configuration and the resources it needs, for --dry-run."""
    slots = placement.plan(config)
    lines = [f"  {slot.role:<14} {slot.cpus:g} CPU  {slot.gpus:g} GPU" for slot in slots]
    total = placement.totals(slots)
    return (
        f"{config.to_yaml()}\nresources\n"
        + "\n".join(lines)
        + f"\n  total          {total['CPU']:g} CPU  {total['GPU']:g} GPU"
    )


@dataclass(frozen=True, slots=True)
class Job:
    """Holds a run that may begin: its configuration was checked against disk and checkpoints."""

    config: RunConfig
    state: dict[str, Any] | None = None  # state.json of the checkpoint it goes on from
    checkpoint: Path | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        """Returns the checkpoints of the run."""
        return checkpoints_of(self.config)


def prepare(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> Job:
    """Checks that the run may begin; writes nothing. Raises ConfigError."""
    preflight.run_preflight(config)
    job = Job(config)
    if resume:
        return Job(config, *resume_state(config, job.checkpoints))
    if not overwrite and ((config.folder / "metrics.jsonl").exists() or job.checkpoints.latest()):
        raise ConfigError(
            f"{config.folder} holds a run already: choose another run.name, continue it with --resume, or give --overwrite"
        )
    return job


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Runs a configuration and returns its report.html. Raises IsentropeError; its exit_code is the command's."""
    in_turn([prepare(config, resume=resume, overwrite=overwrite)])
    return config.folder / "report.html"


def in_turn(jobs: Sequence[Job], announce: Callable[[Job], None] = lambda job: None) -> None:
    """Runs jobs of one `layout_key`, one after the other on the same actors. Raises IsentropeError at the first that fails."""
    from orchestration.sampling.codec import load_codecs

    first = jobs[0].config
    codecs = load_codecs(first)

    async def runs() -> None:
        from orchestration.cluster.cluster import Cluster

        stop, cluster = StopSignal(), Cluster(first, lambda text: None)
        try:
            with signals(stop, lambda text: cluster.on_event(text)):
                for job in jobs:
                    announce(job)
                    await conduct(job, cluster, codecs, stop, job.config.run.sinks)
        finally:
            await cluster.close()

    with connected(first):
        asyncio.run(runs())


async def conduct(job: Job, cluster: Cluster, codecs: Codecs, stop: StopSignal, sinks: Sequence[str]) -> None:
    """Runs a job on `cluster`, from its folder to its report. Raises IsentropeError."""
    from actors.pool import MemberDied, PoolEmpty  # Ray, torch and transformers from here on
    from actors.rollout import ContextFull
    from learner.deepspeed_engine import UnsupportedPrecision
    from learner.learner import NonFiniteError
    from learner.weights.protocol import WeightSyncError

    config, folder = job.config, job.config.folder
    if job.state is None and (folder / "checkpoints").exists():
        shutil.rmtree(folder / "checkpoints")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.yaml", config.to_yaml())
    except OSError as error:
        raise ConfigError(f"run.dir {config.run.dir} cannot be written: {error}") from None
    sink = build_sinks(sinks, folder, sys.stdout.isatty())
    cluster.on_event = sink.event
    status = "failed"
    try:
        await _train(job, cluster, sink, codecs, stop)
        status = "finished"
    except Stopped:
        status = "stopped"
        raise
    except asyncio.CancelledError:
        status = "stopped"
        raise Stopped(stop.number or signal.SIGINT) from None
    except (UnsupportedPrecision, ContextFull) as error:
        raise ConfigError(str(error)) from error
    except NonFiniteError as error:
        raise NumericsError(str(error)) from error
    except (MemberDied, PoolEmpty, WeightSyncError, CheckpointError) as error:
        raise IsentropeError(str(error)) from error
    finally:
        sink.close(status)
        if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size:
            write_report([folder], folder / "report.html")


async def _train(job: Job, cluster: Cluster, sink: FanOut, codecs: Codecs, stop: StopSignal) -> None:
    """Builds the run's own parts around the cluster and trains."""
    from envs import catalog
    from orchestration.run.loop import Run
    from orchestration.run.state import RunState
    from orchestration.sampling.producer import SynchronousProducer
    from orchestration.sampling.reward_function import make_judge, make_reward_function
    from orchestration.sampling.rollouts import Rollouts

    config = job.config
    environments = [catalog.load(e.name, e.params, seed=config.run.seed) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), config.run.seed, config.batch.adaptive)
    state = RunState.fresh(config, curriculum)
    if job.state is not None:
        state.load_state_dict(job.state)
    resumed_at = None if job.state is None else state.iteration
    sink.start(RunInfo(config.run.name, config.folder, config.iterations, resumed_at, config.model_dump(mode="json")))
    judge = make_judge(config, codecs.judge, lambda requests: cluster.judges.generate(requests))
    try:
        await cluster.begin(config, _start(job, state))
        reward = make_reward_function(
            config,
            environments,
            verify=cluster.verifiers.score,
            model=cluster.reward_models.score,
            judge=None if judge is None else judge.score,
            on_event=sink.event,
        )
        rollouts = Rollouts(config, cluster.generators, cluster.verifiers, codecs.policy, sink.progress, reward)
        producer = SynchronousProducer(config, curriculum, rollouts)
        await Run(config, cluster, producer, rollouts, state, job.checkpoints, sink, stop).train()
    finally:
        if judge is not None:
            await judge.close()


def _start(job: Job, state: RunState) -> Start:
    """Returns what the learner and the generators begin with: the model of the recipe, or a checkpoint."""
    from orchestration.cluster.actor_settings import Start

    model = local(job.config.model.path)
    if job.checkpoint is None:
        return Start(model)
    folder = job.checkpoint.resolve()
    stage = state.curriculum.index
    return Start(str(folder / "hf"), state.policy_version, folder / "engine", state.learner, stage, model)


@contextlib.contextmanager
def connected(config: RunConfig, copies: int = 1) -> Iterator[None]:
    """Joins a Ray cluster with room for `copies` such runs; shuts down at the end what it started itself."""
    import ray

    from orchestration.cluster.cluster import connect

    joined = not ray.is_initialized()  # several runs in one process share a cluster
    try:
        connect(config, copies) if joined else None
        yield
    finally:
        if joined:
            ray.shutdown()
