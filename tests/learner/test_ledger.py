"""The entropy ledger: the same row however the tokens were divided, and its running figures."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from builders import make_stats
from hypothesis import given
from hypothesis import strategies as st

from learner.ledger import Ledger, Tally, dh_per_step, policy_metrics, tally_policy, tally_update, update_metrics
from learner.types import Shaping

ENVS = ("a", "b")


def tally_of(parts: list[slice], n: int, seed: int, shaped: bool = False) -> Tally:
    """One Tally a part (a rank), reduced as the ranks reduce theirs."""
    stats = make_stats(n, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    engine = stats.logp + 0.2 * torch.randn(n, generator=generator, dtype=torch.float64)
    env = torch.randint(len(ENVS), (n,), generator=generator)
    ranks = []
    for part in parts:
        tally, mine = Tally(), stats.take(part)
        shaping = Shaping(advantages=mine.advantages * 2 + 0.1) if shaped else Shaping()
        tally_policy(tally, mine, shaping, engine[part], env[part], ENVS)
        tokens = {
            "ratio": (mine.logp - mine.old_logp).exp(),
            "clipped_high": mine.advantages > 0.5,
            "clipped_low": mine.advantages < -0.5,
            "kl": mine.old_logp.abs(),
        }
        tally_update(tally, mine.advantages.sum(), tokens, mine.advantages > 0 if shaped else None)
        ranks.append(tally)
    sums, peaks = zip(*(t.vectors() for t in ranks), strict=True)
    ranks[0].replace(torch.stack(sums).sum(0), torch.stack(peaks).amax(0))
    return ranks[0]


@given(st.integers(1, 40), st.lists(st.integers(0, 40), max_size=5), st.integers(0, 50), st.booleans())
def test_any_division_of_the_tokens_gives_the_row_of_the_whole(
    n: int, cuts: list[int], seed: int, shaped: bool
) -> None:
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]  # some of them empty
    found, whole = (tally_of(p, n, seed, shaped) for p in (parts, [slice(0, n)]))
    rows = [Ledger().row(t, 0.1, ENVS).metrics() | policy_metrics(t) | update_metrics(t, 2) for t in (found, whole)]
    assert rows[0].keys() == rows[1].keys()
    for key, value in rows[1].items():
        assert rows[0][key] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), key


def test_the_row_is_what_its_names_say() -> None:
    n, eta = 300, 0.02
    stats, tally = make_stats(n, 7), tally_of([slice(0, n)], n, 7, shaped=True)
    row = Ledger().row(tally, eta, ENVS)
    dh = dh_per_step(stats, stats.advantages * 2 + 0.1)
    assert row.entropy_exact == pytest.approx(float(stats.entropy.mean()))
    assert row.entropy_sampled == pytest.approx(float(-stats.logp.mean()))
    assert row.predicted_dh == pytest.approx(eta * float(dh.mean()))  # tokens of zero advantage are in it
    assert (stats.advantages == 0).any()
    for part, mask in (("positive", stats.advantages > 0), ("negative", stats.advantages < 0)):
        assert getattr(row, f"predicted_dh_{part}") == pytest.approx(eta * float(dh[mask].sum()) / n)
    assert row.realised_dh is None
    assert "entropy/realised_dh" not in row.metrics()
    env = torch.randint(2, (n,), generator=_after_engine(7, n))
    for i, name in enumerate(ENVS):
        assert row.by_env[name] == pytest.approx(float(stats.entropy[env == i].mean()))
    assert policy_metrics(tally)["advantage/std"] == pytest.approx(float(stats.advantages.std(correction=0)))
    made = update_metrics(tally, 4)
    assert made["loss"] == pytest.approx(float(stats.advantages.sum()) / 4)
    assert made["entropy/authority"] == pytest.approx(float((stats.advantages > 0).double().mean()))
    assert made["ratio/max"] == pytest.approx(float((stats.logp - stats.old_logp).exp().max()))
    assert made["tokens/trained"] == n
    assert update_metrics(tally_of([slice(0, n)], n, 7), 1)["entropy/authority"] == 1.0  # None: all tokens


def _after_engine(seed: int, n: int) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed + 1)
    torch.randn(n, generator=generator, dtype=torch.float64)
    return generator


@pytest.mark.parametrize("ratio", [0.89, 0.91, 1.0, 1.09, 1.11])
def test_the_share_of_ratios_outside_a_tenth(ratio: float) -> None:
    stats = make_stats(10)
    tally = Tally()
    engine = stats.logp.clone()
    engine[:4] -= math.log(ratio)
    tally_policy(tally, stats, Shaping(), engine, torch.zeros(10, dtype=torch.long), ENVS)
    metrics = policy_metrics(tally)
    assert metrics["gap/outside"] == pytest.approx(0.4 if abs(ratio - 1) > 0.1 else 0)
    assert metrics["gap/engine_max"] == pytest.approx(abs(math.log(ratio)), abs=1e-12)
    assert metrics["gap/engine_mean"] == pytest.approx(0.4 * abs(math.log(ratio)), abs=1e-12)


def simple(entropy: float, dh: float) -> Tally:
    tally = Tally()
    for key, value in (("tokens", 2.0), ("entropy", 2 * entropy), ("surprisal", 0.0)):
        tally.add(key, value)
    for key in ("dh_positive", "dh_negative", "dh_zero"):
        tally.add(key, 2 * dh / 3)
    return tally


def run(ledger: Ledger, pairs: list[tuple[float, float]]) -> list[float | None]:
    return [ledger.row(simple(h, dh), 1.0, ()).realised_dh for h, dh in pairs]


def test_a_realised_change_belongs_to_the_prediction_of_the_iteration_before() -> None:
    ledger = Ledger()
    assert run(ledger, [(1.0, 0.1), (1.2, 0.2), (1.6, -0.3)]) == pytest.approx([None, 0.2, 0.4])
    # so far: predicted 0.1 -> realised 0.2, predicted 0.2 -> realised 0.4; the third is still open
    assert (ledger.state["n"], ledger.state["x"], ledger.state["y"]) == pytest.approx((2, 0.3, 0.6))
    assert ledger.metrics() == {"entropy/cumulative": pytest.approx(3.8)}
    run(ledger, [(1.0, 0.0)])
    assert ledger.metrics()["entropy/regression_slope"] == pytest.approx(2.0)
    assert ledger.metrics()["entropy/regression_r"] == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(-0.5, 0.5)), min_size=5, max_size=30))
def test_the_running_regression_is_the_least_squares_line(pairs: list[tuple[float, float]]) -> None:
    ledger = Ledger()
    run(ledger, pairs)
    entropies = np.array([h for h, _ in pairs])
    x, y = np.array([dh for _, dh in pairs[:-1]]), np.diff(entropies)
    found = ledger.metrics()
    assert found["entropy/cumulative"] == pytest.approx(entropies.sum())
    if x.std() < 1e-3 or y.std() < 1e-3:
        return  # no line to speak of
    slope, _ = np.polyfit(x, y, 1)
    assert found["entropy/regression_slope"] == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert found["entropy/regression_r"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-6, abs=1e-6)


def test_a_regression_is_absent_while_it_is_undefined() -> None:
    ledger = Ledger()
    run(ledger, [(1.0, 0.1)] * 6)
    assert set(ledger.metrics()) == {"entropy/cumulative"}


@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(-0.5, 0.5)), max_size=10), st.integers(0, 10))
def test_a_ledger_resumed_from_its_state_goes_on_bit_for_bit(pairs: list[tuple[float, float]], cut: int) -> None:
    whole, first, second = Ledger(), Ledger(), Ledger()
    run(whole, pairs)
    run(first, pairs[:cut])
    saved = json.loads(json.dumps(first.state))
    second.state = {k: float(saved[k]) for k in Ledger.FIELDS}
    run(second, pairs[cut:])
    assert repr(second.state) == repr(whole.state)  # repr: the two NaN of a fresh ledger are equal
    assert second.metrics() == whole.metrics()


def test_an_environment_without_a_token_is_not_a_number_rather_than_zero() -> None:
    tally = Tally()
    stats = make_stats(4)
    tally_policy(tally, stats, Shaping(), stats.logp, torch.zeros(4, dtype=torch.long), ENVS)
    assert math.isnan(Ledger().row(tally, 1.0, ENVS).by_env["b"])
