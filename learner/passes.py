"""Runs an iteration's micro-batches through the policy, and lays out what loss, entropy methods and ledger take of each.

No forward pass is taken twice at the same weights where its numbers serve again. At an iteration's first update the policy is the
one that was measured: its statistics are those of the measuring pass, and the graph of that pass is kept for the backward pass as
far as the memory of one micro-batch goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from learner.deepspeed_engine import DeepSpeedEngine
from learner.ledger.predicted import Fresh
from learner.ledger.states import States, state_weights
from learner.ledger.step_effect import WeighFn
from learner.microbatches.draws import token_uniform
from learner.objective import gradient_weight, reference_pull, weigh, with_reference
from learner.rank_settings import RankSettings
from learner.types import LossData, MicroBatch, TokenStats

if TYPE_CHECKING:
    from learner.adapters.adapter import Adapter


@dataclass
class Passes:
    """Runs the micro-batches of one iteration.

    frozen: the reference policy's forward, None without one. adapter: of an adapted model. kept: of micro-batches whose graph
    waits for its backward pass, by identity, (logp, entropy) with gradient. version, staleness: as of the RankBatch.
    """

    engine: DeepSpeedEngine
    settings: RankSettings
    temperature: float
    frozen: Callable[..., Any] | None = None
    adapter: Adapter | None = None
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict[int, tuple[Tensor, Tensor]])
    version: int = 0
    staleness: int = 0

    def keepable(self, update: Sequence[MicroBatch]) -> frozenset[int]:
        """Returns which micro-batches' graphs may be kept, by identity: together they have at most one micro-batch's slots."""
        if not self.engine.keeps_graphs or self.settings.learner.router_aux_coefficient or self._dropout:
            return frozenset()  # the routers' loss takes what the whole measuring pass counts, which has no dropout
        chosen: list[int] = []
        room = self.settings.learner.micro_batch_tokens
        for micro in update:
            if micro.tokens.size <= room:
                chosen.append(id(micro))
                room -= micro.tokens.size
        return frozenset(chosen)

    def measure(self, micro: MicroBatch, step: int, keep: bool = False) -> Fresh:
        """Measures the policy at the start of the iteration. keep: with gradient, for the first update's backward pass."""
        with torch.set_grad_enabled(keep):
            logp, entropy, kappa, entropy_grad_sq = self.forward(micro)
        if keep:
            self.kept[id(micro)] = logp, entropy
            logp, entropy = logp.detach(), entropy.detach()
        reference = None
        if self.frozen is not None:
            with torch.no_grad():
                reference, *_ = self.frozen(*self._inputs(micro), self.temperature, False)
        engine_logp, advantages = self._tensor(micro.engine_logprobs), self._tensor(micro.advantages)
        objective, importance = self.settings.objective, None
        advantages = with_reference(advantages, logp, reference, objective)
        weight, trajectory = self._tensor(micro.weight), self._tensor(micro.trajectory)
        if objective.importance.kind != "none":
            importance, _ = weigh(objective.importance, logp - engine_logp, trajectory)
        data, states = LossData(logp, advantages, weight, trajectory), None
        if self.staleness:
            age = self.version - self._tensor(micro.version)
            states = States(state_weights(logp - engine_logp, trajectory), age, self.staleness)
        return Fresh(
            stats=TokenStats(
                logp=logp,
                entropy=entropy,
                kappa=kappa,
                entropy_grad_sq=entropy_grad_sq,
                old_logp=logp,
                advantages=advantages,
                uniform=self._uniform(micro, step),
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
            states=states,
        )

    def trained(self, micro: MicroBatch, fresh: Fresh, step: int, moved: bool) -> tuple[Tensor, Tensor, TokenStats]:
        """Returns (logp, entropy) [N] with gradient and the current policy's statistics.

        moved: whether an optimiser step was taken since `measure`.
        """
        if (kept := self.kept.pop(id(micro), None)) is not None:
            return *kept, fresh.stats
        with self._dropped(micro, step):
            logp, entropy, *rest = self.forward(micro, statistics=moved)
        if not moved:
            return logp, entropy, fresh.stats
        return logp, entropy, self._stats(micro, fresh, step, logp.detach(), entropy.detach(), *rest)

    @property
    def _dropout(self) -> float:
        return 0.0 if self.adapter is None else self.adapter.settings.dropout

    def _dropped(self, micro: MicroBatch, step: int) -> AbstractContextManager[None]:
        """Returns the context of a pass with the adapter's dropout, whose random numbers follow from the first token's own."""
        if self.adapter is None or not self._dropout or not micro.trajectory.size:
            return nullcontext()
        draw = float(token_uniform(self.settings.seed, step, micro.trajectory[:1], micro.action_index[:1])[0])
        return self.adapter.dropout(int(draw * 2**53), self.engine.device)

    def now(self, micro: MicroBatch, fresh: Fresh, step: int) -> TokenStats:
        """Returns the current policy's statistics without a gradient."""
        with torch.no_grad():
            return self._stats(micro, fresh, step, *self.forward(micro))

    def _stats(
        self,
        micro: MicroBatch,
        fresh: Fresh,
        step: int,
        logp: Tensor,
        entropy: Tensor,
        kappa: Tensor,
        entropy_grad_sq: Tensor,
    ) -> TokenStats:
        """What is fixed at the start of the iteration comes from `fresh`."""
        objective = self.settings.objective
        return replace(
            fresh.stats,
            logp=logp,
            entropy=entropy,
            kappa=kappa,
            entropy_grad_sq=entropy_grad_sq,
            uniform=self._uniform(micro, step),
            gradient_weight=gradient_weight(logp, self.loss_data(micro, fresh), fresh.importance, objective),
        )

    def loss_data(self, micro: MicroBatch, fresh: Fresh) -> LossData:
        return LossData(
            old_logp=fresh.stats.logp,
            advantages=fresh.stats.advantages,
            weight=fresh.weight,
            trajectory=self._tensor(micro.trajectory),
            engine_logp=fresh.engine_logp,
            reference_logp=fresh.reference_logp,
        )

    def forward(self, micro: MicroBatch, statistics: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (logp, entropy, kappa, entropy_grad_sq), the last two only with statistics."""
        return self.engine(*self._inputs(micro), self.temperature, statistics)

    def entropy(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Returns (log-prob, entropy) [N] with a gradient that no update has."""
        logp, entropy, *_ = self.engine.outside_updates(*self._inputs(micro), self.temperature, False)
        return logp, entropy

    def weigh(self, power: float) -> WeighFn | None:
        """Returns what weighs states that older policies reached, at this power; None where nothing is to be weighed."""

        def weigh(micro: MicroBatch, logp: Tensor) -> Tensor:
            trajectory = self._tensor(micro.trajectory)
            return state_weights(logp - self._tensor(micro.engine_logprobs), trajectory) ** power

        return weigh if power else None

    def _inputs(self, micro: MicroBatch) -> tuple[Tensor, ...]:
        arrays = (micro.tokens, micro.positions, micro.predict, micro.targets)
        return tuple(self._tensor(a) for a in arrays)

    def _uniform(self, micro: MicroBatch, step: int) -> Tensor:
        return self._tensor(token_uniform(self.settings.seed, step, micro.trajectory, micro.action_index))

    def _tensor(self, array: np.ndarray) -> Tensor:
        # A copy: arrays out of Ray's object store are read-only.
        return torch.tensor(array, device=self.engine.device)
