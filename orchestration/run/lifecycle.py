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
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.checkpoint import CheckpointError, Checkpoints
from orchestration.config import preflight
from orchestration.config.loader import local
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError, IsentropeError, NumericsError, Stopped
from orchestration.report.run_report import write_report
from orchestration.run.beside import beside
from orchestration.run.folder import held, write_config
from orchestration.run.plan import check_memory
from orchestration.run.resume import checkpoints_of, resume_from
from orchestration.run.stop import StopSignal, signals
from orchestration.run.tracing import FILE, tracing
from orchestration.sampling.curriculum import Curriculum, stages_of
from orchestration.telemetry.sinks.base import FanOut, RunInfo
from orchestration.telemetry.sinks.build import build_sinks
from orchestration.text import one_line

if TYPE_CHECKING:
    from orchestration.cluster.actor_settings import Start
    from orchestration.cluster.cluster import Cluster
    from orchestration.cluster.session import Session
    from orchestration.run.state import RunState
    from orchestration.sampling.codec import Codecs

LOST_S = 60.0  # for a run whose Ray is gone to save what it can


@dataclass(frozen=True, slots=True)
class Job:
    """Holds a run that may begin: its configuration was checked against disk and checkpoints."""

    config: RunConfig
    state: dict[str, Any] | None = None  # state.json of the checkpoint it goes on from
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()  # of a resume, for a person
    overwrite: bool = False  # whether what an earlier run of this name left is removed

    @property
    def checkpoints(self) -> Checkpoints:
        """Returns the checkpoints of the run."""
        return checkpoints_of(self.config)

    def from_latest(self) -> Job:
        """Returns the job as it goes on from its latest whole checkpoint; from its start where there is none yet."""
        found = resume_from(self.config, self.checkpoints)
        if found is None:
            return Job(self.config)
        self.checkpoints.point_at(found.checkpoint)
        return Job(self.config, found.state, found.checkpoint, found.notes)


def prepare(config: RunConfig, *, resume: bool = False, overwrite: bool = False, step: int | None = None) -> Job:
    """Checks that the run may begin; writes nothing. Raises ConfigError, and PlacementError where it cannot fit into memory.

    resume: go on from the checkpoint of iteration `step`, else from the latest whole one, else from nothing.
    """
    preflight.run_preflight(config)
    check_memory(config)
    job = Job(config)
    if resume:
        found = resume_from(config, job.checkpoints, step)
        return job if found is None else Job(config, found.state, found.checkpoint, found.notes)
    if not overwrite and ((config.folder / "metrics.jsonl").exists() or job.checkpoints.latest()):
        raise ConfigError(
            f"{config.folder} holds a run already: choose another run.name, continue it with --resume, or give --overwrite"
        )
    return replace(job, overwrite=overwrite)


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    step: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Runs a configuration and returns its report.html. Raises IsentropeError; its exit_code is the command's.

    say: takes the notes of a resume, before anything is started.
    """
    with held(config.folder) if config.folder.exists() else contextlib.nullcontext():
        job = prepare(config, resume=resume, overwrite=overwrite, step=step)
        for note in job.notes:
            say(note)
        in_turn([job])
    return config.folder / "report.html"


def in_turn(jobs: Sequence[Job], announce: Callable[[Job], None] = lambda job: None) -> None:
    """Runs jobs of one `layout_key`, one after the other on the same actors. Raises IsentropeError at the first that fails."""
    from orchestration.cluster.session import connected
    from orchestration.sampling.codec import load_codecs

    first = jobs[0].config
    codecs = load_codecs(first)

    async def runs(session: Session) -> None:
        from orchestration.cluster.cluster import Cluster

        stop, cluster = StopSignal(), Cluster(first, lambda text: None)
        try:
            async with watched(session, stop):
                with signals(stop, lambda text: cluster.on_event(text)):
                    for job in jobs:
                        announce(job)
                        await conduct(job, cluster, codecs, stop, job.config.run.sinks)
        finally:
            await cluster.close()

    with connected(first, say=_say) as session:
        asyncio.run(runs(session))


@contextlib.asynccontextmanager
async def watched(session: Session, stop: StopSignal) -> AsyncGenerator[None]:
    """Ends the run of this task when Ray's own processes are gone: after a checkpoint where actors still answer, LOST_S at most."""
    from orchestration.cluster.session import SessionLost

    task, later = asyncio.current_task(), list[asyncio.TimerHandle]()

    def on_lost(reason: str) -> None:
        stop.fail(
            SessionLost(
                f"{reason}: no actor can be reached any more; go on with `isentrope resume` of the run's folder"
            )
        )
        if task is not None:
            later.append(asyncio.get_running_loop().call_later(LOST_S, task.cancel))

    watching = asyncio.create_task(session.watch(on_lost))
    try:
        yield
    finally:
        watching.cancel()
        for handle in later:
            handle.cancel()
        await asyncio.wait({watching})


def _say(text: str) -> None:
    """Tells how the start goes before the run has its sinks."""
    print(text, flush=True)  # noqa: T201 - the command's own output


async def conduct(job: Job, cluster: Cluster, codecs: Codecs, stop: StopSignal, sinks: Sequence[str]) -> None:
    """Runs a job on `cluster`, from its folder, which it locks, to its report. Raises IsentropeError."""
    with held(job.config.folder):
        await _conduct(job, cluster, codecs, stop, sinks)


