"""Compares trainer, engines and plain transformers before anything is trained, and says which part disagrees.

The order is that of what rests on what: the trainer has to compute what the model does, alone and in batches; then the weights
are transferred; then every engine has to compute what the trainer does. Each disagreement has a sentence of its own, since each
has another cause and another remedy. An engine is measured before the transfer too: one that agreed before it and not after it
does not become what it is sent, one that never agreed computes another model. The transfer is made twice, first of other weights:
a copy that an engine keeps of those it was loaded with would agree with a transfer of the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from learner.settings import Mode, RowLayout, TrainerPrecision
from learner.types import ModelCheck
from learner.weights.protocol import WeightSyncError
from orchestration.cluster.logprob_check import MAX_GAP_EXACT, Gap, Limit, NamedScorer, Scorer, engine_limit, gap_of
from orchestration.errors import ModelRefused

# The head's product is float32 on both sides, whatever the precision, and what follows it is rounded in float32: 1e-6 as a rule.
HEAD = Limit(MAX_GAP_EXACT, exact=True)
# A sequence in a batch against the same alone, in bf16 and fp16: SmolLM2-135M in bf16 is at .006 packed and .003 padded.
MAX_MEAN_GAP_BATCH = 0.05
BORDER = (
    16  # tokens after a border that are compared: a leak is largest there, and further tokens would dilute the mean
)
# The same engine on the same tokens before and after a transfer of the same weights: equal bits, but for kernels that add up in
# varying order.
MAX_MEAN_CHANGE = 0.02
ROUNDING = 0.5  # nats of the mean token, that no rounding in bf16 or fp16 explains
NOT_WHAT_IT_IS_SENT = (
    "vLLM's engine does not become what it is sent (tied or fused weights, or a copy that stays as it was), so this model cannot "
    "be trained with this vLLM"
)
LAYOUTS: dict[RowLayout, str] = {
    "padded": "batches are padded",
    "packed": "batches are packed",
    "shared": "batches are packed, and a prompt is computed once for its responses where that saves enough",
}
Scores = dict[str, list[list[float]]]  # by the engine's name


class CheckedTrainer(Scorer, Protocol):
    """Compares what it trains with what the model computes by itself."""

    async def check_model(self, sequences: Sequence[Sequence[int]]) -> ModelCheck: ...

    async def scale_weights(self, factor: float) -> None:
        """Multiplies the weights, until the inverse factor is given."""
        ...


@dataclass(frozen=True, slots=True)
class StartRules:
    """Holds what the comparison depends on.

    model      as the recipe names it
    trainer    the precision that the trainer computes in
    exact      trainer and engines compute in fp32
    precision  the mode, as the recipe names it
    max_gap    weights.max_logprob_gap
    packing    learner.packing; None packs batches where packed and single trajectories have the same log-probs
    sharing    learner.prefix_sharing; None shares prompts, where the trainer compares that, if it finds the same
    """

    model: str
    trainer: TrainerPrecision
    exact: bool
    precision: Mode
    max_gap: float | None
    packing: bool | None
    sharing: bool | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Holds what a comparison that refused nothing found. remarks: sentences that deserve an event; layout: what batches may be."""

    remarks: list[str]
    layout: RowLayout


