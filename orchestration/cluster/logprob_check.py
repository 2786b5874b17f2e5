"""Compares engine and trainer: log-probs at temperature 1 of the same tokens, which have to be of the same policy.

Every member is held to the limit by itself: a mean over all of them hides one that is wrong among many that are right.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.health.lifeline import MemberDied
from orchestration.errors import NumericsError

MAX_GAP_EXACT = 1e-3  # nats, of one token, in fp32
# Nats, of a member's mean token, in bf16 and fp16, whose single tokens differ by more. SmolLM2-135M in bf16 on a CPU, engine
# against trainer: a trajectory .03 to .06; a prompt, which has tokens that the model would not sample, .03 to .09. The trainer is
# .04 to .07 from its own fp32, so this is rounding. Engines with wrong weights were .7 or more off.
MAX_MEAN_GAP = 0.1  # of trajectories, after an update
MAX_MEAN_GAP_PROMPTS = 0.2  # at the start


class Scorer(Protocol):
    """Scores sequences under its weights."""

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]: ...


class NamedScorer(Scorer, Protocol):
    """Scores sequences, and is named in a message."""

    name: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Says how far apart two computations of the same log-probs are, in nats. name: of the member that was compared."""

    name: str
    largest: float
    mean: float
    tokens: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} nats in the mean token and {self.largest:.3g} in one token"


@dataclass(frozen=True, slots=True)
class Limit:
    """Bounds a gap: its largest token where both sides compute in fp32 (exact), else its mean."""

    nats: float
    exact: bool

    def of(self, gap: Gap) -> float:
        """Returns the part of a gap that is bounded."""
        return gap.largest if self.exact else gap.mean

    def exceeded(self, gap: Gap) -> bool:
        return not self.of(gap) <= self.nats  # so written that nan is beyond it too

    def worst(self, gaps: Sequence[Gap]) -> Gap | None:
        """Returns the gap furthest beyond the limit; None where all are within it."""
        beyond = [gap for gap in gaps if self.exceeded(gap)]
        return max(beyond, key=lambda gap: math.inf if math.isnan(self.of(gap)) else self.of(gap), default=None)

    def compared(self, gap: Gap) -> str:
        """Writes the bounded part of a gap beside the limit: "by 0.06 nats in one token, more than ..."."""
        where = "one token" if self.exact else f"the mean of {gap.tokens} tokens"
        return f"by {self.of(gap):.3g} nats in {where}, more than {self.nats:g}"


def engine_limit(exact: bool, max_gap: float | None, *, prompts: bool = False) -> Limit:
    """Returns the limit between engine and trainer. max_gap: weights.max_logprob_gap. prompts: the tokens were not sampled."""
    usual = MAX_GAP_EXACT if exact else MAX_MEAN_GAP_PROMPTS if prompts else MAX_MEAN_GAP
    return Limit(max_gap or usual, exact)


def gap_of(name: str, expected: Sequence[Sequence[float]], actual: Sequence[Sequence[float]]) -> Gap:
    """Compares the log-probs of the same tokens."""
    gaps = [abs(a - b) for x, y in zip(expected, actual, strict=True) for a, b in zip(x, y, strict=True)]
    largest = math.nan if any(map(math.isnan, gaps)) else max(gaps, default=0.0)
    return Gap(name, largest, sum(gaps) / max(1, len(gaps)), len(gaps))


async def compare_logprobs(
    expected: Sequence[Sequence[float]],
    engines: Sequence[NamedScorer],
    sequences: Sequence[Sequence[int]],
    *,
    version: int,
    exact: bool,
    max_gap: float | None,
) -> tuple[dict[str, float], list[MemberDied], str]:
    """Compares every engine with the trainer, whose log-probs of the sequences are `expected`.

    Returns metrics (the largest gap of any engine within the limit and the mean over all of them, in nats), the engines to replace
    (dead, or beyond the limit where others are not), and a sentence about the worst beyond it, or "".

    Raises NumericsError, which names the worst, where all of them are beyond the limit: in fp32 by their largest gap, else by
    their own mean. exact: the run is in fp32. max_gap: weights.max_logprob_gap.
    """
    scores = await asyncio.gather(*(engine.sequence_logprobs(sequences) for engine in engines), return_exceptions=True)
    deaths: list[MemberDied] = []
    gaps: list[Gap] = []
    for engine, score in zip(engines, scores, strict=True):
        if isinstance(score, MemberDied):
            deaths.append(score)
        elif isinstance(score, BaseException):
            raise score
        else:
            gaps.append(gap_of(engine.name, expected, score))
    limit, sentence = engine_limit(exact, max_gap), ""
    if worst := limit.worst(gaps):
        beyond = [gap for gap in gaps if limit.exceeded(gap)]
        sentence = (
            f"at version {version} log-probs of {worst.name} differ from the trainer's {limit.compared(worst)} "
            f"(weights.max_logprob_gap); {len(beyond)} of {len(gaps)} generators are beyond the limit: engine and trainer do not "
            "run the same policy"
        )
        if len(beyond) == len(gaps):
            raise NumericsError(sentence)
        deaths += [
            MemberDied(gap.name, f"its log-probs differ from the trainer's {limit.compared(gap)}") for gap in beyond
        ]
        gaps = [gap for gap in gaps if gap not in beyond]
    tokens = sum(gap.tokens for gap in gaps)
    metrics = {
        "sync/logprob_gap_max": max((gap.largest for gap in gaps), default=0.0),
        "sync/logprob_gap_mean": sum(gap.mean * gap.tokens for gap in gaps) / max(1, tokens),
    }
    return metrics, deaths, sentence
