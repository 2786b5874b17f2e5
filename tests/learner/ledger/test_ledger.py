"""The entropy ledger: the same row however the tokens were divided, and its running statistics."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.builders import make_stats

from learner.ledger.history import Ledger, policy_metrics, update_metrics
from learner.ledger.predicted import Fresh, tally_policy, tally_shaping, tally_update
from learner.ledger.tally import Tally
from learner.types import Observed, Shaping, TokenStats

ENVS = ("a", "b")


def fresh_of(n: int, seed: int) -> Fresh:
    stats = make_stats(n, seed, envs=len(ENVS))
    generator = torch.Generator().manual_seed(seed + 1)
    engine = stats.logp + 0.2 * torch.randn(n, generator=generator, dtype=torch.float64)
    weight = torch.rand(n, generator=generator, dtype=torch.float64)
    weight[3::4] = 0.0  # of responses that are measured and not trained on
    correct, first, last = (torch.rand(n, generator=generator) < p for p in (0.4, 0.2, 0.3))
    importance, pull = torch.rand(n, generator=generator, dtype=torch.float64), stats.uniform - 0.6
    return Fresh(stats, weight, engine, correct, first, last, stats.logp - 0.3, importance, pull)


def part_of(fresh: Fresh, index: slice) -> Fresh:
    rest = (getattr(fresh, f.name)[index] for f in fields(Fresh) if f.name not in ("stats", "states"))
    return Fresh(fresh.stats.take(index), *rest)


def shaping_of(stats: TokenStats) -> Shaping:
    return Shaping(advantages=stats.advantages * 2 + 0.1, bonus=0.2, touched=stats.advantages > 0)


def tallies_of(parts: list[slice], n: int, seed: int) -> tuple[Tally, Tally, Tally]:
    """Returns the tallies (before the updates, planned, updated), one Tally per part (rank), reduced as the ranks reduce theirs."""
    full = fresh_of(n, seed)
    ranks: list[tuple[Tally, Tally, Tally]] = []
    for part in parts:
        fresh, made = part_of(full, part), (Tally(), Tally(), Tally())
        s = fresh.stats
        tally_policy(made[0], fresh, (Shaping(advantages=s.advantages - 0.3 * s.centred), 0.3), ENVS)
        tally_shaping(made[1], fresh, shaping_of(s))
        ratio = (s.logp - s.old_logp).exp()
        tokens = {
            "ratio": ratio,
            "clipped_high": s.advantages > 0.5,
            "clipped_low": s.advantages < -0.5,
            "withheld": ratio,
            "kl": s.old_logp.abs(),
            "importance": s.uniform,
            "limited": s.uniform > 0.5,
        }
        tally_update(made[2], s.advantages.sum(), tokens, s, shaping_of(s), 0.01 * fresh.weight)
        ranks.append(made)
    for column in zip(*ranks, strict=True):
        sums, peaks = zip(*(t.vectors() for t in column), strict=True)
        column[0].replace(torch.stack(sums).sum(0), torch.stack(peaks).amax(0))
        for key in column[0].values:
            column[0].values[key] = [v for t in column for v in t.values[key]]
    return ranks[0]


def metrics_of(tallies: tuple[Tally, Tally, Tally], eta: float = 0.1) -> dict[str, float]:
    ledger = Ledger()
    row = ledger.row(tallies[0], 2, ENVS)
    observed = {over: row.observed(ENVS, over) for over in ("all", "successful")}
    more = {f"{over}/{f.name}": getattr(o, f.name) for over, o in observed.items() for f in fields(Observed)}
    return row.metrics | ledger.attribute(tallies[1], row, eta) | update_metrics(tallies[2], 2, True) | more


@given(st.integers(1, 40), st.lists(st.integers(0, 40), max_size=5), st.integers(0, 50))
def test_any_division_of_the_tokens_gives_the_row_of_the_whole(n: int, cuts: list[int], seed: int) -> None:
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]  # some of them empty
    actual, full = (metrics_of(tallies_of(p, n, seed)) for p in (parts, [slice(0, n)]))
    assert actual.keys() == full.keys()
    for key, value in full.items():
        assert actual[key] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), key


def test_the_row_is_what_its_names_say() -> None:
    n, eta = 300, 0.02
    fresh, tallies = fresh_of(n, 7), tallies_of([slice(0, n)], n, 7)
    s, w = fresh.stats, fresh.weight
    actual = metrics_of(tallies, eta)

    def close(key: str, value: Any) -> None:
        assert actual[key] == pytest.approx(float(value), rel=1e-6, abs=1e-9), key

    close("entropy/exact", s.entropy.mean())
    close("entropy/sampled", -s.logp.mean())
    close("entropy/successful", s.entropy[fresh.correct].mean())
    close("entropy/failed", s.entropy[~fresh.correct].mean())
    close("entropy/first", s.entropy[fresh.first].mean())
    close("entropy/last", s.entropy[fresh.last].mean())
    for i, name in enumerate(ENVS):
        close(f"entropy/{name}", s.entropy[s.env == i].mean())
    learnt = w > 0  # entropy is of all responses; what advantages say, of those that are trained on
    assert 0 < learnt.sum() < n
    close("entropy/covariance", np.cov(s.advantages[learnt].numpy(), s.logp[learnt].numpy(), bias=True)[0, 1])
    close("advantage/std", s.advantages[learnt].std(correction=0))
    close("kl/reference", (torch.tensor(-0.3).double().exp() - 1 + 0.3))
    gap = (s.logp - fresh.engine_logp).abs()
    close("gap/engine_mean", gap.mean())
    close("gap/engine_max", gap.max())
    close("gap/q99", gap.sort().values[math.ceil(0.99 * n) - 1])
    close("gap/q50", gap.sort().values[n // 2 - 1])
    ratio = (s.logp - fresh.engine_logp).exp()
    outside = ((ratio < 0.9) | (ratio > 1.1)).double()
    close("gap/outside", outside.mean())
    close("gap/outside_rare", outside[s.logp < -2].mean())

    a = s.advantages * 2 + 0.1
    pull = s.logp.exp() * s.centred - s.kappa
    i, kl = fresh.importance, fresh.pull
    assert i is not None
    assert kl is not None
    dh = w * (-(i * a + kl) * pull + 0.2 * s.entropy_grad_sq)
    free = w * -(i * s.advantages + kl) * pull
    close("entropy/tabular_dh", eta / 2 * dh.sum())  # tokens of zero advantage are in it; two updates of unit weight
    assert (s.advantages == 0).any()
    close("entropy/tabular_dh_free", eta / 2 * free.sum())
    for part, mask in (("positive", s.advantages > 0), ("negative", s.advantages < 0)):
        close(f"entropy/tabular_dh_{part}", eta / 2 * dh[mask].sum())
        close(f"advantage/scale_{part}", (a[mask].abs().sum() / s.advantages[mask].abs().sum()).log())
    assert "entropy/realised_dh" not in actual
    close("all/entropy", s.entropy.mean())
    close("successful/entropy", s.entropy[fresh.correct].mean())
    close("all/free", free.sum() / 2)
    close("all/slope", (w * i * s.centred * pull).sum() / 2)
    close("all/advantage", ((w * s.advantages**2).sum() / w.sum()).sqrt())

    r = (s.logp - s.old_logp).exp()
    close("loss", s.advantages.sum() / 2)
    close("entropy/affected", (s.advantages > 0).double().mean())
    close("ratio/max", r.max())
    close("ratio/ess", r.sum() ** 2 / (n * (r**2).sum()))
    close("ratio/q99.9", r.max())
    close("ratio/q0.1", r.min())
    close("tokens/trained", n)
    close("importance/mean", s.uniform.mean())
    close("importance/limited", (s.uniform > 0.5).double().mean())
    withheld = 0.01 * w * r * -a * pull  # by its ratio, and without the bonus: no clip stops that
    close("entropy/forgone_dh_high", withheld[s.advantages > 0.5].sum())
    close("entropy/forgone_dh_low", withheld[s.advantages < -0.5].sum())


def test_a_peak_is_the_largest_of_all_micro_batches_and_nan_is_not_lost() -> None:
    tally = Tally()
    for values in ([1.0, 3.0], [2.0], []):
        tally.peak("ratio", torch.tensor(values))
    assert tally.peaks == {"ratio": 3.0}
    tally.peak("ratio", torch.tensor([math.nan]))
    assert math.isnan(tally.peaks["ratio"])


def test_without_a_touched_mask_the_coefficient_touches_every_token() -> None:
    stats, tally = make_stats(9), Tally()
    zero = {k: torch.zeros(9, dtype=torch.bool) for k in ("clipped_high", "clipped_low", "limited")}
    tokens = {**zero, **{k: torch.ones(9) for k in ("ratio", "withheld", "kl", "importance")}}
    tally_update(tally, torch.zeros(()), tokens, stats, Shaping(), torch.ones(9))
    assert update_metrics(tally, 1, False)["entropy/affected"] == 1.0
    assert "importance/mean" not in update_metrics(tally, 1, False)


def test_a_controller_of_some_environments_sees_their_tokens_alone() -> None:
    fresh, tally = replace(fresh_of(60, 3), importance=None, pull=None), Tally()
    tally_policy(tally, fresh, None, ENVS)
    row = Ledger().row(tally, 1, ENVS)
    own = fresh.stats.env == 1
    observed = row.observed(["b"], "all")
    assert observed.entropy == pytest.approx(float(fresh.stats.entropy[own].mean()))
    free = -(fresh.weight * fresh.stats.advantages * (fresh.stats.logp.exp() * fresh.stats.centred - fresh.stats.kappa))
    assert observed.free == pytest.approx(float(free[own].sum()))
    assert math.isnan(row.observed([], "all").entropy)


def test_a_controller_of_all_environments_sees_what_the_last_steps_did_and_one_of_some_does_not() -> None:
    fresh, tally, ledger = fresh_of(60, 3), Tally(), Ledger()
    tally_policy(tally, fresh, None, ENVS)
    assert math.isnan(ledger.row(tally, 1, ENVS).observed(ENVS, "all").step)
    ledger.step((0.1, 0.25))
    row = ledger.row(tally, 1, ENVS)
    assert row.observed(ENVS, "all").step == row.observed(ENVS, "successful").step == 0.25
    assert math.isnan(row.observed(["b"], "all").step)
    ledger.interrupt()
    assert math.isnan(ledger.row(tally, 1, ENVS).observed(ENVS, "all").step)


def test_no_correct_response_is_not_an_entropy_of_zero() -> None:
    fresh, tally = fresh_of(20, 1), Tally()
    tally_policy(tally, replace(fresh, correct=torch.zeros(20, dtype=torch.bool)), None, ENVS)
    row = Ledger().row(tally, 1, ENVS)
    assert "entropy/successful" not in row.metrics
    assert math.isnan(row.observed(ENVS, "successful").entropy)
    assert math.isnan(row.observed(ENVS, "all").slope)  # no probe: the method is not linear in its coefficient


@pytest.mark.parametrize("ratio", [0.89, 0.91, 1.0, 1.09, 1.11])
def test_the_share_of_ratios_outside_a_tenth(ratio: float) -> None:
    fresh, tally = fresh_of(10, 0), Tally()
    engine = fresh.stats.logp.clone()
    engine[:4] -= math.log(ratio)
    tally_policy(tally, replace(fresh, engine_logp=engine), None, ENVS)
    metrics = policy_metrics(tally)
    assert metrics["gap/outside"] == pytest.approx(0.4 if abs(ratio - 1) > 0.1 else 0)
    assert metrics["gap/engine_max"] == pytest.approx(abs(math.log(ratio)), abs=1e-12)
    assert metrics["gap/engine_mean"] == pytest.approx(0.4 * abs(math.log(ratio)), abs=1e-12)


def run(ledger: Ledger, pairs: list[tuple[float, float]]) -> list[float | None]:
    """Maps (entropy, predicted dH) of each iteration to the realised change since the one before."""
    realised = []
    for entropy, dh in pairs:
        fresh = fresh_of(2, 0)
        flat = replace(fresh, stats=replace(fresh.stats, entropy=torch.full((2,), entropy, dtype=torch.float64)))
        tally = Tally()
        tally_policy(tally, flat, None, ENVS)
        row = ledger.row(tally, 1, ENVS)
        ledger.step((dh, 3.0 * dh - 0.1))
        realised.append(row.metrics.get("entropy/realised_dh"))
    return realised


def test_a_realised_change_belongs_to_the_prediction_of_the_iteration_before() -> None:
    ledger = Ledger()
    assert run(ledger, [(1.0, 0.1), (1.2, 0.2), (1.6, -0.3)]) == pytest.approx([None, 0.2, 0.4])
    # so far: predicted 0.1 -> realised 0.2, predicted 0.2 -> realised 0.4; the third is still open
    assert (ledger.state["n"], ledger.state["x"], ledger.state["y"]) == pytest.approx((2, 0.3, 0.6))
    of_steps = {"entropy/step_slope": pytest.approx(3.0), "entropy/step_r": pytest.approx(1.0)}  # complete at once
    assert ledger.metrics() == {"entropy/cumulative": pytest.approx(3.8), **of_steps}
    run(ledger, [(1.0, 0.0)])
    assert ledger.metrics()["entropy/regression_slope"] == pytest.approx(2.0)
    assert ledger.metrics()["entropy/regression_r"] == pytest.approx(1.0)


def test_a_step_that_was_not_measured_or_not_taken_is_in_no_regression() -> None:
    for leave_out in (lambda ledger: ledger.step(None), Ledger.no_step):
        ledger = Ledger()
        run(ledger, [(1.0, 0.1)])
        leave_out(ledger)
        run(ledger, [(1.3, 0.2)])
        assert (ledger.state["n"], ledger.state["step_n"]) == (0.0, 2.0)
        assert math.isfinite(ledger.state["step"]), "the last step was measured"
    assert Ledger().step(None) == {}
    assert Ledger().step((0.1, 0.2)) == {"entropy/predicted_dh": 0.1, "entropy/step_dh": 0.2}


@pytest.mark.slow
@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(-0.5, 0.5)), min_size=5, max_size=30))
def test_the_running_regression_is_the_least_squares_line(pairs: list[tuple[float, float]]) -> None:
    ledger = Ledger()
    run(ledger, pairs)
    entropies = np.array([h for h, _ in pairs])
    x, y = np.array([dh for _, dh in pairs[:-1]]), np.diff(entropies)
    actual = ledger.metrics()
    assert actual["entropy/cumulative"] == pytest.approx(entropies.sum())
    if x.std() < 1e-3 or y.std() < 1e-3:
        return  # no line to speak of
    slope, _ = np.polyfit(x, y, 1)
    assert actual["entropy/regression_slope"] == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert actual["entropy/regression_r"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-6, abs=1e-6)


def test_a_regression_is_absent_while_it_is_undefined() -> None:
    ledger = Ledger()
    run(ledger, [(1.0, 0.1)] * 6)
    assert set(ledger.metrics()) == {"entropy/cumulative"}


@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(-0.5, 0.5)), max_size=10), st.integers(0, 10))
def test_a_ledger_resumed_from_its_state_goes_on_bit_for_bit(pairs: list[tuple[float, float]], stop: int) -> None:
    undisturbed, first, second = Ledger(), Ledger(), Ledger()
    run(undisturbed, pairs)
    run(first, pairs[:stop])
    saved = json.loads(json.dumps(first.state))
    second.state = {k: float(saved[k]) for k in Ledger.FIELDS}
    run(second, pairs[stop:])
    assert repr(second.state) == repr(undisturbed.state)  # repr: the two NaN of a fresh ledger are equal
    assert second.metrics() == undisturbed.metrics()


def test_an_environment_without_a_token_has_no_entropy_rather_than_zero() -> None:
    tally, fresh = Tally(), fresh_of(4, 0)
    tally_policy(tally, replace(fresh, stats=replace(fresh.stats, env=torch.zeros(4).long())), None, ENVS)
    metrics = Ledger().row(tally, 1, ENVS).metrics
    assert "entropy/a" in metrics
    assert "entropy/b" not in metrics