@dataclass(frozen=True, slots=True)
class StartCheck:
    """Compares a trainer with engines.

    engines    those in service now, since a transfer may replace some
    transfer   sends the trainer's present weights to every engine
    sequences  the tokens to compare on
    """

    trainer: CheckedTrainer
    engines: Callable[[], Sequence[NamedScorer]]
    transfer: Callable[[], Awaitable[object]]
    sequences: Sequence[Sequence[int]]
    rules: StartRules

    async def run(self, untouched: bool) -> Agreement:
        """Leaves every engine with the trainer's weights. Raises ModelRefused.

        untouched: engines hold what they loaded themselves, so that a transfer changes nothing; otherwise what transfers do was
        seen when they did, and they are not measured before this one.
        """
        layout = _refuse_trainer(await self.trainer.check_model(self.sequences), self.rules)
        expected = await self.trainer.sequence_logprobs(self.sequences)
        loaded: Scores = {}
        if untouched:
            loaded = await self._scores()
            if self.rules.trainer != "fp16":
                _refuse_stale(expected, loaded, *await self._with_other_weights(), self.rules)
        await self._transfer()
        return Agreement(_refuse_engines(expected, loaded, await self._scores(), self.rules), layout)

    async def _with_other_weights(self) -> tuple[list[list[float]], Scores]:
        """Returns the log-probs of the trainer and of every engine with halved weights: an engine that kept a copy of its old
        ones somewhere agrees after a transfer of the same, and not after one of others."""
        await self.trainer.scale_weights(0.5)
        try:
            await self._transfer()
            return await self.trainer.sequence_logprobs(self.sequences), await self._scores()
        finally:
            await self.trainer.scale_weights(2.0)

    async def _scores(self) -> Scores:
        present = self.engines()
        scores = await asyncio.gather(*(engine.sequence_logprobs(self.sequences) for engine in present))
        return {engine.name: score for engine, score in zip(present, scores, strict=True)}

    async def _transfer(self) -> None:
        try:
            await self.transfer()
        except WeightSyncError as error:
            if not error.phase.startswith("load of"):
                raise  # the channel broke, which says nothing of the model
            raise ModelRefused(
                f"weight names: {error.member} cannot load the weights that the trainer sends of {self.rules.model}: "
                f"{error.detail}; vLLM's names or shapes for this model are not those of transformers, so this model cannot be "
                "trained with this vLLM"
            ) from error


def _refuse_trainer(check: ModelCheck, rules: StartRules) -> RowLayout:
    """Returns what batches may be. Raises ModelRefused where the trainer's log-probs depend on the batch, or are not
    the model's."""
    head = gap_of("the trainer", check.plain, check.head)
    if HEAD.exceeded(head):
        raise ModelRefused(
            f"logit scale or head: the trainer's log-probs of {rules.model} differ from log_softmax of model(input_ids).logits "
            f"{HEAD.compared(head)}: the model scales, caps or otherwise changes its logits in a way that Isentrope does not "
            "compute, so this model cannot be trained"
        )
    limit = Limit(MAX_GAP_EXACT, True) if rules.trainer == "fp32" else Limit(MAX_MEAN_GAP_BATCH, False)
    start = [logp[:BORDER] for logp in check.alone]
    if check.packed is not None:
        packed = gap_of("packed", start, [logp[:BORDER] for logp in check.packed])
        if not limit.exceeded(packed):
            return "shared" if _shares(check, rules, limit) else "packed"
        if rules.packing:
            raise ModelRefused(
                f"packing borders: log-probs of packed trajectories of {rules.model} differ from those of the same trajectories "
                f"alone {limit.compared(packed)}: its layers do not see where a packed trajectory ends; set "
                "learner.packing=false"
            )
    padded = gap_of("padded", check.alone, check.padded)
    if limit.exceeded(padded):
        raise ModelRefused(
            f"padding: log-probs of rows of {rules.model} that are padded on the right differ from those of the same rows alone "
            f"{limit.compared(padded)}; set learner.micro_batch_tokens=1, which gives every trajectory a micro-batch of its own"
        )
    _shares(replace(check, shared=None), rules, limit)
    return "padded"


def _shares(check: ModelCheck, rules: StartRules, limit: Limit) -> bool:
    """Returns whether prompts may be shared. Raises ModelRefused where they are to be and cannot."""
    if check.shared is None:
        if rules.sharing:
            raise ModelRefused(
                f"prefix sharing: {rules.model} cannot be given a prompt once for several responses, which takes packed rows, "
                "attention by sdpa and no mask but the causal one and a window; set learner.prefix_sharing=false"
            )
        return False
    alone, shared = ([logp[:BORDER] for logp in logps] for logps in check.shared)
    gap = gap_of("shared", alone, shared)
    if not limit.exceeded(gap):
        return True
    if rules.sharing:
        raise ModelRefused(
            f"prefix sharing: log-probs of responses of {rules.model} whose prompt stands once in a row differ from those of the "
            f"same trajectories alone {limit.compared(gap)}: its layers take more from earlier tokens than attention at their "
            "positions; set learner.prefix_sharing=false"
        )
    return False


