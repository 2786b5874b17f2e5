"""Compares trainer, engines and plain transformers before anything is trained, and says which part disagrees.

The order is that of what rests on what: the trainer has to compute what the model does, alone and in batches; then the weights
are transferred; then every engine has to compute what the trainer does. Each disagreement has a sentence of its own, since each
has another cause and another remedy. An engine is measured before the transfer too: one that agreed before it and not after it
was given other weights, one that never agreed computes another model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from learner.model_check import ModelCheck
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


class CheckedTrainer(Scorer, Protocol):
    """Compares what it trains with what the model computes by itself."""

    async def check_model(self, sequences: Sequence[Sequence[int]]) -> ModelCheck: ...


@dataclass(frozen=True, slots=True)
class StartRules:
    """Holds what the comparison depends on.

    model          as the recipe names it
    exact_trainer  the trainer computes in fp32
    exact          the engines do so too
    precision      as the recipe names it
    max_gap        weights.max_logprob_gap
    """

    model: str
    exact_trainer: bool
    exact: bool
    precision: str
    max_gap: float | None


async def check_start(
    trainer: CheckedTrainer,
    engines: Callable[[], Sequence[NamedScorer]],
    transfer: Callable[[], Awaitable[object]],
    sequences: Sequence[Sequence[int]],
    rules: StartRules,
    *,
    untouched: bool,
) -> list[str]:
    """Transfers the learner's weights to every engine and compares; returns sentences that deserve an event and refuse nothing.

    Raises ModelRefused. engines: those in service now, since a transfer may replace some. untouched: they hold what they loaded
    themselves, so that a transfer changes nothing; otherwise they are not measured before it.
    """
    _refuse_trainer(await trainer.check_model(sequences), rules)
    measured = engines() if untouched else []
    expected, *scores = await asyncio.gather(
        trainer.sequence_logprobs(sequences), *(engine.sequence_logprobs(sequences) for engine in measured)
    )
    loaded = {engine.name: score for engine, score in zip(measured, scores, strict=True)}
    try:
        await transfer()
    except WeightSyncError as error:
        if not error.phase.startswith("load of"):
            raise  # the channel broke, which says nothing of the model
        raise ModelRefused(
            f"weight names: {error.member} cannot load the weights that the trainer sends of {rules.model}: {error.detail}; its "
            "names or shapes for this model are not those of transformers, so this model cannot be trained with this vLLM"
        ) from error
    present = engines()
    scores = await asyncio.gather(*(engine.sequence_logprobs(sequences) for engine in present))
    sent = {engine.name: score for engine, score in zip(present, scores, strict=True)}
    return _refuse_engines(expected, loaded, sent, rules)


def _refuse_trainer(check: ModelCheck, rules: StartRules) -> None:
    """Raises ModelRefused where the trainer's log-probs depend on the batch, or are not the model's."""
    head = gap_of("the trainer", check.plain, check.head)
    if HEAD.exceeded(head):
        raise ModelRefused(
            f"logit scale or head: the trainer's log-probs of {rules.model} differ from log_softmax of model(input_ids).logits "
            f"{HEAD.compared(head)}: the model scales, caps or otherwise changes its logits in a way that Isentrope does not "
            "compute, so this model cannot be trained"
        )
    limit = Limit(MAX_GAP_EXACT, True) if rules.exact_trainer else Limit(MAX_MEAN_GAP_BATCH, False)
    start = [logp[:BORDER] for logp in check.alone]
    if check.packed is not None:
        packed = gap_of("packed", start, [logp[:BORDER] for logp in check.packed])
        if limit.exceeded(packed):
            raise ModelRefused(
                f"packing borders: log-probs of packed trajectories of {rules.model} differ from those of the same trajectories "
                f"alone {limit.compared(packed)}: its layers do not see where a packed trajectory ends; set "
                "learner.packing=false"
            )
        return
    padded = gap_of("padded", check.alone, check.padded)
    if limit.exceeded(padded):
        raise ModelRefused(
            f"padding: log-probs of rows of {rules.model} that are padded on the right differ from those of the same rows alone "
            f"{limit.compared(padded)}; set learner.micro_batch_tokens=1, which gives every trajectory a micro-batch of its own"
        )


def _refuse_engines(
    expected: list[list[float]],
    loaded: dict[str, list[list[float]]],
    sent: dict[str, list[list[float]]],
    rules: StartRules,
) -> list[str]:
    """Raises ModelRefused where an engine is not the trainer. loaded, sent: log-probs by name before and after the transfer."""
    limit = engine_limit(rules.exact, rules.max_gap, prompts=True)
    before = {name: gap_of(name, expected, score) for name, score in loaded.items()}
    after = {name: gap_of(name, expected, score) for name, score in sent.items()}
    change = Limit(limit.nats if rules.exact else min(limit.nats, MAX_MEAN_CHANGE), rules.exact)
    changed = [gap_of(name, loaded[name], score) for name, score in sent.items() if name in loaded]
    if (moved := change.worst([c for c in changed if not limit.of(after[c.name]) <= limit.of(before[c.name])])) and (
        not limit.exceeded(before[moved.name])
    ):
        name = moved.name
        raise ModelRefused(
            f"weight transfer: before a transfer of the same weights of {rules.model} the log-probs of {name} were "
            f"{before[name]} from the trainer's, after it they are {after[name]}: vLLM's engine does not become what it is sent "
            "(tied or fused weights, or a copy that stays stale), so this model cannot be trained with this vLLM"
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
