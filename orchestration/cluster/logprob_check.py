"""Compares engine and trainer: log-probs at temperature 1 of the same tokens, which have to be of the same policy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from orchestration.errors import NumericsError

MAX_GAP_EXACT = 1e-3  # nats, of one token, in fp32
MAX_MEAN_GAP = 0.05  # nats, of the mean token, in bf16 and fp16, whose single tokens differ by more


class Scorer(Protocol):
    """Scores sequences under its weights."""

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]: ...


class NamedScorer(Scorer, Protocol):
    """Scores sequences, and is named in a message."""

    name: str


async def compare_logprobs(
    trainer: Scorer,
    engines: Sequence[NamedScorer],
    sequences: Sequence[Sequence[int]],
    *,
    version: int,
    exact: bool,
    max_gap: float | None,
) -> dict[str, float]:
    """Returns the largest and the mean gap in nats, as metrics. Raises NumericsError where it is beyond the limit.

    exact: the run is in fp32; the limit then bounds the largest gap, else the mean. max_gap: weights.max_logprob_gap.
    """
    expected, *scores = await asyncio.gather(
        trainer.sequence_logprobs(sequences), *(engine.sequence_logprobs(sequences) for engine in engines)
    )
    worst, total, count = (0.0, ""), 0.0, 0
    for engine, logprobs in zip(engines, scores, strict=True):
        gaps = [abs(a - b) for x, y in zip(expected, logprobs, strict=True) for a, b in zip(x, y, strict=True)]
        worst = max(worst, (max(gaps, default=0.0), engine.name))
        total, count = total + sum(gaps), count + len(gaps)
    mean = total / max(1, count)
    bounded, gap = ("one token", worst[0]) if exact else ("the mean token", mean)
    limit = max_gap or (MAX_GAP_EXACT if exact else MAX_MEAN_GAP)
    if not gap <= limit:  # so written that nan is beyond it too
        raise NumericsError(
            f"at version {version} log-probs of {worst[1]} differ from the trainer's by {gap:.3g} nats in {bounded}, more "
            f"than weights.max_logprob_gap = {limit:g}: engine and trainer do not run the same policy"
        )
    return {"sync/logprob_gap_max": worst[0], "sync/logprob_gap_mean": mean}