def _refuse_stale(
    expected: list[list[float]], loaded: Scores, other: list[list[float]], sent: Scores, rules: StartRules
) -> None:
    """Raises ModelRefused where an engine that agreed with the trainer does not do so with other weights. other, sent: log-probs
    of the trainer and of the engines with these. One that never agreed is not this comparison's matter."""
    limit = engine_limit(rules.exact, rules.max_gap, prompts=True)
    before = {name: gap_of(name, expected, score) for name, score in loaded.items()}
    gaps = [gap_of(name, other, score) for name, score in sent.items()]
    worst = limit.worst([gap for gap in gaps if gap.name not in before or not limit.exceeded(before[gap.name])])
    if worst is not None:
        agreed = (
            f" were {before[worst.name]} from the trainer's with the weights it loaded itself, and" if before else ""
        )
        raise ModelRefused(
            f"weight transfer: log-probs of {worst.name} for {rules.model}{agreed} are {worst} from them after a transfer of other "
            f"weights (all of them halved): {NOT_WHAT_IT_IS_SENT}"
        )


def _refuse_engines(expected: list[list[float]], loaded: Scores, sent: Scores, rules: StartRules) -> list[str]:
    """Raises ModelRefused where an engine is not the trainer. loaded, sent: log-probs before and after the transfer."""
    limit = engine_limit(rules.exact, rules.max_gap, prompts=True)
    before = {name: gap_of(name, expected, score) for name, score in loaded.items()}
    after = {name: gap_of(name, expected, score) for name, score in sent.items()}
    change = Limit(limit.nats if rules.exact else min(limit.nats, MAX_MEAN_CHANGE), rules.exact)
    changed = [gap_of(name, loaded[name], score) for name, score in sent.items() if name in loaded]
    further = [c for c in changed if not limit.of(after[c.name]) <= limit.of(before[c.name])]
    moved = change.worst([c for c in further if not limit.exceeded(before[c.name])])
    if moved is not None:
        raise ModelRefused(
            f"weight transfer: log-probs of {moved.name} for {rules.model} were {before[moved.name]} from the trainer's before a "
            f"transfer of the same weights, and are {after[moved.name]} from them after it: {NOT_WHAT_IT_IS_SENT}"
        )
    worst = limit.worst(list(after.values()))
    if worst is not None:
        raise ModelRefused(_disagreement(worst, before.get(worst.name), limit, rules))
    return [
        f"{name} was {gap} from the trainer with the weights that it loaded itself, and agrees since the first transfer"
        for name, gap in before.items()
        if limit.exceeded(gap)
    ]


def _disagreement(after: Gap, before: Gap | None, limit: Limit, rules: StartRules) -> str:
    """Describes an engine that disagrees though its transfer changed nothing, or was not measured before it."""
    found = f"log-probs of {after.name} for {rules.model} differ from the trainer's {limit.compared(after)}"
    if before is None:
        return (
            f"weight transfer or implementation: {found} (weights.max_logprob_gap) after a transfer, before which it held another "
            "run's weights: start this run by itself, which says which of the two it is"
        )
    text = (
        f"implementation: {found} (weights.max_logprob_gap), and were {before} from them before the transfer: vLLM and "
        "transformers compute different models from the same weights; try model.attention=eager"
    )
    if rules.exact:
        return text
    if limit.of(after) > ROUNDING:
        return f"{text}; rounding in {rules.precision} does not explain as much"
    return (
        f"{text}, and precision=fp32, which says whether it is rounding in {rules.precision}: if fp32 agrees, raise "
        "weights.max_logprob_gap, which bounds each generator's mean"
    )