async def _conduct(job: Job, cluster: Cluster, codecs: Codecs, stop: StopSignal, sinks: Sequence[str]) -> None:
    from actors.health.lifeline import MemberDied  # Ray, torch and transformers from here on
    from actors.inference import PoolEmpty
    from actors.rollout import ContextFull
    from learner.types import NonFiniteError, UnsupportedModel, UnsupportedPrecision
    from learner.weights.protocol import WeightSyncError

    config, folder = job.config, job.config.folder
    if job.checkpoint is not None:
        job.checkpoints.point_at(job.checkpoint)
    else:
        _clear(job)
    write_config(config)  # last: what is left of an earlier run never stands beside the new configuration
    sink = build_sinks(sinks, folder, sys.stdout.isatty())
    cluster.on_event, cluster.on_progress = sink.event, sink.progress
    status = "failed"
    try:
        async with beside(config, cluster, sink, stop), _traced(config, cluster, sink):
            await _train_through(job, cluster, sink, codecs, stop)
        status = "finished"
    except Stopped:
        status = "stopped"
        raise
    except asyncio.CancelledError:
        status = "stopped" if stop.error is None else "failed"
        raise stop.error or Stopped(stop.number or signal.SIGINT) from None
    except (UnsupportedPrecision, UnsupportedModel, ContextFull) as error:
        raise ConfigError(str(error)) from error
    except NonFiniteError as error:
        raise NumericsError(str(error)) from error
    except (MemberDied, PoolEmpty, WeightSyncError, CheckpointError) as error:
        raise IsentropeError(str(error)) from error
    finally:
        _end(sink, status, folder)


def _traced(config: RunConfig, cluster: Cluster, sink: FanOut) -> contextlib.AbstractAsyncContextManager[None]:
    """Returns the context in which the run's trace is written, if it is to have one."""
    if not config.run.trace:
        return contextlib.nullcontext()
    return tracing(config.folder, cluster.members.answering, sink.event)


def _clear(job: Job) -> None:
    """Removes the checkpoints of an earlier run. Raises ConfigError where another process made some since the job was prepared."""
    if not job.overwrite and job.checkpoints.latest() is not None:
        raise ConfigError(
            f"{job.config.folder} has got checkpoints meanwhile, of another process: start anew to go on from them"
        )
    (job.config.folder / FILE).unlink(missing_ok=True)
    folder, going = job.checkpoints.folder, job.config.folder / "checkpoints.removed"
    shutil.rmtree(going, ignore_errors=True)
    if folder.exists():
        folder.rename(going)  # at once: what is killed here leaves no checkpoint that a resume would take
        shutil.rmtree(going, ignore_errors=True)


def _end(sink: FanOut, status: str, folder: Path) -> None:
    """Closes the sinks and writes the report. What fails here is raised after a finished run alone: else it would hide why."""
    try:
        sink.close(status)
        if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size:
            write_report([folder], folder / "report.html")
    except (IsentropeError, OSError, ValueError) as error:
        if status == "finished":
            raise IsentropeError(
                f"the run is finished, and its report could not be written: {one_line(error)}"
            ) from None


async def _train_through(job: Job, cluster: Cluster, sink: FanOut, codecs: Codecs, stop: StopSignal) -> None:
    """Trains; where the learner group loses a rank, goes on from the last checkpoint with a new group, a bounded number of times.

    The generators and verifiers stay. It is what a resumed run does, in the same process: the same numbers come again.
    """
    from actors.health.lifeline import LearnerDied

    most = job.config.learner.restarts
    for left in reversed(range(most + 1)):
        try:
            await _train(job, cluster, sink, codecs, stop)
            return
        except LearnerDied as death:
            if stop.error is not None:
                raise stop.error from death
            if not left:
                times = f"{most} times before (learner.restarts)" if most else "never (learner.restarts = 0)"
                raise IsentropeError(f"{death}; the learner group was built anew {times}, and the run ends") from death
            job = await asyncio.to_thread(job.from_latest)
            for note in job.notes:
                sink.event(note)
            where = "the start" if job.checkpoint is None else job.checkpoint.name
            sink.event(
                f"{death}; the learner group is built anew and the run goes on from {where}, {left - 1} more times at most"
            )


async def _train(job: Job, cluster: Cluster, sink: FanOut, codecs: Codecs, stop: StopSignal) -> None:
    """Builds the run's own parts around the cluster and trains."""
    from envs import catalog
    from orchestration.run.loop import Run
    from orchestration.run.state import RunState
    from orchestration.sampling.asynchronous import AsynchronousProducer
    from orchestration.sampling.producer import SynchronousProducer
    from orchestration.sampling.reward_function import make_judge, make_reward_function
    from orchestration.sampling.rollouts import Rollouts

    config = job.config
    environments = [catalog.load(e.name, e.params, seed=config.run.seed) for e in config.all_environments]
    limits = [e.train_prompts for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), config.run.seed, config.batch.adaptive, limits)
    state = RunState.fresh(config, curriculum)
    if job.state is not None and job.checkpoint is not None:
        await asyncio.to_thread(state.load_state_dict, job.state, job.checkpoint)
    resumed_at = None if job.state is None else state.iteration
    sink.start(RunInfo(config.run.name, config.folder, config.iterations, resumed_at, config.model_dump(mode="json")))
    for note in job.notes:
        sink.event(note)
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
        if state.pending is None:
            producer = SynchronousProducer(config, curriculum, rollouts)
        else:
            producer = AsynchronousProducer(config, curriculum, rollouts, state.pending, sink.progress)
        try:
            await Run(config, cluster, producer, rollouts, state, job.checkpoints, sink, stop).train()
        finally:
            await producer.close()
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
    stage, saved = state.curriculum.index, str(folder / "hf")
    if (
        job.config.learner.lora is not None
    ):  # the checkpoint has the adapter alone, and engines begin with the base model
        return Start(model, state.policy_version, folder / "engine", state.learner, stage, model, adapter=saved)
    return Start(saved, state.policy_version, folder / "engine", state.learner, stage, model)
