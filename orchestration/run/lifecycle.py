"""A run from its configuration to its exit: folder, sinks, cluster, loop, report, and all of it taken down again.

`train` is one run on a cluster of its own, `in_turn` several on the same one; `conduct` is a run on a cluster that somebody holds,
as the laboratory's lanes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from learner.checkpoint import CheckpointError, Checkpoints, read_state, write_whole
from learner.settings import BODY
from orchestration.cluster import placement
from orchestration.config import preflight as world
from orchestration.config.loader import local, with_present_names
from orchestration.config.reward_sections import RewardsSection
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError, IsentropeError, NumericsError, Stopped
from orchestration.report.run_report import write_report
from orchestration.sampling.curriculum import Curriculum, stages_of
from orchestration.telemetry.sinks.base import FanOut, RunInfo
from orchestration.telemetry.sinks.build import build_sinks

if TYPE_CHECKING:
    from orchestration.cluster.cluster import Cluster
    from orchestration.run.loop import StopSignal
    from orchestration.sampling.codec import Codecs

# What a resumed run may not change: the optimiser's state is laid out by it, or the statistics would be of two runs.
FIXED_ON_RESUME = (
    "learner.ranks",
    "learner.zero_stage",
    "precision.mode",
    "learner.precision",
    "run.seed",
    "batch.prompts",
    "batch.responses",
    "batch.adaptive",
    "learner.betas",
    "learner.eps",
    "learner.weight_decay",
    "model.path",
    "entropy.method",
    "entropy.controller",
)


def describe_plan(config: RunConfig) -> str:
    """The resolved configuration and what it asks of a cluster, for --dry-run."""
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
    """A run that may begin: its configuration was checked against disk and checkpoints."""

    config: RunConfig
    state: dict[str, Any] | None = None  # state.json of the checkpoint it goes on from
    checkpoint: Path | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.config.folder / "checkpoints", self.config.checkpoint.keep)


def prepare(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> Job:
    """Raises ConfigError; writes nothing."""
    world.check_world(config)
    job = Job(config)
    if resume:
        return Job(config, *_resume_state(config, job.checkpoints))
    if not overwrite and ((config.folder / "metrics.jsonl").exists() or job.checkpoints.latest()):
        raise ConfigError(
            f"{config.folder} holds a run already: choose another run.name, continue it with --resume, or give --overwrite"
        )
    return job


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Returns report.html. Raises IsentropeError; its exit_code is the command's."""
    in_turn([prepare(config, resume=resume, overwrite=overwrite)])
    return config.folder / "report.html"


def in_turn(jobs: Sequence[Job], announce: Callable[[Job], None] = lambda job: None) -> None:
    """Runs of one `layout_key`, one after the other on the same actors. Raises IsentropeError at the first that fails."""
    from orchestration.sampling.codec import load_codecs

    first = jobs[0].config
    codecs = load_codecs(first)

    async def runs() -> None:
        from orchestration.cluster.cluster import Cluster
        from orchestration.run.loop import StopSignal

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


