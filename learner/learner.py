"""Runs one rank of the learner group: a plain class, driven by one call at a time.

An iteration: measure the policy on the fresh batch (log-probs, exact entropy, ledger), let the entropy controller observe, take
the batch's optimiser steps with the loss that its coefficient shapes. train, begin_stage, sequence_logprobs, check_model, publish,
save and load are collectives: they are called on all ranks at once.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.deepspeed_engine import DeepSpeedEngine
from learner.entropy.build import build
from learner.entropy.settings import EntropySettings
from learner.entropy.steering import Steering
from learner.ledger.history import Ledger, ledger_row, update_metrics
from learner.ledger.predicted import Fresh, tally_policy, tally_shaping, tally_update
from learner.ledger.step_effect import StepEffect
from learner.ledger.tally import Tally
from learner.model_check import check_model, sequence_logprobs
from learner.objective import token_loss
from learner.passes import Passes
from learner.policy import load_policy
from learner.rank_settings import LearnerStage, RankPlace, RankSettings
from learner.schedule import learning_rate
from learner.tracing.spans import traced
from learner.training_state.model_folder import ModelFolder
from learner.training_state.one_read import read_once
from learner.types import MicroBatch, ModelCheck, NonFiniteError, RankBatch, Shaping, StepMetrics, TokenStats
from learner.weights.network import listen
from learner.weights.protocol import Rendezvous, WeightManifest, make_manifest
from learner.weights.publisher import Publisher

log = logging.getLogger(__name__)
# Of a forward that scores several sequences of the probe: of so few tokens most of its time does not depend on how many they are.
PROBE_SLOTS = 512


class Learner:
    """Trains one rank's part of the policy and publishes its weights."""

    def __init__(self, settings: RankSettings, placement: RankPlace, listener: socket.socket | None = None) -> None:
        """listener: holds the port of the group's store, on rank 0; without one the port is opened here."""
        if settings.learner.threads is not None:
            torch.set_num_threads(settings.learner.threads)
        elif not placement.cuda:  # threads without a core to run on cost far more than they bring
            torch.set_num_threads(min(torch.get_num_threads(), os.cpu_count() or 1))
        self.settings, self.rank = settings, placement.rank
        self.engine = DeepSpeedEngine(
            placement,
            settings.learner,
            precision=settings.precision,
            lr=settings.learner.lr,
            adapted=settings.learner.lora is not None,
            loss_scale_power=settings.loss_scale_power,
            listener=listener,
        )
        load = partial(load_policy, attention=settings.model.attention, fp32_head=settings.fp32_head)
        kept = {
            "checkpointing": settings.learner.gradient_checkpointing,
            "offload": settings.learner.offload_activations,
        }
        self.policy = read_once(self.engine, partial(load, settings.model.path, **kept))
        self._adapt()
        if placement.rank == 0:
            for sentence in (*settings.learner.slow(), *self.policy.slow(settings.learner.packing)):
                log.warning(sentence)
        if settings.learner.router_aux_coefficient:
            self.policy.balance_experts(settings.learner.router_aux_coefficient)
        self.engine.attach(self.policy)
        self.frozen: Callable[..., Any] | None = None  # the reference policy's forward
        held = settings.objective.kl.coefficient or settings.hold_reference
        if held and self.policy.adapter is not None:
            self.frozen = self._without_adapter
        elif held:
            reference = read_once(self.engine, partial(load, settings.reference, checkpointing=False))
            self.frozen = self.engine.freeze(reference)
        self.steering = _steering(settings.entropy)
        self.ledger = Ledger()
        self.steps = 0  # optimiser steps so far
        self.publisher: Publisher | None = None
        self._listener: socket.socket | None = None
        self._model_folder = ModelFolder()

    def _adapt(self) -> None:
        """Puts the adapter into the model, if there is one, before DeepSpeed sees it: a new one, or that of a checkpoint."""
        s = self.settings
        if s.learner.lora is not None:
            self.policy.cast(self.engine.dtype)  # what DeepSpeed does to weights that it trains
            adapter = self.policy.adapt(s.learner.lora, s.model.path, s.seed)
            if s.adapter is not None:
                adapter.load(Path(s.adapter))

    def _without_adapter(self, *inputs: Any) -> Any:
        """Runs the forward of the base model, which is the reference policy of an adapted one."""
        assert self.policy.adapter is not None
        with self.policy.adapter.off():
            return self.engine(*inputs)

    @property
    def done(self) -> int:
        """Returns a count of what this rank has done: it grows as long as work makes progress."""
        sent = 0 if self.publisher is None else self.publisher.sent
        return self.engine.done + sent + self._model_folder.done

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
        passes, effect = self._passes(batch.temperature, batch.version, batch.staleness), None
        if batch.updates and batch.ledger:
            effect = StepEffect(self.engine, list(self.policy.parameters()))
            if not batch.staleness:
                effect.begin(batch.ledger, passes.entropy)  # before graphs are kept: its own are gone then
        fresh = self._measure_all(first_pass, batch, passes)
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

        if effect is not None and batch.staleness:  # it takes the power that the measurement chose
            effect.begin(batch.ledger, passes.entropy, passes.weigh(row.correction))
        updated, eta, norms = Tally(), 0.0, list[float]()
        for update in batch.updates:
            lr = self._lr()
            norms.append(self._update(update, fresh, passes, batch.envs, lr, updated, moved=bool(norms)))
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
        return {
            **row.metrics,
            **self.ledger.attribute(planned, row, eta),
            **self.ledger.step(effect and effect.end(batch.ledger, passes.entropy)),
            **self.ledger.metrics(),
            **update_metrics(updated, len(batch.updates), self.settings.objective.importance.kind != "none"),
            **steered,
            "lr": eta / max(1, len(finite)),
            "grad_norm": sum(finite) / len(finite) if finite else math.nan,
            "steps/skipped": float(len(norms) - len(finite)),
            **({} if (scale := self.engine.loss_scale) is None else {"steps/loss_scale": scale}),
        }

    def measure_start(self, batch: RankBatch) -> StepMetrics:
        """Measures the policy on `batch.measured` and gives the targets that entropy as their start. Returns what was measured."""
        tally, passes = Tally(), self._passes(batch.temperature)
        for micro in batch.measured:
            tally_policy(tally, passes.measure(micro, self.steps), None, batch.envs)
        self._reduce(tally)
        row = ledger_row(tally, 1, batch.envs)
        self.steering.set_start(row)
        return row.metrics

    def _passes(self, temperature: float, version: int = 0, staleness: int = 0) -> Passes:
        frozen = self.frozen if self.settings.objective.kl.coefficient else None
        return Passes(
            self.engine, self.settings, temperature, frozen, self.policy.adapter, version=version, staleness=staleness
        )

    @traced("update")
    def _update(
        self,
        update: Sequence[MicroBatch],
        fresh: Mapping[int, Fresh],
        passes: Passes,
        envs: tuple[str, ...],
        lr: float,
        tally: Tally,
        moved: bool,
    ) -> float:
        """Takes one optimiser step over all micro-batches of all ranks; returns the gradient norm.

        moved: whether the iteration took a step before.
        """
        self.engine.trim()  # what the measurement left
        wide = None
        if self.steering.method.scope == "batch":  # from the second update on a forward pass more, which only these pay
            own = [(m, fresh[id(m)]) for m in update]
            wide = self._shape([passes.now(m, f, self.steps) if moved else f.stats for m, f in own], envs)
        for i, micro in enumerate(update):
            self.engine.boundary(i == len(update) - 1)
            f = fresh[id(micro)]
            logp, entropy, stats = passes.trained(micro, f, self.steps, moved)
            shaping = self.steering.shape(stats, envs) if wide is None else wide[i]
            terms = token_loss(logp, entropy, passes.loss_data(micro, f), shaping, self.settings.objective)
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

    @traced("measure")
    def _measure_all(self, micros: Mapping[int, MicroBatch], batch: RankBatch, passes: Passes) -> dict[int, Fresh]:
        """Measures the micro-batches, and on all of them which experts a mixture's routers choose."""
        keep = passes.keepable(batch.updates[0] if batch.updates else ())
        self.policy.count_experts()
        fresh = {key: passes.measure(micro, self.steps, key in keep) for key, micro in micros.items()}
        self.policy.share_experts(lambda counts: self.engine.all_reduce(counts, "sum"))
        return fresh

    def _lr(self) -> float:
        return learning_rate(self.steps, self.settings.learner, self.settings.total_steps)

    def _reduce(self, tally: Tally) -> None:
        sums, peaks = tally.vectors()
        tally.replace(self.engine.all_reduce(sums, "sum"), self.engine.all_reduce(peaks, "max"))
        tally.values = {key: self.engine.all_gather(torch.cat(parts)) for key, parts in sorted(tally.values.items())}

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns log-probs at temperature 1 of tokens 1.. of each sequence, one sequence a forward: the engine's counterpart."""
        return self._scored(sequences)

    @traced("log-probs")
    def _scored(self, sequences: Sequence[Sequence[int]], slots: int = 0) -> list[list[float]]:
        return sequence_logprobs(self.engine, self.engine.device, sequences, slots)

    def check_model(self, sequences: Sequence[Sequence[int]]) -> ModelCheck:
        """Compares what is trained with the model's own forward, and a batch of the sequences with each alone."""

        passes = self._passes(1.0)

        def forward(micro: MicroBatch) -> Tensor:
            return passes.forward(micro, statistics=False)[0]

        packing = self.settings.learner.packing
        if packing is None:
            packing = self.policy.packs
        sharing = self.policy.shares(self.settings.learner.prefix_sharing)
        return check_model(self.policy, self.engine, forward, self.engine.device, sequences, packing, sharing)

    # --- weights --------------------------------------------------------------------------------------------------------

    def listen(self) -> int:
        """Opens, on rank 0, a free port for the next weight group and holds it until `connect_weights` uses it."""
        self._listener = listen(self.engine.placement.master_addr)
        return self._listener.getsockname()[1]

    def connect_weights(self, rendezvous: Rendezvous, timeout_s: float, gone: Collection[str] = ()) -> None:
        """Opens the channel from rank 0 to the generators, on the port `listen` gave; the other ranks have no part in it."""
        s, device = self.settings, self.engine.device
        if self.publisher is not None:
            self.publisher.close()
        how: dict[str, Any] = {"sharded": s.learner.zero_stage == 3, "memory": s.shared_memory, "source": device}
        self.publisher = Publisher(rendezvous, timeout_s, listener=self._listener, gone=gone, **how)

    def manifest(self, version: int) -> WeightManifest:
        specs = self.engine.full_specs(self.policy.weights(), self.policy.on_disk)
        return make_manifest(specs, version, self.settings.bucket_bytes)

    def publish(
        self, manifest: WeightManifest, sequences: Sequence[Sequence[int]] = ()
    ) -> tuple[int | None, list[list[float]]]:
        """Broadcasts the weights, and scores `sequences` under them while the engines load what they were sent.

        Returns the checksum, on rank 0, and the log-probs of `sequence_logprobs`, those of short sequences taken in one forward.
        WeightSyncError where a generator does not take part.
        """
        tensors = self.engine.full_weights(self.policy.weights(), self.policy.on_disk, self.settings.bucket_bytes)
        try:
            checksum = None if self.publisher is None else self.publisher.publish(manifest, tensors)
        finally:  # under ZeRO-3 the other ranks wait in the gathers that are left, also after a transfer that failed
            deque(tensors, maxlen=0)
            logprobs = self._scored(sequences, PROBE_SLOTS)
        return checksum, logprobs

    # --- state ----------------------------------------------------------------------------------------------------------

    def save(self, hf: Path, engine: Path) -> None:
        """Saves the weights and the optimiser's state. Raises OSError where the disk does not take them.

        hf: a folder that from_pretrained and vLLM load, written by rank 0; of an adapted model the adapter's, in peft's format.
        engine: the optimiser's state, by all ranks.
        """
        # Before anything is written: a rank whose disk is full would leave the others alone in their gathers.
        weights = self.engine.whole_weights(self.policy.saved_weights())
        self.engine.save(engine)
        if self.rank == 0 and self.policy.adapter is not None:
            self.policy.adapter.write(hf, weights)
        elif self.rank == 0:
            self._model_folder.write(self.policy.model, weights, hf)

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
