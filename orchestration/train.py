"""A run from its configuration to its exit: folder, sinks, cluster, loop, report, and all of it taken down again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from learner.checkpoint import CheckpointError, Checkpoints, read_state, write_whole
from orchestration import config as configuration
from orchestration import placement
from orchestration.config import RunConfig
from orchestration.curriculum import Mixture
from orchestration.errors import ConfigError, IsentropeError, NumericsError, Stopped
from orchestration.report import write_report
from orchestration.sinks import FanOut, RunInfo, build_sinks

if TYPE_CHECKING:
    from orchestration.rollouts import HFCodec

# What a resumed run may not change: the optimiser's state is laid out by it, or the statistics would be of two runs.
FIXED_ON_RESUME = (
    "learner.ranks",
    "learner.zero_stage",
    "precision.mode",
    "learner.precision",
    "run.seed",
    "batch.prompts",
    "batch.replies",
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


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Returns report.html. Raises IsentropeError; its exit_code is the command's."""
    configuration.check_world(config)
    folder = config.folder
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep)
    state, checkpoint = _resume_state(config, checkpoints) if resume else (None, None)
    if not resume and not overwrite and ((folder / "metrics.jsonl").exists() or checkpoints.latest()):
        raise ConfigError(
            f"{folder} holds a run already: choose another run.name, continue it with --resume, or give --overwrite"
        )

    from actors.pool import MemberDied, PoolEmpty  # Ray, torch and transformers from here on
    from actors.rollout import ContextFull
    from learner.deepspeed_engine import UnsupportedPrecision
    from learner.learner import NonFiniteError
    from learner.weights import WeightSyncError
    from orchestration.rollouts import HFCodec

    try:
        codec = HFCodec(_absolute(config.model.path), config.model.chat_template)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the tokenizer of model.path {config.model.path} cannot be used: {reason}") from None
    with _ray(config):
        if not resume and (folder / "checkpoints").exists():
            _clear(folder / "checkpoints")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "config.yaml", config.to_yaml())
        except OSError as error:
            raise ConfigError(f"run.dir {config.run.dir} cannot be written: {error}") from None
        sink = build_sinks(config.run.sinks, folder, sys.stdout.isatty())
        status = "failed"
        try:
            asyncio.run(_train(config, checkpoints, state, checkpoint, sink, codec))
            status = "finished"
        except Stopped:
            status = "stopped"
            raise
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
    return folder / "report.html"


async def _train(
    config: RunConfig,
    checkpoints: Checkpoints,
    state: dict[str, Any] | None,
    checkpoint: Path | None,
    sink: FanOut,
    codec: HFCodec,
) -> None:
    from envs import catalog
    from orchestration.launch import Cluster, Start
    from orchestration.loop import Run, StopSignal
    from orchestration.rollouts import Rollouts

    stop = StopSignal()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal(number: int) -> None:
        if stop.number is not None and task is not None:
            task.cancel()  # the second one does not wait for a checkpoint
        else:
            sink.event("stopping: the last whole iteration is checkpointed first; once more to stop at once")
            stop.set(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)

    environments = [catalog.load(e.name, e.params, seed=config.run.seed) for e in config.environments]
    mixture = Mixture(environments, [e.weight for e in config.environments], config.run.seed)
    model = _absolute(config.model.path)
    start, iteration = Start(model), 0
    if state is not None and checkpoint is not None:
        whole = checkpoint.resolve()
        iteration = int(state["iteration"])
        mixture.load_state_dict(state["mixture"])
        start = Start(str(whole / "hf"), int(state["policy_version"]), whole / "engine", state["learner"], model)
    sink.start(
        RunInfo(
            config.run.name,
            config.folder,
            config.run.iterations,
            iteration if state else None,
            config.model_dump(mode="json"),
        )
    )
    cluster = Cluster(config, sink.event)
    try:
        await cluster.start(start)
        rollouts = Rollouts(config, cluster.generators, cluster.verifiers, codec, sink.stage)
        await Run(config, cluster, rollouts, mixture, checkpoints, sink, stop, iteration).train()
    except asyncio.CancelledError:
        raise Stopped(stop.number or signal.SIGINT) from None
    finally:
        await cluster.close()


@contextlib.contextmanager
def _ray(config: RunConfig) -> Iterator[None]:
    import ray

    from orchestration.launch import connect

    mine = not ray.is_initialized()  # several runs in one process share a cluster
    try:
        connect(config) if mine else None
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
    if state["iteration"] >= config.run.iterations:
        raise ConfigError(
            f"nothing to do: {checkpoint} is at iteration {state['iteration']} of {config.run.iterations}: raise run.iterations"
        )
    given = len(state["mixture"]["given"])
    if given != len(config.environments):
        raise ConfigError(
            f"the run had {given} environments and now has {len(config.environments)}: a resumed run cannot change their number"
        )
    try:
        before = yaml.safe_load((config.folder / "config.yaml").read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"the run's own configuration cannot be read, so it cannot be resumed: {error}") from None
    now = json.loads(config.model_dump_json())
    for data in (before, now):
        _resolve_precision(data)
    for key in FIXED_ON_RESUME:
        section, name = key.split(".")
        if before[section][name] != now[section][name]:
            raise ConfigError(
                f"{key} was {before[section][name]} and is now {now[section][name]}: a resumed run cannot change it"
            )
    return state, checkpoint


def _resolve_precision(data: dict[str, Any]) -> None:
    """learner.precision as it was used: left out, it follows the switch. A run older than the switch had it alone."""
    learner = data["learner"]
    switch = data.setdefault("precision", {"mode": learner["precision"]})
    learner["precision"] = learner["precision"] or configuration.BODY[switch["mode"]]


def _absolute(path: str) -> str:
    """A local folder is named in full: actors have working directories of their own. A hub id stays as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _clear(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
