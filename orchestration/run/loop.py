"""Runs the training loop: groups -> batch -> updates -> weights to the generators, again and again.

Each phase consumes what the one before returned. All waiting is in the phases; nothing here knows of Ray.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from actors.health.lifeline import LearnerDied
from envs.types import Group, Trajectory
from learner.advantages import ADVANTAGES
from learner.batching import build_batches, trajectory_advantages, turn_advantages
from learner.checkpoint import Checkpoints
from learner.settings import LEAST_SAVED, RowLayout
from learner.tracing.spans import traced
from learner.types import NonFiniteError, RankBatch
from orchestration.cluster.weight_sync import Transfer
from orchestration.config.run_config import RunConfig
from orchestration.errors import EnvironmentErrors, ModelRefused, Stopped
from orchestration.run.protocols import BatchProducer, TrainingCluster
from orchestration.run.saving import Saver
from orchestration.run.state import RunState
from orchestration.run.stop import StopSignal
from orchestration.sampling.dynamic_sampling import Sampled
from orchestration.sampling.evaluation import evaluate
from orchestration.sampling.rollouts import Rollouts
from orchestration.telemetry.environment_errors import EnvironmentErrorWatch
from orchestration.telemetry.iteration_row import Iteration, iteration_row
from orchestration.telemetry.rollout_metrics import samples
from orchestration.telemetry.sinks.base import Sink
from orchestration.telemetry.staleness import staleness
from orchestration.text import one_line

T = TypeVar("T")

START_PROMPTS = 16  # over all environments: in bf16 the mean over one prompt says little


@dataclass
class Run:
    """Trains one policy, with everything that the loop works with.

    Whether generators work while the learner trains is the producer's matter: the loop asks it for a batch at a time.
    """

    config: RunConfig
    cluster: TrainingCluster
    producer: BatchProducer
    rollouts: Rollouts
    state: RunState
    checkpoints: Checkpoints
    sink: Sink
    stop: StopSignal
    # Whether the learner's weights are those of a whole number of iterations, and the last of them while it has no row yet.
    _whole: bool = field(default=True, init=False)
    _done: Iteration | None = field(default=None, init=False)
    _layout: RowLayout = field(default="padded", init=False)  # what batches may be; the check of the start says so
    errors: EnvironmentErrorWatch = field(init=False)

    def __post_init__(self) -> None:
        verifiers = self.config.verifiers
        self.errors = EnvironmentErrorWatch(verifiers.max_error_share, verifiers.error_iterations)
        section, given = self.config.checkpoint, (self.cluster, self.rollouts, self.state, self.checkpoints, self.sink)
        self.saver = Saver(section, *given)

    async def train(self) -> None:
        """Trains until the last stage ends or the run's iterations are used up. Raises Stopped after a checkpoint.

        Anything else that ends the run is raised after a checkpoint too, where the learner can still give one.
        """
        try:
            await self._train()
        except (Stopped, LearnerDied, asyncio.CancelledError):
            raise
        except Exception as error:
            await self._rescue(error)
            raise

    async def _train(self) -> None:
        config, state, curriculum = self.config, self.state, self.state.curriculum
        stage = config.at_stage(curriculum.index)
        await self._check_start()
        await self._evaluate_owed()
        await self._measure_start(stage)
        while state.iteration < config.iterations and not curriculum.finished:
            # A checkpoint at a stage's end is saved before the switch, so that a resumed run enters here too.
            if curriculum.stage_ended:
                stage = await self._begin_stage()
            began, number = time.perf_counter(), state.iteration + 1

            await self.cluster.generators_turn()
            sampled = await self.stop.interrupts(self.producer.next_batch(number, stage))
            if sampled is None:
                self.producer.abandon()
                await self._stopped()
            sampled = self._judged(number, sampled)
            await self.cluster.learners_turn()
            self._whole = False
            update, train_seconds = await timed(self._update(stage, sampled))
            self._done = done = self._finish(number, sampled, update, train_seconds)
            milestone = curriculum.stage_ended or number == config.iterations
            state.owes_evaluation = self._evaluation_due(milestone)  # until it is made, whatever ends the run before
            self._whole = True
            probed = self._probed(sampled)
            sent, sync_seconds = await timed(self._sync(probed))
            gap = await self._probe(probed, sent.logprobs)
            done = replace(
                done,
                logprob_gap=gap,
                seconds={**done.seconds, "sync": sync_seconds},
                total_seconds=time.perf_counter() - began,
                sent_bytes=sum(t.nbytes for t in sent.manifest.tensors),
                cluster=self.cluster.counts(),
            )
            if not sampled.trained:
                self.sink.event(f"iteration {number}: {sampled.nothing_left()}")
            evaluation = await self._evaluate_due()
            await self._report(done, evaluation)
            if self.stop.asked:
                await self._stopped()
            if milestone or self.saver.due():
                await self.saver.save(last=number == config.iterations or curriculum.finished)

    def _judged(self, number: int, sampled: Sampled) -> Sampled:
        """Takes a batch that nobody could judge out of the update: it is measured, and changes no weight."""
        trajectories = [t for g in sampled.groups for t in g.trajectories]
        if not trajectories or any(t.verdict.status.scored for t in trajectories):
            return sampled
        detail = next((t.verdict.detail for t in trajectories if t.verdict.detail), "")
        self.sink.event(
            f"iteration {number}: none of {len(trajectories)} responses has a verdict, so the weights stay as they are: "
            f"{detail[:500]}"
        )
        return replace(sampled, kept=[False] * len(sampled.groups))

    def _finish(self, number: int, sampled: Sampled, update: dict[str, float], train_seconds: float) -> Iteration:
        """Counts an iteration whose updates are done: from here on a checkpoint holds it, whatever becomes of the transfer."""
        state = self.state
        age = staleness(sampled.groups, state.policy_version) if self.config.batch.staleness else {}
        state.iteration, state.policy_version = number, state.policy_version + 1
        return Iteration(
            number=number,
            policy_version=state.policy_version,
            groups=sampled.groups,
            update=update,
            logprob_gap={},
            sampling=age | ({} if self.config.batch.dynamic.kind == "none" else sampled.metrics()),
            curriculum=state.curriculum.observe(sampled.groups) | self._position(),
            seconds=sampled.seconds | {"train": train_seconds},
            total_seconds=math.nan,
            sent_bytes=0,
            diversity=self.config.diversity,
        )

    async def _rescue(self, error: Exception) -> None:
        """Saves what is whole before `error` ends the run. Says what became of it, and raises nothing."""
        if isinstance(error, NonFiniteError | ModelRefused) or not self._whole or not self.state.iteration:
            return
        if self._done is not None:
            try:
                await self._report(self._done, {})
            except Exception as second:  # noqa: BLE001 - as below; the checkpoint matters more
                self.sink.event(f"the row of the last iteration could not be written: {one_line(second)[:500]}")
        try:
            await self.saver.save(last=True)
        except Exception as second:  # noqa: BLE001 - the first error is the run's
            self.sink.event(f"no checkpoint could be written at the end: {one_line(second)[:500]}")
        else:
            self.sink.event(f"the run ends after a checkpoint of iteration {self.state.iteration}")

    # --- phases of an iteration -----------------------------------------------------------------------------------------

    @traced("update")
    async def _update(self, config: RunConfig, sampled: Sampled) -> dict[str, float]:
        """Builds the batch and takes all optimiser steps of the iteration, on every rank. config: in the present stage."""
        self.sink.progress("train", 0, 1)
        groups, diversity = sampled.trained, {}
        if (control := self.state.diversity) is not None:
            diversity = control.observe(sampled.groups, bool(groups))
            groups = control.apply(groups)
        metrics = await self.cluster.learner.train(self._batches(config, groups, sampled.measured))
        self.sink.progress("train", 1, 1)
        return metrics | diversity

    @traced("batch")
    def _batches(
        self, config: RunConfig, groups: Sequence[Group], measured: Sequence[Trajectory] = ()
    ) -> list[RankBatch]:
        """Builds the batch of every rank. config: in the present stage; measured: what is not trained on."""
        credit = config.objective.credit
        kind = ADVANTAGES[config.objective.advantage]
        advantages = (
            turn_advantages(groups, kind, credit.discount, config.rewards.verdict)
            if credit.kind == "turn"
            else trajectory_advantages(groups, kind)
        )
        return build_batches(
            [t for g in groups for t in g.trajectories],
            advantages,
            plan=config.learner.model_copy(
                update={"packing": self._layout != "padded", "prefix_sharing": self._layout == "shared"}
            ),
            aggregation=config.objective.aggregation,
            temperature=config.sampling.temperature,
            length_scale=config.sampling.max_tokens,
            measured=measured,
            full_batch=config.batch.prompts * config.batch.responses,
            version=self.state.policy_version,
            staleness=config.batch.staleness,
            least_saved=0.0 if config.learner.prefix_sharing else LEAST_SAVED,
        )

    def _probed(self, sampled: Sampled) -> list[tuple[int, ...]]:
        """Returns what engine and trainer are compared on after an update: the first trajectories of the batch."""
        trajectories = [t for g in sampled.groups for t in g.trajectories]
        return [t.token_ids for t in trajectories[: self.config.weights.probe_responses]]

    @traced("transfer")
    async def _sync(self, probed: Sequence[Sequence[int]]) -> Transfer:
        """Sends the new weights to the generators. The learner scores its half of the probe meanwhile."""
        self.sink.progress("sync", 0, 1)
        sent = await self.cluster.sync(self.state.policy_version, probed)
        self.sink.progress("sync", 1, 1)
        return sent

    @traced("probe")
    async def _probe(self, probed: Sequence[Sequence[int]], expected: Sequence[Sequence[float]]) -> dict[str, float]:
        """Compares engine and trainer after an update. expected: the trainer's log-probs."""
        return await self.cluster.probe(probed, expected)

    @traced("check")
    async def _check_start(self) -> None:
        """Compares trainer, engines and plain transformers before the first update, on prompts of every environment."""
        curriculum = self.state.curriculum
        each = -(-max(START_PROMPTS, self.config.weights.probe_responses) // len(curriculum.environments))
        prompts = curriculum.held_out("eval", each) or curriculum.held_out("train", each)
        sequences = [self.rollouts.render(p)[: self.config.generators.max_model_len] for p in prompts]
        self._layout = await self.cluster.check_start(self.state.policy_version, sequences)

    # --- stages of the curriculum ---------------------------------------------------------------------------------------

    async def _begin_stage(self) -> RunConfig:
        """Begins the next stage on every rank; returns the run's configuration in it."""
        curriculum = self.state.curriculum
        if left := await self.producer.end_stage():
            self.sink.event(left)
        curriculum.advance()
        await self.cluster.begin_stage(curriculum.index)
        self.sink.event(f"stage {curriculum.index + 1} of {len(curriculum.stages)} begins: {curriculum.stage.name}")
        if self.state.diversity is not None:
            self.state.diversity.begin_stage(self.config.stages[curriculum.index].controller)
        config = self.config.at_stage(curriculum.index)
        await self._measure_start(config)
        return config

    async def _measure_start(self, config: RunConfig) -> None:
        """Measures what targets are fractions of, on responses of the present policy, before it is updated.

        config: in the present stage. A first batch with responses enough is itself the measurement. A run that was stopped while it
        measured comes here again, with a stage that has begun and had no iteration.
        """
        curriculum, diversity = self.state.curriculum, self.state.diversity
        batch, of_entropy = config.batch.prompts * config.batch.responses, config.entropy.start_responses
        wanted = max(of_entropy, 0 if config.diversity is None else config.diversity.start_responses)
        kept = curriculum.index > 0 and self.config.stages[curriculum.index].controller == "keep"
        if kept or curriculum.iteration or wanted <= batch:
            return
        await self.cluster.generators_turn()
        groups = await self.stop.interrupts(self.producer.before_training(config, wanted))
        if groups is None:
            await self._stopped()
        if diversity is not None:
            diversity.set_start(groups)
        if of_entropy <= batch:
            return
        trajectories = [t for g in groups for t in g.trajectories]
        await self.cluster.learners_turn()
        measured = await self.cluster.learner.measure_start(self._batches(config, (), trajectories))
        self.sink.event(
            f"entropy at the start: {measured['entropy/exact']:.4g} nats per token, on {len(trajectories)} responses of version "
            f"{self.state.policy_version}"
        )

    def _position(self) -> dict[str, float]:
        """Returns the metrics of the stage; none in a run without stages."""
        c = self.state.curriculum
        return {"stage/index": float(c.index), "stage/iteration": float(c.iteration)} if self.config.stages else {}

    # --- evaluation -----------------------------------------------------------------------------------------------------

    @traced("evaluation")
    async def _evaluate(self) -> dict[str, float]:
        """Evaluates every environment of every stage, under the run's own sampling: evaluations differ by the policy alone."""
        await self.cluster.generators_turn()
        held_out = self.state.curriculum.held_out("eval", self.config.evaluation.prompts)
        return await evaluate(self.config.evaluation, self.config.sampling, held_out, self.rollouts, self.sink.progress)

    async def _evaluate_owed(self) -> None:
        """Reports the evaluation before training, or the one that the stop of a resumed run interrupted."""
        state = self.state
        if not (state.owes_evaluation and self.config.evaluation.prompts):
            return
        metrics = await self.stop.interrupts(self._evaluate())
        if metrics is None:
            await self._stopped()
        state.owes_evaluation = False
        at = {"iteration": float(state.iteration), "policy_version": float(state.policy_version)}
        row = at | self._position() | metrics
        await self._write(row | state.monitor.look(row))
        if state.iteration >= self.config.iterations or state.curriculum.finished:  # nothing else was left to do
            await self.saver.save(last=True)

    def _evaluation_due(self, milestone: bool) -> bool:
        section = self.config.evaluation
        return bool(section.prompts) and (milestone or due(self.state.iteration, section.every))

    async def _evaluate_due(self) -> dict[str, float]:
        """Returns the metrics of an evaluation if one is due after this iteration; a stop that interrupts it leaves it owed."""
        if not self.state.owes_evaluation:
            return {}
        metrics, seconds = await timed(self.stop.interrupts(self._evaluate()))
        self.state.owes_evaluation = metrics is None
        return {"time/eval": seconds, **(metrics or {})}

    # --- reports and checkpoints ----------------------------------------------------------------------------------------

    async def _report(self, iteration: Iteration, evaluation: dict[str, float]) -> None:
        """Writes the iteration's row, alarms and samples. Raises EnvironmentErrors for too many of them."""
        self._done = None
        trajectories = [t for g in iteration.groups for t in g.trajectories]
        row = iteration_row(iteration) | evaluation
        row |= self.state.monitor.look(row)
        for alarm in self.state.alarms.look(row):
            self.sink.event(alarm)
        errors = self.errors.look(iteration.number, trajectories)
        if errors.event:
            self.sink.event(errors.event)
        run = self.config.run
        kept = samples(iteration.number, trajectories, run.samples_per_iteration, run.sample_tokens)
        self.sink.sample([*kept, *errors.samples])
        await self._write(row)
        if errors.too_many:
            raise EnvironmentErrors(errors.too_many)

    async def _write(self, row: dict[str, float]) -> None:
        self.sink.iteration(row)
        await asyncio.sleep(0)  # lets a signal's handler run

    async def _stopped(self) -> NoReturn:
        """Saves a checkpoint, if an iteration is done, and raises Stopped, or what else the run is to stop for."""
        if self.stop.error is not None:
            raise self.stop.error
        if self.state.iteration:
            await self.saver.save(last=True)
        raise Stopped(self.stop.number or signal.SIGINT)


def due(iteration: int, every: int) -> bool:
    """Decides whether something that happens every `every` iterations, or never (0), happens after `iteration`."""
    return bool(every) and iteration % every == 0


async def timed(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """Returns the result of `work` and the seconds it took."""
    began = time.perf_counter()
    return await work, time.perf_counter() - began
