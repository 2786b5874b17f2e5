"""Weights of states: against products taken token by token, and against the exact entropy of a small decision process."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.ledger.states import (
    CAP,
    MIN_EFFECTIVE,
    POWERS,
    States,
    chosen_power,
    state_metrics,
    state_weights,
    suffix,
    tally_states,
)
from learner.ledger.tally import Tally


@given(st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=6), min_size=0, max_size=5))
def test_a_states_weight_is_the_product_of_the_ratios_before_it_in_its_trajectory(ratios: list[list[float]]) -> None:
    flat = torch.tensor([x for r in ratios for x in r])
    trajectory = torch.tensor([i for i, r in enumerate(ratios) for _ in r], dtype=torch.int64)
    expected = [min(CAP, math.exp(sum(r[:t]))) for r in ratios for t in range(len(r))]
    assert state_weights(flat, trajectory).tolist() == pytest.approx(expected, rel=1e-5)


def policy(seed: int, moved: float = 0.0) -> Tensor:
    """Returns log-probs [prefixes of up to 2 tokens, 3]: a policy over three tokens, three steps long."""
    logits = torch.randn(13, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    other = torch.randn(13, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return (2 * logits + moved * other).log_softmax(-1)


def walk(depth: int = 3) -> list[tuple[tuple[int, ...], int]]:
    """Lists every prefix with its row."""
    prefixes: list[tuple[int, ...]] = [()]
    for _ in range(depth - 1):
        prefixes += [(*p, a) for p in prefixes if len(p) == max(map(len, prefixes)) for a in range(3)]
    return [(p, i) for i, p in enumerate(prefixes)]


def mean_entropy(pi: Tensor, visiting: Tensor) -> float:
    """Returns E over the states that `visiting` visits of the entropy of pi: exact, by enumeration."""
    rows = dict(walk())
    entropy = -(pi.exp() * pi).sum(-1)
    total = 0.0
    for prefix, row in rows.items():
        reach = math.exp(sum(float(visiting[rows[prefix[:k]], a]) for k, a in enumerate(prefix)))
        total += reach * float(entropy[row])
    return total / 3  # three states a trajectory


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_the_weighted_mean_is_that_of_the_policys_own_states(seed: int) -> None:
    mu, pi = policy(seed), policy(seed, moved=0.4)
    exact, mixture = mean_entropy(pi, pi), mean_entropy(pi, mu)
    rows, generator = dict(walk()), torch.Generator().manual_seed(seed)
    count = 20_000
    log_ratios, entropies = [], []
    entropy = -(pi.exp() * pi).sum(-1)
    row_of = torch.zeros(count, dtype=torch.int64)
    prefixes: list[tuple[int, ...]] = [()] * count
    for _ in range(3):
        actions = torch.multinomial(mu[row_of].exp(), 1, generator=generator)[:, 0]
        log_ratios.append((pi - mu)[row_of, actions])
        entropies.append(entropy[row_of])
        prefixes = [(*p, int(a)) for p, a in zip(prefixes, actions, strict=True)]
        row_of = torch.tensor([rows.get(p, 0) for p in prefixes])
    log_ratio, h = torch.stack(log_ratios, 1).flatten(), torch.stack(entropies, 1).flatten()
    w = state_weights(log_ratio, torch.arange(count).repeat_interleave(3))
    weighted = float((w * h).sum() / w.sum())
    noise = 4 * float(h.std()) / math.sqrt(count)
    assert abs(weighted - exact) < noise + 0.1 * abs(mixture - exact)
    assert abs(float(h.mean()) - mixture) < noise


def test_without_a_difference_every_state_counts_the_same() -> None:
    assert state_weights(torch.zeros(5), torch.tensor([0, 0, 1, 1, 1])).tolist() == [1.0] * 5


def test_sums_over_a_long_batch_are_exact_enough_and_carry_no_gradient() -> None:
    """The sum over all tokens before is taken away again: in float32 nothing would be left of a ratio behind a million others."""
    before = torch.full((400, 1000), 0.7)
    own = torch.tensor([0.1, -0.2, 0.05])
    log_ratio = torch.cat([before.flatten(), own]).requires_grad_()
    trajectory = torch.cat([torch.arange(400).repeat_interleave(1000), torch.full((3,), 400)])
    weight = state_weights(log_ratio, trajectory)
    assert not weight.requires_grad
    assert weight[-3:].tolist() == pytest.approx([1.0, math.exp(0.1), math.exp(-0.1)], rel=1e-6)


def tallied(weight: Tensor, age: Tensor, entropy: Tensor) -> Tally:
    tally = Tally()
    member = torch.ones(1, len(weight), dtype=torch.float64)
    tally_states(tally, States(weight, age, 2), member, ("a",), [("entropy", entropy)])
    return tally


@given(st.lists(st.floats(-6, 2), min_size=1, max_size=30), st.integers(0, 2**31))
def test_the_largest_power_with_enough_effective_tokens_is_chosen(logs: list[float], seed: int) -> None:
    w = torch.tensor(logs, dtype=torch.float64).exp()
    generator = torch.Generator().manual_seed(seed)
    age, entropy = torch.randint(3, (len(w),), generator=generator), torch.rand(len(w), generator=generator)
    tally = tallied(w, age, entropy)
    shares = [float((w**p).sum() ** 2 / ((w ** (2 * p)).sum() * len(w))) for p in POWERS]
    chosen = chosen_power(tally)
    assert chosen == next(p for p, share in zip(POWERS, shares, strict=True) if share >= MIN_EFFECTIVE)
    metrics = state_metrics(tally, chosen, 0.5)
    v = w**chosen
    assert metrics["entropy/dead_time"] == pytest.approx(float((v * age).sum() / v.sum()))
    for k in range(3):
        assert metrics[f"staleness/tokens/{k}"] == pytest.approx(float((age == k).double().mean()))
        if (age == k).any():
            assert metrics[f"staleness/entropy/{k}"] == pytest.approx(float(entropy[age == k].mean()), rel=1e-6)
    if chosen:
        mean = tally.sums[f"entropy{suffix(chosen)}/a"] / tally.sums[f"states{suffix(chosen)}"]
        assert mean == pytest.approx(float((v * entropy).sum() / v.sum()), rel=1e-6)


def test_one_token_that_carries_the_mean_takes_the_correction_away() -> None:
    heavy = torch.tensor([1e6] + [1.0] * 99, dtype=torch.float64)
    assert chosen_power(tallied(heavy, torch.zeros(100), torch.ones(100))) == 0.0
    assert chosen_power(tallied(torch.ones(100), torch.zeros(100), torch.ones(100))) == 1.0
    assert chosen_power(Tally()) == 0.0
    assert chosen_power(tallied(torch.tensor([1.0, 0.0]), torch.zeros(2), torch.ones(2))) == 1.0  # half is enough


def test_tokens_beyond_the_bound_count_with_the_oldest() -> None:
    """After a resume with a lower bound there are some; every rank has the same keys all the same."""
    tally = tallied(torch.ones(4), torch.tensor([0, 2, 3, 7]), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    metrics = state_metrics(tally, 0.0, 0.5)
    assert {k: v for k, v in metrics.items() if k.startswith("staleness/")} == {
        "staleness/tokens/0": 0.25, "staleness/entropy/0": 0.0, "staleness/tokens/1": 0.0, "staleness/tokens/2": 0.75,
        "staleness/entropy/2": 2.0,
    }  # fmt: skip
    assert metrics["entropy/dead_time"] == 3.0
