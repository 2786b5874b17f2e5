"""Runs one rank of the learner group: a plain class, driven by one call at a time.

An iteration: measure the policy on the fresh batch (log-probs, exact entropy, ledger), let the entropy controller observe, take
the batch's optimiser steps with the loss that its coefficient shapes. train, begin_stage, sequence_logprobs, check_model, publish,
save and load are collectives: they are called on all ranks at once.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.deepspeed_engine import DeepSpeedEngine, RankPlace
from learner.draws import token_uniform
from learner.entropy.build import build
from learner.entropy.settings import EntropySettings
from learner.entropy.steering import Steering
from learner.ledger.history import Ledger, ledger_row, update_metrics
from learner.ledger.predicted import Fresh, tally_policy, tally_shaping, tally_update
from learner.ledger.step_effect import StepEffect
from learner.ledger.tally import Tally
from learner.model_check import ModelCheck, check_model, sequence_logprobs
from learner.objective import gradient_weight, reference_pull, token_loss, weigh, with_reference
from learner.policy import Policy, load_policy
from learner.rank_settings import LearnerStage, RankSettings
from learner.schedule import learning_rate
from learner.types import LossData, MicroBatch, RankBatch, Shaping, StepMetrics, TokenStats
from learner.weights.channel import listen
from learner.weights.protocol import Rendezvous, WeightManifest, make_manifest
from learner.weights.publisher import Publisher


class NonFiniteError(RuntimeError):
    """Reports a loss or gradient that is not a number. The update that made it was not published."""


class Learner:
    """Trains one rank's part of the policy and publishes its weights."""

    def __init__(self, settings: RankSettings, placement: RankPlace) -> None:
        if settings.learner.threads:
            torch.set_num_threads(settings.learner.threads)
        self.settings, self.rank = settings, placement.rank
        self.engine = DeepSpeedEngine(
            placement,
            settings.learner,
            precision=settings.precision,
            lr=settings.learner.lr,
            loss_scale_power=settings.loss_scale_power,
        )
        self.policy = load_policy(
            settings.model.path,
            attention=settings.model.attention,
            checkpointing=settings.learner.gradient_checkpointing,
            fp32_head=settings.fp32_head,
        )
        if settings.learner.router_aux_coefficient:
            self.policy.balance_experts(settings.learner.router_aux_coefficient)
        self.engine.attach(self.policy)
        self.reference: Policy | None = None
        if settings.objective.kl.coefficient or settings.hold_reference:
            self.reference = load_policy(
                settings.reference,
                attention=settings.model.attention,
                checkpointing=False,
                fp32_head=settings.fp32_head,
            )
            self.frozen = self.engine.freeze(self.reference)
        self.steering = _steering(settings.entropy)
        self.ledger = Ledger()
        self.steps = 0  # optimiser steps so far
        self.publisher: Publisher | None = None
        self._listener: socket.socket | None = None

    # --- training -------------------------------------------------------------------------------------------------------

    def begin_stage(self, stage: LearnerStage) -> None:
        """Goes over to a stage between two iterations. A collective: all ranks are given the same.

        The stage's settings are not saved with the learner: to resume inside a stage, build it with that stage's settings.
        """
        s = self.settings
        self.settings = s = replace(
            s,
            objective=stage.objective,
            learner=s.learner.model_copy(update={"lr": stage.lr}),
            entropy=s.entropy.model_copy(update={"target": stage.target}),
        )
        self.steering.begin_stage(_steering(s.entropy), stage.controller)
        self.ledger.interrupt()
        if stage.optimiser == "reset":
            self.engine.reset_optimiser()

    def train(self, batch: RankBatch) -> StepMetrics:
        """Trains for one iteration and returns the same metrics on every rank. Raises NonFiniteError.

        A batch without updates is measured and observed like any other, changes no weight, and returns no metrics of an update.
        """
        # The micro-batches of one pass, told apart by identity: epochs repeat them.
        first_pass = {id(m): m for part in (*batch.updates, batch.measured) for m in part}
        updates_per_pass = len({tuple(id(m) for m in update) for update in batch.updates})
        fresh = self._measure_all(first_pass, batch)
        measured = Tally()
        for f in fresh.values():
            tally_policy(measured, f, self.steering.probe(f.stats, batch.envs), batch.envs)
        self._reduce(measured)
        row = self.ledger.row(measured, updates_per_pass, batch.envs)
        steered = self.steering.observe(row)
        began = self.steps
        if not batch.updates:
            self.steps = began + batch.steps
            return {**row.metrics, **self.ledger.no_step(), **self.ledger.metrics(), **steered}

        planned = Tally()
        for update in batch.updates[:updates_per_pass]:
            own = [fresh[id(m)] for m in update]
            for f, shaping in zip(own, self._shape([f.stats for f in own], batch.envs), strict=True):
                tally_shaping(planned, f, shaping)
        self._reduce(planned)

        effect = None
        if batch.ledger:
            effect = StepEffect(self.engine, list(self.policy.parameters()))
            effect.begin(batch.ledger, self._entropies(batch.temperature))
        updated, eta = Tally(), 0.0
        norms: list[float] = []
        for update in batch.updates:
            lr = self._lr()
            norms.append(self._update(update, fresh, batch, lr, updated))
            eta += lr if math.isfinite(norms[-1]) else 0.0  # a skipped step changes nothing
            self.steps += 1
        self.steps = max(self.steps, began + batch.steps)
        self._reduce(updated)
        loss = updated.sums["loss"]
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss} after optimiser step {self.steps}: lower learner.lr or use fp32 or bf16"
            )
        finite = [n for n in norms if math.isfinite(n)]
        corrected = self.settings.objective.importance.kind != "none"
        return {
            **row.metrics,
            **self.ledger.attribute(planned, row, eta),
            **self.ledger.step(effect and effect.end(batch.ledger, self._entropies(batch.temperature))),
            **self.ledger.metrics(),
            **update_metrics(updated, len(batch.updates), corrected),
            **steered,
            "lr": eta / max(1, len(finite)),
            "grad_norm": sum(finite) / len(finite) if finite else math.nan,
            "steps/skipped": float(len(norms) - len(finite)),
            **({} if (scale := self.engine.loss_scale) is None else {"steps/loss_scale": scale}),
        }

    def measure_start(self, batch: RankBatch) -> StepMetrics:
        """Measures the policy on `batch.measured` and gives the targets that entropy as their start. Returns what was measured."""
        tally = Tally()
        for micro in batch.measured:
            tally_policy(tally, self._measure(micro, batch), None, batch.envs)
        self._reduce(tally)
        row = ledger_row(tally, 1, batch.envs)
        self.steering.set_start(row)
        return row.metrics

    def _update(
        self, update: Sequence[MicroBatch], fresh: Mapping[int, Fresh], batch: RankBatch, lr: float, tally: Tally
    ) -> float:
        """Takes one optimiser step over all micro-batches of all ranks; returns the gradient norm."""
        wide = None
        if self.steering.method.scope == "batch":  # one more forward pass per update, which only these methods pay
            with torch.no_grad():
                stats = [self._stats(m, fresh[id(m)], *self._forward(m, batch.temperature)) for m in update]
            wide = self._shape(stats, batch.envs)
        for i, micro in enumerate(update):
            self.engine.boundary(i == len(update) - 1)
            f = fresh[id(micro)]
            logp, entropy, kappa, entropy_grad_sq = self._forward(micro, batch.temperature)
            stats = self._stats(micro, f, logp.detach(), entropy.detach(), kappa, entropy_grad_sq)
            shaping = self.steering.shape(stats, batch.envs) if wide is None else wide[i]
            terms = token_loss(logp, entropy, self._loss_data(micro, f), shaping, self.settings.objective)
            routers = self.policy.router_loss(f.weight) if self.settings.learner.router_aux_coefficient else 0.0
            self.engine.backward(terms.loss + routers)
            tally_update(tally, terms.loss, terms.tokens, stats, shaping, lr * f.weight)
        scale = self.engine.loss_scale
        norm = self.engine.step(lr)
        # fp16 skips the step and goes on with half the scale, until the scale is 1.
        if not math.isfinite(norm) and (scale is None or scale <= 1):
            last = "" if scale is None else f" even with a loss scale of {scale:g}"
            raise NonFiniteError(
                f"the gradient norm is {norm} at optimiser step {self.steps + 1}{last}: lower learner.lr"
            )
        return norm

    def _shape(self, own: Sequence[TokenStats], envs: tuple[str, ...]) -> list[Shaping]:
        """Returns the shapings of one update's micro-batches.

        A method of scope "batch" is given the global batch of the update at once; its shaping is divided among this rank's
        micro-batches.
        """
        if self.steering.method.scope == "token":
            return [self.steering.shape(stats, envs) for stats in own]
        columns = torch.cat([torch.stack([getattr(s, f.name) for f in fields(s)], -1) for s in own])
        parts = self.engine.all_gather(columns)
        merged = dict(zip([f.name for f in fields(TokenStats)], torch.cat(parts).unbind(-1), strict=True))
        shaping = self.steering.shape(TokenStats(**{**merged, "env": merged["env"].long()}), envs)
        start = sum(len(p) for p in parts[: self.rank])
        shapings: list[Shaping] = []
        for stats in own:
            shapings.append(shaping.take(slice(start, start + len(stats.logp))))
            start += len(stats.logp)
        return shapings

    def _measure_all(self, micros: Mapping[int, MicroBatch], batch: RankBatch) -> dict[int, Fresh]:
        """Measures the micro-batches, and on all of them which experts a mixture's routers choose."""
        self.policy.count_experts()
        fresh = {key: self._measure(micro, batch) for key, micro in micros.items()}
        self.policy.share_experts(lambda counts: self.engine.all_reduce(counts, "sum"))
        return fresh

    def _measure(self, micro: MicroBatch, batch: RankBatch) -> Fresh:
        """Measures the policy at the start of the iteration, without gradient."""
        with torch.no_grad():
            logp, entropy, kappa, entropy_grad_sq = self._forward(micro, batch.temperature)
            reference = None
            if self.reference is not None and self.settings.objective.kl.coefficient:
                reference, *_ = self.frozen(*self._inputs(micro), batch.temperature)
        engine_logp, advantages = self._tensor(micro.engine_logprobs), self._tensor(micro.advantages)
        advantages = with_reference(advantages, logp, reference, self.settings.objective)
        uniform = token_uniform(self.settings.seed, self.steps, micro.trajectory, micro.action_index)
        objective, importance = self.settings.objective, None
        weight, trajectory = self._tensor(micro.weight), self._tensor(micro.trajectory)
        if objective.importance.kind != "none":
            importance, _ = weigh(objective.importance, logp - engine_logp, trajectory)
        data = LossData(logp, advantages, weight, trajectory)
        return Fresh(
            stats=TokenStats(
                logp=logp,
                entropy=entropy,
                kappa=kappa,
                entropy_grad_sq=entropy_grad_sq,
                old_logp=logp,
                advantages=advantages,
                uniform=self._tensor(uniform),
                env=self._tensor(micro.env).long(),
                gradient_weight=gradient_weight(logp, data, importance, objective),
            ),
            weight=weight,
            engine_logp=engine_logp,
            correct=self._tensor(micro.correct),
            first=self._tensor(micro.action_index) == 0,
            last=self._tensor(micro.last),
            reference_logp=reference,
            importance=importance,
            pull=reference_pull(logp, reference, objective),
        )

    def _stats(
        self, micro: MicroBatch, fresh: Fresh, logp: Tensor, entropy: Tensor, kappa: Tensor, entropy_grad_sq: Tensor
    ) -> TokenStats:
        """Returns the current policy's token statistics; what is fixed at the start of the iteration comes from `fresh`."""
        return replace(
            fresh.stats,
            logp=logp,
            entropy=entropy,
            kappa=kappa,
            entropy_grad_sq=entropy_grad_sq,
            uniform=self._tensor(token_uniform(self.settings.seed, self.steps, micro.trajectory, micro.action_index)),
            gradient_weight=gradient_weight(
                logp, self._loss_data(micro, fresh), fresh.importance, self.settings.objective
            ),
        )

    def _loss_data(self, micro: MicroBatch, fresh: Fresh) -> LossData:
        return LossData(
            old_logp=fresh.stats.logp,
            advantages=fresh.stats.advantages,
            weight=fresh.weight,
            trajectory=self._tensor(micro.trajectory),
            engine_logp=fresh.engine_logp,
            reference_logp=fresh.reference_logp,
        )

    def _inputs(self, micro: MicroBatch) -> tuple[Tensor, ...]:
        arrays = (micro.tokens, micro.positions, micro.predict, micro.targets)
        return tuple(self._tensor(a) for a in arrays)

    def _forward(self, micro: MicroBatch, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.engine(*self._inputs(micro), temperature)

    def _entropies(self, temperature: float) -> Callable[[MicroBatch], Tensor]:
        """Returns the function that gives a micro-batch's entropies, with a gradient that no update has."""
        return lambda micro: self.engine.outside_updates(*self._inputs(micro), temperature)[1]

    def _tensor(self, array: np.ndarray) -> Tensor:
        # A copy: arrays out of Ray's object store are read-only.
        return torch.tensor(array, device=self.engine.device)

    def _lr(self) -> float:
        return learning_rate(self.steps, self.settings.learner, self.settings.total_steps)

    def _reduce(self, tally: Tally) -> None:
        sums, peaks = tally.vectors()
        tally.replace(self.engine.all_reduce(sums, "sum"), self.engine.all_reduce(peaks, "max"))
        tally.values = {key: self.engine.all_gather(torch.cat(parts)) for key, parts in sorted(tally.values.items())}

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns log-probs at temperature 1 of tokens 1.. of each sequence, one sequence a forward: the engine's counterpart."""
        return sequence_logprobs(self.engine, self.engine.device, sequences)

    def check_model(self, sequences: Sequence[Sequence[int]]) -> ModelCheck:
        """Compares what is trained with the model's own forward, and a batch of the sequences with each alone."""

        def forward(micro: MicroBatch) -> Tensor:
            return self._forward(micro, 1.0)[0]

        packing = self.settings.learner.packing
        return check_model(self.policy, self.engine, forward, self.engine.device, sequences, packing)

    # --- weights --------------------------------------------------------------------------------------------------------

    def listen(self) -> int:
        """Opens, on rank 0, a free port for the next weight group and holds it until `connect_weights` uses it."""
        self._listener = listen()
        return self._listener.getsockname()[1]

    def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """Opens the channel from rank 0 to the generators, on the port `listen` gave; the other ranks have no part in it."""
        if self.publisher is not None:
            self.publisher.close()
        self.publisher = Publisher(
            rendezvous, timeout_s, listener=self._listener, overlap=self.settings.learner.zero_stage < 3
        )

    def manifest(self, version: int) -> WeightManifest:
        specs = self.engine.full_specs(self.policy.weights(), self.policy.on_disk)
        return make_manifest(specs, version, self.settings.bucket_bytes)

    def publish(self, manifest: WeightManifest) -> int | None:
        """Broadcasts the weights; rank 0 returns their checksum. WeightSyncError where a generator does not take part."""
        # A collective under ZeRO-3: every rank's part in it.
        tensors = self.engine.full_weights(self.policy.weights(), self.policy.on_disk)
        if self.publisher is not None:
            return self.publisher.publish(manifest, tensors)
        return None

    # --- state ----------------------------------------------------------------------------------------------------------

    def save(self, hf: Path, engine: Path) -> None:
        """Saves the weights and the engine's state.

        hf: a folder that from_pretrained and vLLM load, written by rank 0. engine: DeepSpeed's own, by all ranks.
        """
        self.engine.save(engine)
        weights = dict(self.engine.full_weights(self.policy.weights()))
        if self.rank == 0:
            model: Any = self.policy.model  # transformers leaves parameters of save_pretrained untyped
            model.save_pretrained(hf, state_dict={k: v.cpu().contiguous() for k, v in weights.items()})

    def load(self, engine: Path) -> None:
        self.engine.load(engine)

    def state_dict(self) -> dict[str, object]:
        """Returns what is not a tensor: step count, controller, ledger. JSON values, the same on every rank."""
        return {"steps": self.steps, "steering": self.steering.state_dict(), "ledger": dict(self.ledger.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self.steering.load_state_dict(state["steering"])
        # A checkpoint of before knows nothing of the steps.
        self.ledger.state = self.ledger.state | {k: float(v) for k, v in state["ledger"].items()}

    def release(self) -> Publisher | None:
        """Frees model and optimiser for another learner of this process.

        That one goes on with the group and with the returned channel to the generators.
        """
        self.engine.release()
        return self.publisher

    def close(self) -> None:
        if self.publisher is not None:
            self.publisher.close()
        self.engine.close()


def _steering(entropy: EntropySettings) -> Steering:
    return build(entropy.method, entropy.controller, entropy.target, entropy.environments)
