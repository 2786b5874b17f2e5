"""One rank of the learner group: a plain class, driven by one call at a time.

An iteration: measure the policy on the fresh batch (log-probs, exact entropy, ledger), take K optimiser steps with the shaped
loss, let the entropy controller observe. Every public method is a collective: all ranks are called with the same kind of input.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learner.deepspeed_engine import DeepSpeedEngine, EngineSettings, Placement
from learner.entropy.base import Settings as KindSettings
from learner.entropy.build import build
from learner.entropy.target import TargetSettings
from learner.ledger import Ledger, Tally, policy_metrics, tally_policy, tally_update, update_metrics
from learner.objective import token_loss
from learner.policy import load_policy
from learner.schedule import Shape, learning_rate
from learner.types import MicroBatch, RankBatch, Shaping, StepMetrics, TokenStats
from learner.weights import Publisher, Rendezvous, WeightManifest, listen, make_manifest


class NonFiniteError(RuntimeError):
    """The loss or the gradient is not a number. The update that made it was not published."""


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """Everything a rank needs; built by orchestration from the run's configuration."""

    model: str
    attention: str
    gradient_checkpointing: bool
    threads: int  # torch threads of the rank on CPU; 0: torch's own choice
    engine: EngineSettings
    schedule: Shape
    warmup: int
    total_steps: int
    floor: float
    surrogate: str
    clip_low: float
    clip_high: float
    method: KindSettings
    controller: KindSettings
    target: TargetSettings
    bucket_bytes: int
    fp32_head: bool = False  # the LM head's product in float32


