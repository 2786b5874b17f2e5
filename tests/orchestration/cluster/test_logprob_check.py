"""The comparison of engine and trainer: what it measures, and which gap is too large."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from orchestration.cluster.logprob_check import compare_logprobs
from orchestration.errors import NumericsError


class Scorer:
    def __init__(self, name: str, *scores: list[float]) -> None:
        self.name, self.scores = name, list(scores)

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.scores


TRAINER = Scorer("trainer", [-1.0, -2.0], [-3.0])
CLOSE = Scorer("g0", [-1.0, -2.0], [-3.0])
FAR = Scorer("g1", [-1.0, -2.0], [-3.06])  # the mean of its three gaps is 0.02


def compare(*engines: Scorer, exact: bool = True, max_gap: float | None = None) -> dict[str, float]:
    compared = compare_logprobs(TRAINER, engines, [[1, 2, 3], [4, 5]], version=8, exact=exact, max_gap=max_gap)
    return asyncio.run(compared)


def test_gaps_are_over_all_tokens_of_all_engines() -> None:
    metrics = compare(CLOSE, FAR, exact=False)
    assert metrics == {"sync/logprob_gap_max": pytest.approx(0.06), "sync/logprob_gap_mean": pytest.approx(0.01)}


def test_in_fp32_the_largest_gap_counts_and_is_the_named_engines() -> None:
    with pytest.raises(
        NumericsError, match=r"version 8 log-probs of g1 .* by 0\.06 nats in one token, more than .* 0\.001"
    ):
        compare(CLOSE, FAR)
    assert compare(CLOSE) == {"sync/logprob_gap_max": 0.0, "sync/logprob_gap_mean": 0.0}
    assert compare(CLOSE, FAR, max_gap=0.1)["sync/logprob_gap_max"] == pytest.approx(0.06)


def test_below_fp32_the_mean_counts() -> None:
    compare(FAR, exact=False)
    with pytest.raises(
        NumericsError, match=r"by 0\.02 nats in the mean token, more than weights.max_logprob_gap = 0\.01"
    ):
        compare(FAR, exact=False, max_gap=0.01)


def test_nan_is_beyond_every_limit() -> None:
    with pytest.raises(NumericsError, match="nan"):
        compare(Scorer("g0", [math.nan, -2.0], [-3.0]), exact=False, max_gap=1e9)


def test_nothing_to_compare_is_no_gap() -> None:
    metrics = asyncio.run(compare_logprobs(Scorer("t"), [Scorer("g0")], [], version=0, exact=True, max_gap=None))
    assert metrics == {"sync/logprob_gap_max": 0.0, "sync/logprob_gap_mean": 0.0}