@contextlib.contextmanager
def signals(stop: StopSignal, say: Callable[[str], None]) -> Iterator[None]:
    """Within an event loop: SIGINT and SIGTERM ask for a stop after a checkpoint; the second one does not wait for it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal(number: int) -> None:
        if stop.number is not None and task is not None:
            task.cancel()
        else:
            say("stopping: the last whole iteration is checkpointed first; once more to stop at once")
            stop.set(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def conduct(job: Job, cluster: Cluster, codecs: Codecs, stop: StopSignal, sinks: Sequence[str]) -> None:
    """The run on `cluster`, from its folder to its report. Raises IsentropeError."""
    from actors.pool import MemberDied, PoolEmpty  # Ray, torch and transformers from here on
    from actors.rollout import ContextFull
    from learner.deepspeed_engine import UnsupportedPrecision
    from learner.learner import NonFiniteError
    from learner.weights.protocol import WeightSyncError

    config, folder = job.config, job.config.folder
    if job.state is None and (folder / "checkpoints").exists():
        _clear(folder / "checkpoints")
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
    from envs import catalog
    from orchestration.cluster.actor_settings import Start
    from orchestration.run.loop import Run
    from orchestration.sampling import reward_function as rewards
    from orchestration.sampling.rollouts import Rollouts

    config = job.config
    environments = [catalog.load(e.name, e.params, seed=config.run.seed) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), config.run.seed, config.batch.adaptive)
    model = local(config.model.path)
    start, iteration = Start(model), 0
    owes_evaluation = bool(config.evaluation.prompts) and config.evaluation.start
    if job.state is not None and job.checkpoint is not None:
        whole, state = job.checkpoint.resolve(), job.state
        iteration = int(state["iteration"])
        curriculum.load_state_dict(state["curriculum"])
        owes_evaluation = bool(state["owes_evaluation"])
        engine, learner = whole / "engine", state["learner"]
        start = Start(str(whole / "hf"), int(state["policy_version"]), engine, learner, curriculum.index, model)
    sink.start(
        RunInfo(
            config.run.name,
            config.folder,
            config.iterations,
            iteration if job.state else None,
            config.model_dump(mode="json"),
        )
    )
    judge = rewards.make_judge(config, codecs.judge, lambda requests: cluster.judges.generate(requests))
    try:
        await cluster.begin(config, start)
        composite = rewards.compose(
            config,
            environments,
            verify=cluster.verifiers.score,
            model=cluster.reward_models.score,
            judge=None if judge is None else judge.score,
            on_event=sink.event,
        )
        rollouts = Rollouts(config, cluster.generators, cluster.verifiers, codecs.policy, sink.stage, composite)
        run = Run(config, cluster, rollouts, curriculum, job.checkpoints, sink, stop, iteration, owes_evaluation)
        if job.state is not None and "alarms" in job.state:  # older checkpoints have none: what they saw is forgotten
            run.alarms.load_state_dict(job.state["alarms"])
        if job.state is not None and "drift" in job.state:
            run.drift.load_state_dict(job.state["drift"])
        await run.train()
    finally:
        if judge is not None:
            await judge.close()


@contextlib.contextmanager
def connected(config: RunConfig, copies: int = 1) -> Iterator[None]:
    """On a Ray cluster with room for `copies` such runs; one of our own is shut down at the end."""
    import ray

    from orchestration.cluster.cluster import connect

    mine = not ray.is_initialized()  # several runs in one process share a cluster
    try:
        connect(config, copies) if mine else None
        yield
    finally:
        if mine:
            ray.shutdown()


def _resume_state(config: RunConfig, checkpoints: Checkpoints) -> tuple[dict[str, Any], Path]:
    """The latest checkpoint and its state, after checking that this configuration can go on from it."""
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        raise ConfigError(f"nothing to resume: {checkpoints.folder} holds no whole checkpoint")
    try:
        state = read_state(checkpoint)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    if "curriculum" not in state:
        raise ConfigError(f"{checkpoint} was written before there were stages: this version cannot go on from it")
    more = "raise run.iterations" if not config.stages else "give the last stage more iterations, or add a stage"
    at = state["curriculum"]
    if _over(config, state):
        raise ConfigError(
            f"nothing to do: {checkpoint} is at iteration {state['iteration']} of {config.iterations}: {more}"
        )
    given, now_given = len(at["given"][0]), len(config.all_environments)
    if given > now_given or (given != now_given and not config.stages):
        raise ConfigError(
            f"the run had {given} environments and now has {now_given}: a resumed run cannot change their number"
        )
    try:
        before = with_present_names(yaml.safe_load((config.folder / "config.yaml").read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"the run's own configuration cannot be read, so it cannot be resumed: {error}") from None
    now = json.loads(config.model_dump_json())
    for data in (before, now):
        _resolve_precision(data)
    _same_stages(before.get("stages", []), now["stages"], at["stage"])
    for key in FIXED_ON_RESUME:
        section, name = key.split(".")
        was, is_now = before[section].get(name), now[section][name]  # a run may be older than the key
        if was != is_now:
            raise ConfigError(f"{key} was {was} and is now {is_now}: a resumed run cannot change it")
    # The checkpoint's own: a run that was resumed with another reward and killed before it wrote one has left its configuration.
    if _paid(state.get("rewards") or before.get("rewards") or {}) != now["rewards"]:
        state.pop("drift", None)  # the start of another reward is nothing to compare with
    return state, checkpoint


def _paid(rewards: dict[str, Any]) -> dict[str, Any]:
    """A run's rewards with the keys that came after it; as they are where this version would refuse them."""
    try:
        return json.loads(RewardsSection.model_validate(rewards).model_dump_json())
    except ValidationError:
        return rewards


def _over(config: RunConfig, state: dict[str, Any]) -> bool:
    at, stages = state["curriculum"], stages_of(config)
    last_ended = at["stage"] + 1 == len(stages) and stages[-1].over(at["iteration"], at["rewards"])
    return last_ended or state["iteration"] >= config.iterations


def is_finished(config: RunConfig) -> bool:
    """Whether the latest checkpoint of the run's folder is its end."""
    latest = Job(config).checkpoints.latest()
    try:
        return latest is not None and _over(config, read_state(latest))
    except CheckpointError:
        return False  # `prepare` says what is wrong with it


def _same_stages(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]], current: int) -> None:
    """Stages that were begun stay as they are, but for the end of the present one; those to come may be other ones."""
    if bool(before) != bool(now) or len(now) <= min(current, len(before) - 1):
        raise ConfigError(
            f"the run was in stage {current} of {len(before) or 1} and now has {len(now) or 1}: a resumed run keeps its stages "
            "and may add to them"
        )
    for index in range(min(current + 1, len(before))):
        for key in ("name", "environments", *(("iterations", "advance") if index < current else ()), "overrides"):
            if before[index][key] != now[index][key]:
                raise ConfigError(
                    f"stages.{index}.{key} was {before[index][key]} and is now {now[index][key]}: the stage has begun, a resumed "
                    "run cannot change it"
                )


def _resolve_precision(data: dict[str, Any]) -> None:
    """learner.precision as it was used: left out, it follows the switch. A run older than the switch had it alone."""
    learner = data["learner"]
    switch = data.setdefault("precision", {"mode": learner["precision"]})
    learner["precision"] = learner["precision"] or BODY[switch["mode"]]


def _clear(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