class Learner:
    def __init__(self, settings: LearnerSettings, place: Placement) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.settings, self.rank = settings, place.rank
        self.engine = DeepSpeedEngine(place, settings.engine)
        self.policy = load_policy(
            settings.model,
            attention=settings.attention,
            checkpointing=settings.gradient_checkpointing,
            fp32_head=settings.fp32_head,
        )
        self.engine.attach(self.policy)
        self.steering = build(settings.method, settings.controller, settings.target)
        self.ledger = Ledger()
        self.steps = 0  # optimiser steps so far
        self.publisher: Publisher | None = None
        self._listener: socket.socket | None = None

    # --- training -------------------------------------------------------------------------------------------------------

    def train(self, batch: RankBatch) -> StepMetrics:
        """One iteration. Returns the same metrics on every rank. Raises NonFiniteError."""
        first_pass = {id(m): m for update in batch.updates for m in update}  # epochs repeat micro-batches
        measured = Tally()
        old: dict[int, Tensor] = {}
        for key, micro in first_pass.items():
            stats, rest = self._measure(micro, batch.temperature)
            old[key] = stats.logp
            tally_policy(measured, stats, self._shaping_without_scope(stats), *rest, batch.envs)
        self._reduce(measured)

        updated, eta, norms = Tally(), 0.0, []
        for update in batch.updates:
            lr = self._lr()
            norms.append(self._update(update, old, batch.temperature, lr, updated))
            eta += lr if math.isfinite(norms[-1]) else 0.0  # a skipped step changes nothing
            self.steps += 1
        self._reduce(updated)
        loss = updated.sums["loss"]
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss} after optimiser step {self.steps}: lower learner.lr or use fp32 or bf16"
            )

        row = self.ledger.row(measured, eta, batch.envs)
        finite = [n for n in norms if math.isfinite(n)]
        return {
            **row.metrics(),
            **self.ledger.metrics(),
            **policy_metrics(measured),
            **update_metrics(updated, len(batch.updates)),
            **self.steering.observe(row),
            "lr": eta / max(1, len(finite)),
            "grad_norm": sum(finite) / len(finite) if finite else math.nan,
            "steps/skipped": float(len(norms) - len(finite)),
            **({} if (scale := self.engine.loss_scale) is None else {"steps/loss_scale": scale}),
        }

    def _update(
        self, update: Sequence[MicroBatch], old: dict[int, Tensor], temperature: float, lr: float, tally: Tally
    ) -> float:
        """One optimiser step over all micro-batches of all ranks; returns the gradient norm."""
        wide = self._shape_batch(update, old, temperature) if self.steering.method.scope == "batch" else None
        for i, micro in enumerate(update):
            self.engine.boundary(i == len(update) - 1)
            logp, entropy, kappa = self._forward(micro, temperature)
            advantages = self._tensor(micro.advantages)
            if wide is None:
                stats = TokenStats(logp.detach(), entropy.detach(), kappa, old[id(micro)], advantages)
                shaping = self.steering.shape(stats)
            else:
                shaping = wide[i]
            terms = token_loss(
                logp,
                entropy,
                old[id(micro)],
                advantages,
                self._tensor(micro.weight),
                shaping,
                surrogate=self.settings.surrogate,
                clip_low=self.settings.clip_low,
                clip_high=self.settings.clip_high,
            )
            self.engine.backward(terms.loss)
            tally_update(tally, terms.loss, terms.tokens, shaping.touched)
        scale = self.engine.loss_scale
        norm = self.engine.step(lr)
        if not math.isfinite(norm) and (
            scale is None or scale <= 1
        ):  # fp16 skips the step and goes on with a lower scale
            last = "" if scale is None else f" even with a loss scale of {scale:g}"
            raise NonFiniteError(
                f"the gradient norm is {norm} at optimiser step {self.steps + 1}{last}: lower learner.lr"
            )
        return norm

    def _shape_batch(self, update: Sequence[MicroBatch], old: dict[int, Tensor], temperature: float) -> list[Shaping]:
        """Shape the whole global batch of an update at once, then cut it back to this rank's micro-batches.

        Costs one more forward pass per update; only methods of scope "batch" pay it.
        """
        mine = []
        for micro in update:
            stats, _ = self._measure(micro, temperature)
            mine.append(TokenStats(stats.logp, stats.entropy, stats.kappa, old[id(micro)], stats.advantages))
        columns = [torch.stack([s.logp, s.entropy, s.kappa, s.old_logp, s.advantages], -1) for s in mine]
        parts = self.engine.all_gather(torch.cat(columns))
        shaping = self.steering.shape(TokenStats(*torch.cat(parts).unbind(-1)))
        start = sum(len(p) for p in parts[: self.rank])
        cuts = []
        for stats in mine:
            cuts.append(shaping.take(slice(start, start + len(stats.logp))))
            start += len(stats.logp)
        return cuts

    def _shaping_without_scope(self, stats: TokenStats) -> Shaping:
        """What the ledger predicts with: the shaped advantages, where they do not depend on the rest of the batch."""
        return self.steering.shape(stats) if self.steering.method.scope == "token" else Shaping()

    def _measure(self, micro: MicroBatch, temperature: float) -> tuple[TokenStats, tuple[Tensor, Tensor]]:
        """The current policy on a micro-batch, without gradient; beside it (engine log-probs, env index)."""
        with torch.no_grad():
            logp, entropy, kappa = self._forward(micro, temperature)
        stats = TokenStats(logp, entropy, kappa, logp, self._tensor(micro.advantages))
        return stats, (self._tensor(micro.engine_logprobs), self._tensor(micro.env))

    def _forward(self, micro: MicroBatch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        arrays = (micro.tokens, micro.positions, micro.predict, micro.targets)
        return self.engine(*(self._tensor(a) for a in arrays), temperature)

    def _tensor(self, array: np.ndarray) -> Tensor:
        # A copy: arrays out of Ray's object store are read-only.
        return torch.tensor(array, device=self.engine.device)

    def _lr(self) -> float:
        s = self.settings
        return learning_rate(
            self.steps, peak=s.engine.lr, shape=s.schedule, warmup=s.warmup, total=s.total_steps, floor=s.floor
        )

    def _reduce(self, tally: Tally) -> None:
        sums, peaks = tally.vectors()
        tally.replace(self.engine.all_reduce(sums, "sum"), self.engine.all_reduce(peaks, "max"))

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs at temperature 1 of tokens 1.. of each sequence, one sequence a forward: the engine's counterpart."""
        out = []
        for ids in sequences:
            tokens = torch.tensor([ids], device=self.engine.device)
            n = len(ids) - 1
            with torch.no_grad():
                logp, _, _ = self.engine(
                    tokens,
                    torch.arange(n + 1, device=self.engine.device)[None],
                    torch.arange(n, device=self.engine.device),
                    tokens[0, 1:],
                    1.0,
                )
            out.append(logp.tolist())
        return out

    # --- weights --------------------------------------------------------------------------------------------------------

    def listen(self) -> int:
        """Rank 0: a free port for the next weight group, held open until `connect_weights` uses it."""
        self._listener = listen()
        return self._listener.getsockname()[1]

    def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """Rank 0 opens the channel to the generators, on the port `listen` gave; the other ranks have no part in it."""
        if self.publisher is not None:
            self.publisher.close()
        self.publisher = Publisher(
            rendezvous, timeout_s, listener=self._listener, overlap=self.settings.engine.zero_stage < 3
        )

    def manifest(self, version: int) -> WeightManifest:
        return make_manifest(self.engine.full_specs(self.policy.weights()), version, self.settings.bucket_bytes)

    def publish(self, manifest: WeightManifest) -> int | None:
        """Broadcast the weights; rank 0 returns their checksum. WeightSyncError where a generator does not take part."""
        tensors = self.engine.full_weights(self.policy.weights())  # a collective under ZeRO-3: every rank's part in it
        if self.publisher is not None:
            return self.publisher.publish(manifest, tensors)
        return None

    # --- state ----------------------------------------------------------------------------------------------------------

    def save(self, hf: Path, engine: Path) -> None:
        """hf: a folder that from_pretrained and vLLM load, written by rank 0. engine: DeepSpeed's own, by all ranks."""
        self.engine.save(engine)
        weights = dict(self.engine.full_weights(self.policy.weights()))
        if self.rank == 0:
            self.policy.model.save_pretrained(hf, state_dict={k: v.cpu().contiguous() for k, v in weights.items()})

    def load(self, engine: Path) -> None:
        self.engine.load(engine)

    def state_dict(self) -> dict[str, object]:
        """What is not a tensor: step count, controller, ledger. JSON values, the same on every rank."""
        return {"steps": self.steps, "steering": self.steering.state_dict(), "ledger": dict(self.ledger.state)}

    def load_state_dict(self, state: dict) -> None:
        self.steps = int(state["steps"])
        self.steering.load_state_dict(state["steering"])
        self.ledger.state = {k: float(state["ledger"][k]) for k in Ledger.FIELDS}

    def close(self) -> None:
        if self.publisher is not None:
            self.publisher.close()
        self.engine.close()
