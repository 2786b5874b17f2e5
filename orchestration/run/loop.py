"""The data flow of a run, in one sitting: prompts -> groups -> batch -> updates -> broadcast, again and again.

Each stage consumes what the one before returned. All waiting is in the stages; nothing here knows of Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from envs.types import Group, Trajectory
from learner.advantages import ADVANTAGES
from learner.batching import build_batches, trajectory_advantages, turn_advantages
from learner.checkpoint import Checkpoints
from orchestration.config.run_config import RunConfig
from orchestration.errors import Stopped
from orchestration.run.buffer import Buffer
from orchestration.sampling.curriculum import Curriculum
from orchestration.sampling.dynamic_sampling import sample
from orchestration.sampling.evaluation import evaluate
from orchestration.sampling.rollouts import Rollouts
from orchestration.telemetry.alarms import Alarms
from orchestration.telemetry.reward_hacking import RewardHackingMonitor
from orchestration.telemetry.rollout_metrics import describe, samples
from orchestration.telemetry.sinks.base import FanOut

if TYPE_CHECKING:
    from orchestration.cluster.cluster import Cluster

T = TypeVar("T")


class StopSignal:
    """Set by a signal handler. The loop looks at it between stages and while it waits for responses."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._event = asyncio.Event()

    def set(self, number: int) -> None:
        self.number = number
        self._event.set()

    async def interrupts(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`, or None when the signal came first; the work is then cancelled."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._event.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        return None


@dataclass
class Run:
    """What the loop works with; `iteration` is the last one done. owes_evaluation: of that iteration, or of the policy before
    training."""

    config: RunConfig
    cluster: Cluster
    rollouts: Rollouts
    curriculum: Curriculum
    checkpoints: Checkpoints
    sink: FanOut
    stop: StopSignal
    iteration: int = 0
    owes_evaluation: bool = False
    drift: RewardHackingMonitor = field(default_factory=RewardHackingMonitor)
    alarms: Alarms = field(init=False)

    def __post_init__(self) -> None:
        self.alarms = Alarms(self.config.entropy.kind)

    async def train(self) -> None:
        """Until the last stage ends or the run's iterations are used up, or Stopped after a checkpoint."""
        config, curriculum = self.config, self.curriculum
        stage = config.at_stage(curriculum.index)
        buffer = Buffer(capacity=config.batch.prompts, max_staleness=0)
        probe = [p for _, p in curriculum.held_out("eval", 1) or curriculum.held_out("train", 1)]
        await self.cluster.probe([self.rollouts.render(p) for p in probe])
        if self.owes_evaluation:
            before = await self.stop.interrupts(self._evaluate())
            if before is None:
                await self._stopped()
            self.owes_evaluation = False
            where = {"iteration": float(self.iteration), "policy_version": float(self.cluster.version)}
            row = where | self._place() | before
            await self._report(row | self.drift.look(row))
        while self.iteration < config.iterations and not curriculum.finished:
            # The checkpoint before it is of the stage that ended, so that a resumed run comes here too.
            if curriculum.stage_ended:
                stage = await self._begin_stage()
            began, progress = time.perf_counter(), curriculum.state_dict()
            iteration = self.iteration + 1

            collect = partial(
                self.rollouts.collect,
                sampling=stage.sampling,
                responses=config.batch.responses,
                temperature=stage.sampling.temperature,
                stamp=f"iteration {iteration}",
            )
            sampled = await self.stop.interrupts(sample(config.batch, curriculum.next, collect))
            if sampled is None:  # the iteration never was: its prompts are drawn again after a resume
                curriculum.load_state_dict(progress)
                await self._stopped()
            seconds = sampled.seconds
            for group in sampled.trained:
                await buffer.put(group)
            groups = await buffer.take(len(sampled.trained), self.cluster.version)

            trajectories = [t for g in sampled.groups for t in g.trajectories]
            row, seconds["train"] = await timed(self._update(stage, groups, sampled.measured))
            manifest, seconds["sync"] = await timed(self._sync())
            gap = await self.cluster.probe([t.token_ids for t in trajectories[: config.weights.probe_responses]])
            self.iteration = iteration
            total = time.perf_counter() - began

            tokens = sum(t.response_tokens for t in trajectories)
            row |= describe(sampled.groups, trajectories) | gap | {f"time/{k}": v for k, v in seconds.items()}
            if config.batch.dynamic.kind != "none":
                row |= sampled.metrics()
                if not groups:
                    self.sink.event(f"iteration {iteration}: {sampled.nothing_left()}")
            row |= curriculum.observe(row["reward/mean"], list(zip(sampled.environments, sampled.groups, strict=True)))
            row |= self._place()
            milestone = curriculum.stage_ended or iteration == config.iterations
            row |= {
                "iteration": float(iteration),
                "policy_version": float(self.cluster.version),
                "time/iteration": total,
                "time/unix": time.time(),
                "sync/bytes": float(sum(t.nbytes for t in manifest.tensors)),
                "tokens/generated": float(tokens),
                "tokens/per_second": tokens / total,
            }
            if config.evaluation.prompts and (milestone or due(iteration, config.evaluation.every)):
                evals, row["time/eval"] = await timed(self.stop.interrupts(self._evaluate()))
                row |= evals or {}
                self.owes_evaluation = evals is None
            row |= self.drift.look(row)
            for alarm in self.alarms.look(row):
                self.sink.event(alarm)
            self.sink.sample(samples(iteration, trajectories, config.run.samples_per_iteration))
            await self._report(row)
            if self.stop.number is not None:
                await self._stopped()
            if milestone or due(iteration, config.checkpoint.every):
                await self._checkpoint()

    async def _begin_stage(self) -> RunConfig:
        """The next stage, on every rank; returns the run's configuration in it."""
        curriculum = self.curriculum
        curriculum.advance()
        await self.cluster.begin_stage(curriculum.index)
        self.sink.event(f"stage {curriculum.index + 1} of {len(curriculum.stages)} begins: {curriculum.stage.name}")
        return self.config.at_stage(curriculum.index)

    def _place(self) -> dict[str, float]:
        """Where in its stages a run with any stands."""
        c = self.curriculum
        return {"stage/index": float(c.index), "stage/iteration": float(c.iteration)} if self.config.stages else {}

    async def _update(
        self, config: RunConfig, groups: Sequence[Group], measured: Sequence[Trajectory]
    ) -> dict[str, float]:
        """Batch, then all optimiser steps of the iteration, on every rank. config: in the present stage; measured: responses that
        are not trained on."""
        self.sink.stage("train", 0, 1)
        kind, credit = ADVANTAGES[config.objective.advantage], config.objective.credit
        by_turn = credit.kind == "turn"
        advantages = (
            turn_advantages(groups, kind, credit.discount, config.rewards.verdict)
            if by_turn
            else trajectory_advantages(groups, kind)
        )
        batches = build_batches(
            [t for g in groups for t in g.trajectories],
            advantages,
            plan=config.learner,
            aggregation=config.objective.aggregation,
            temperature=config.sampling.temperature,
            length_scale=config.sampling.max_tokens,
            measured=measured,
            full_batch=config.batch.prompts * config.batch.responses,
        )
        metrics = await self.cluster.learner.train(batches)
        self.sink.stage("train", 1, 1)
        return metrics

    async def _sync(self) -> Any:
        self.sink.stage("sync", 0, 1)
        manifest = await self.cluster.sync(self.cluster.version + 1)
        self.sink.stage("sync", 1, 1)
        return manifest

    async def _evaluate(self) -> dict[str, float]:
        """Every environment of every stage, under the run's own sampling, so that evaluations differ by the policy alone."""
        held_out = self.curriculum.held_out("eval", self.config.evaluation.prompts)
        return await evaluate(self.config.evaluation, self.config.sampling, held_out, self.rollouts, self.sink.stage)

    async def _report(self, row: dict[str, float]) -> None:
        self.sink.iteration(row)
        await asyncio.sleep(0)  # let the live view's signals in

    async def _checkpoint(self) -> None:
        self.sink.stage("checkpoint", 0, 1)
        with self.checkpoints.writing(self.iteration) as draft:
            folder = draft.resolve()
            await self.cluster.learner.save(folder / "hf", folder / "engine")
            self.rollouts.save_tokenizer(folder / "hf")
            state = {
                "iteration": self.iteration,
                "policy_version": self.cluster.version,
                "curriculum": self.curriculum.state_dict(),
                "owes_evaluation": self.owes_evaluation,
                "rewards": self.config.rewards.model_dump(mode="json"),  # what the drift is of
                "drift": self.drift.state_dict(),
                "alarms": self.alarms.state_dict(),
                "learner": await self.cluster.learner.state_dict(),
            }
            self.checkpoints.commit(draft, state)
        self.sink.stage("checkpoint", 1, 1)

    async def _stopped(self) -> NoReturn:
        """A checkpoint of the last whole iteration, then the end."""
        if self.iteration:
            await self._checkpoint()
        raise Stopped(self.stop.number or 2)


def due(iteration: int, every: int) -> bool:
    """every: 0 for never."""
    return bool(every) and iteration % every == 0


async def timed(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    began = time.perf_counter()
    return await work, time.perf_counter() - began
