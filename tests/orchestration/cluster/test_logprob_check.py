"""The comparison of engine and trainer: what it measures, and which gap is too large."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from actors.health.lifeline import MemberDied
from orchestration.cluster.logprob_check import compare_logprobs, engine_limit
from orchestration.errors import NumericsError


class Scorer:
    def __init__(self, name: str, *scores: list[float]) -> None:
        self.name, self.scores = name, list(scores)

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.scores


TRAINER = [[-1.0, -2.0], [-3.0]]
CLOSE = Scorer("g0", [-1.0, -2.0], [-3.0])
FAR = Scorer("g1", [-1.0, -2.0], [-3.06])  # the mean of its three gaps is 0.02


class Dead(Scorer):
    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        raise MemberDied(self.name, "killed")


def compare(
    *engines: Scorer, exact: bool = True, max_gap: float | None = None
) -> tuple[dict[str, float], list[MemberDied]]:
    compared = compare_logprobs(TRAINER, engines, [[1, 2, 3], [4, 5]], version=8, exact=exact, max_gap=max_gap)
    metrics, deaths, sentence = asyncio.run(compared)
    assert bool(sentence) == any("differ from" in death.detail for death in deaths)
    return metrics, deaths


def test_gaps_are_over_all_tokens_of_all_engines() -> None:
    metrics, deaths = compare(CLOSE, FAR, exact=False)
    assert metrics == {"sync/logprob_gap_max": pytest.approx(0.06), "sync/logprob_gap_mean": pytest.approx(0.01)}
    assert deaths == []


def test_in_fp32_the_largest_gap_counts_and_is_the_named_engines() -> None:
    with pytest.raises(
        NumericsError,
        match=r"version 8 log-probs of g1 .* by 0\.06 nats in one token, more than 0\.001 .*; 1 of 1 generators",
    ):
        compare(FAR)
    zero = {"sync/logprob_gap_max": 0.0, "sync/logprob_gap_mean": 0.0}
    assert compare(CLOSE) == (zero, [])
    metrics, (death,) = compare(CLOSE, FAR)
    assert (metrics, death.name) == (zero, "g1")
    assert compare(CLOSE, FAR, max_gap=0.1)[0]["sync/logprob_gap_max"] == pytest.approx(0.06)


def test_below_fp32_the_mean_counts() -> None:
    compare(FAR, exact=False)
    with pytest.raises(
        NumericsError, match=r"by 0\.02 nats in the mean of 3 tokens, more than 0\.01 \(weights.max_log"
    ):
        compare(FAR, exact=False, max_gap=0.01)


@pytest.mark.parametrize("exact", [True, False])
def test_one_member_among_many_is_named_and_to_be_replaced(exact: bool) -> None:
    """One of 16 generators is .7 nats off on every token: .0484 in the mean over all of them."""
    engines = [Scorer(f"generator {i}", *shifted(0.7 if i == 5 else 0.0005)) for i in range(16)]
    metrics, (death,) = compare(*engines, exact=exact)
    assert death.name == "generator 5" and "by 0.7 nats" in death.detail
    assert metrics["sync/logprob_gap_max"] == pytest.approx(0.0005)
    near = [Scorer(f"generator {i}", *shifted(0.0484 if i == 5 else 0.0)) for i in range(16)]
    assert compare(*near, exact=False)[0]["sync/logprob_gap_mean"] == pytest.approx(0.0484 / 16)


def test_who_dies_while_it_is_asked_is_to_be_replaced_and_the_others_are_compared() -> None:
    metrics, (death,) = compare(Dead("g0"), CLOSE)
    assert death.name == "g0"
    assert metrics["sync/logprob_gap_max"] == 0.0
    with pytest.raises(NumericsError, match="1 of 1 generators"):
        compare(Dead("g0"), FAR)
    assert len(compare(Dead("g0"), Dead("g1"))[1]) == 2


def shifted(by: float) -> list[list[float]]:
    return [[x + by for x in row] for row in TRAINER]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("at", [0, 1])
def test_nan_is_beyond_every_limit(exact: bool, at: int) -> None:
    scores = [-1.0, -2.0]
    scores[at] = math.nan
    with pytest.raises(NumericsError, match="nan"):
        compare(Scorer("g0", scores, [-3.0]), exact=exact, max_gap=1e9)


def test_nothing_to_compare_is_no_gap() -> None:
    metrics = asyncio.run(compare_logprobs([], [Scorer("g0")], [], version=0, exact=True, max_gap=None))
    assert metrics == ({"sync/logprob_gap_max": 0.0, "sync/logprob_gap_mean": 0.0}, [], "")


def test_at_the_start_prompts_have_a_limit_of_their_own_below_fp32() -> None:
    assert engine_limit(True, None, prompts=True) == engine_limit(True, None)
    assert engine_limit(False, None, prompts=True).nats > engine_limit(False, None).nats
    assert engine_limit(False, 0.3, prompts=True).nats == engine_limit(False, 0.3).nats == 0.3
