"""The data flow of a run, in one sitting: prompts -> groups -> batch -> updates -> broadcast, again and again.

Each stage consumes what the one before returned. All waiting is in the stages; nothing here knows of Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from envs.types import Group, Status, Trajectory
from learner.advantages import ADVANTAGES
from learner.batching import Cut, build_batches, no_signal, trajectory_advantages
from learner.checkpoint import Checkpoints
from orchestration.alarms import Alarms
from orchestration.buffer import Buffer
from orchestration.config import RunConfig
from orchestration.curriculum import Mixture
from orchestration.errors import Stopped
from orchestration.evaluation import by_env, distinct, evaluate
from orchestration.launch import Cluster
from orchestration.rollouts import Rollouts
from orchestration.sinks import FanOut, Sample

T = TypeVar("T")


class StopSignal:
    """Set by a signal handler. The loop looks at it between stages and while it waits for replies."""

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
    """What the loop works with; `iteration` is the last one done."""

    config: RunConfig
    cluster: Cluster
    rollouts: Rollouts
    mixture: Mixture
    checkpoints: Checkpoints
    sink: FanOut
    stop: StopSignal
    iteration: int = 0

    async def train(self) -> None:
        """Until run.iterations, or Stopped after a checkpoint."""
        config, every = self.config, self.config.evaluation.every
        last = config.run.iterations
        buffer, alarms = Buffer(capacity=config.batch.prompts, max_staleness=0), Alarms(config.entropy.kind)
        probe = [p for _, p in self.mixture.held_out("eval", 1) or self.mixture.held_out("train", 1)]
        await self.cluster.probe([self.rollouts.render(p) for p in probe])
        if self.iteration == 0 and config.evaluation.prompts and config.evaluation.start:
            before = await self.stop.interrupts(self._evaluate())
            if before is None:
                await self._stopped()
            await self._report({"iteration": 0.0, "policy_version": 0.0, **before})
        while self.iteration < last:
            began, progress = time.perf_counter(), self.mixture.state_dict()
            iteration = self.iteration + 1

            prompts = self.mixture.next(config.batch.prompts)
            collected = await self.stop.interrupts(
                self.rollouts.collect(
                    prompts,
                    replies=config.batch.replies,
                    temperature=config.sampling.temperature,
                    stamp=f"iteration {iteration}",
                )
            )
            if collected is None:  # the iteration never was: its prompts are drawn again after a resume
                self.mixture.load_state_dict(progress)
                await self._stopped()
            groups, seconds = collected
            for group in groups:
                await buffer.put(group)
            groups = await buffer.take(config.batch.prompts, self.cluster.version)

            trajectories = [t for g in groups for t in g.trajectories]
            row, seconds["train"] = await timed(self._update(groups, trajectories))
            manifest, seconds["sync"] = await timed(self._sync())
            gap = await self.cluster.probe([t.token_ids for t in trajectories[: config.weights.probe_replies]])
            self.iteration = iteration
            total = time.perf_counter() - began

            tokens = sum(t.reply_tokens for t in trajectories)
            row |= describe(groups, trajectories) | gap | {f"time/{k}": v for k, v in seconds.items()}
            row |= {
                "iteration": float(iteration),
                "policy_version": float(self.cluster.version),
                "time/iteration": total,
                "time/unix": time.time(),
                "sync/bytes": float(sum(t.nbytes for t in manifest.tensors)),
                "tokens/generated": float(tokens),
                "tokens/per_second": tokens / total,
            }
            if config.evaluation.prompts and (iteration == last or (every and iteration % every == 0)):
                evals, row["time/eval"] = await timed(self.stop.interrupts(self._evaluate()))
                row |= evals or {}
            for alarm in alarms.look(row):
                self.sink.event(alarm)
            self.sink.sample(samples(iteration, trajectories, config.run.samples_per_iteration))
            await self._report(row)
            if self.stop.number is not None:
                await self._stopped()
            if iteration == last or (config.checkpoint.every and iteration % config.checkpoint.every == 0):
                await self._checkpoint()

    async def _update(self, groups: Sequence[Group], trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Batch, then all optimiser steps of the iteration, on every rank."""
        config = self.config
        self.sink.stage("train", 0, 1)
        batches = build_batches(
            trajectories,
            trajectory_advantages(groups, ADVANTAGES[config.objective.advantage]),
            cut=Cut(
                updates=config.learner.updates,
                epochs=config.learner.epochs,
                ranks=config.learner.ranks,
                micro_batch_tokens=config.learner.micro_batch_tokens,
                packing=config.learner.packing,
            ),
            aggregation=config.objective.aggregation,
            temperature=config.sampling.temperature,
            length_scale=config.sampling.max_tokens,
        )
        metrics = await self.cluster.learner.each("train", [(b,) for b in batches])
        self.sink.stage("train", 1, 1)
        return metrics[0]  # every rank has the same: they are reduced over all of them

    async def _sync(self) -> Any:
        self.sink.stage("sync", 0, 1)
        manifest = await self.cluster.sync(self.cluster.version + 1)
        self.sink.stage("sync", 1, 1)
        return manifest

    async def _evaluate(self) -> dict[str, float]:
        held_out = self.mixture.held_out("eval", self.config.evaluation.prompts)
        return await evaluate(self.config.evaluation, held_out, self.rollouts, self.sink.stage)

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
                "mixture": self.mixture.state_dict(),
                "learner": await self.cluster.learner.first("state_dict"),
            }
            self.checkpoints.commit(draft, state)
        self.sink.stage("checkpoint", 1, 1)

    async def _stopped(self) -> NoReturn:
        """A checkpoint of the last whole iteration, then the end."""
        if self.iteration:
            await self._checkpoint()
        raise Stopped(self.stop.number or 2)


async def timed(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    began = time.perf_counter()
    return await work, time.perf_counter() - began


def describe(groups: Sequence[Group], trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Rewards, lengths and statuses of an iteration's replies; by environment too."""
    rewards = [t.verdict.reward for t in trajectories]
    lengths = [t.reply_tokens for t in trajectories]
    mean = sum(rewards) / len(rewards)
    row = {
        "reward/mean": mean,
        "reward/std": (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5,
        "correct/mean": sum(t.verdict.correct for t in trajectories) / len(trajectories),
        "groups/no_signal": float(no_signal(groups)),
        "reply/length_mean": sum(lengths) / len(lengths),
        "reply/length_max": float(max(lengths)),
        "replies/distinct": sum(len({t.texts for t in g.trajectories}) for g in groups) / len(groups),
        "replies/distinct_correct": sum(distinct(g) for g in groups) / len(groups),
    }
    for status in Status:
        row[f"status/{status}"] = sum(t.verdict.status is status for t in trajectories) / len(trajectories)
    for env, members in by_env(groups).items():
        verdicts = [t.verdict for g in members for t in g.trajectories]
        row[f"reward/{env}"] = sum(v.reward for v in verdicts) / len(verdicts)
        row[f"correct/{env}"] = sum(v.correct for v in verdicts) / len(verdicts)
    return row


def samples(iteration: int, trajectories: Sequence[Trajectory], count: int) -> list[Sample]:
    """`count` replies, spread over the batch; the last one's text where there are several turns."""
    step = max(1, len(trajectories) // count) if count else 1
    return [
        {
            "iteration": iteration,
            "env": t.prompt.env,
            "prompt": t.prompt.messages[-1].content if t.prompt.messages else "",
            "reply": "\n".join(t.texts),
            "reward": t.verdict.reward,
            "correct": t.verdict.correct,
            "status": str(t.verdict.status),
        }
        for t in trajectories[::step][:count]
    ]
