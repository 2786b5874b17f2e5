"""Controllers, targets and the tokens' draws against independent statements of them (tests/support/references_control.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import references_control as reference
from support.builders import trajectories

from envs.types import Trajectory
from learner.batching import build_batches
from learner.entropy import base, build
from learner.entropy.target import Target, TargetSettings
from learner.microbatches.draws import _mix, token_uniform
from learner.settings import BatchPlan
from learner.types import Observed

LOW, HIGH = 0.001, 0.1
RANGE = base.CoefficientRange(start=0.01, low=LOW, high=HIGH, signed=True, linear=True)
few = settings(max_examples=60)

ENTROPY = st.floats(0.02, 4)
OBSERVATION = st.tuples(ENTROPY, st.floats(-0.5, 0.2), st.floats(0.01, 2), st.floats(0.05, 3))
EFFECT = st.floats(-0.3, 0.3) | st.just(math.nan)  # of the steps before; or it was not measured
HISTORY = st.lists(OBSERVATION, min_size=1, max_size=25)
TARGET = st.floats(0.1, 3)


def controller(kind: str, coefficient: base.CoefficientRange = RANGE, **more: Any) -> Any:
    if kind in ("doubling", "proportional", "additive", "pi"):
        more = {"high": HIGH, **more}  # left out it would follow the observations
    return build.CONTROLLERS[kind](build.parse(build.CONTROLLERS, {"kind": kind, **more}, "controller"), coefficient)


def walk(made: Any, history: Sequence[tuple[float, ...]], target: float) -> list[tuple[float, float]]:
    """Returns (value, effective) after each observation."""
    out = []
    for observation in history:
        entropy, free, slope, advantage, *effect = observation
        made.update(Observed(entropy, free, slope, advantage, effect[0] if effect else math.nan), target)
        out.append((made.value, made.effective))
    return out


def observed(*entropies: float) -> list[reference.Observation]:
    return [(entropy, 0.0, 1.0, 1.0) for entropy in entropies]


@few
@given(HISTORY, TARGET, st.booleans(), st.booleans())
@example(
    observed(*[3.0] * 6, *[0.1] * 9), 1.0, True, True
)  # over to the other side and back: a walk drawn at random seldom gets there
def test_doubling(history: list[reference.Observation], target: float, signed: bool, allowed: bool) -> None:
    made = controller("doubling", RANGE.model_copy(update={"signed": signed}), allow_negative=allowed)
    expected = reference.doubling(history, target, 0.01, LOW, HIGH, signed and allowed)
    assert [v for v, _ in walk(made, history, target)] == pytest.approx(expected, rel=1e-12)


@few
@given(HISTORY, TARGET, st.booleans(), st.floats(0.001, 1))
def test_proportional(history: list[reference.Observation], target: float, signed: bool, gain: float) -> None:
    made = controller("proportional", RANGE.model_copy(update={"signed": signed}), gain=gain)
    expected = reference.proportional(history, target, gain, -HIGH if signed else LOW, HIGH)
    assert [v for v, _ in walk(made, history, target)] == pytest.approx(expected, rel=1e-12)


@few
@given(HISTORY, TARGET, st.booleans(), st.floats(1e-4, 0.05))
@example(observed(0.1, 3.0, 0.1), 1.0, True, 0.004)  # the gate opens, shuts, and opens again
def test_additive_plain_and_gated(
    history: list[reference.Observation], target: float, gated: bool, step: float
) -> None:
    made = controller("additive", step=step, gated=gated)
    actual = walk(made, history, target)
    expected = reference.additive(history, target, 0.01, step, HIGH, gated)
    for own, wanted in zip(actual, expected, strict=True):
        assert own == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@few
@given(HISTORY, TARGET, st.floats(0, 3), st.floats(0.01, 1))
def test_pi_is_its_closed_form_while_it_is_free(
    history: list[reference.Observation], target: float, gain: float, integral: float
) -> None:
    close = [
        (target * (1 + (h - 2) / 20), f, s, a) for h, f, s, a in history
    ]  # errors of a tenth: no change is clipped
    made = controller("pi", low=1e-30, high=1e30, gain=gain, integral=integral)
    expected = reference.pi(close, target, 0.01, gain, integral)
    assert [v for v, _ in walk(made, close, target)] == pytest.approx(expected, rel=1e-9)


@few
@given(
    st.lists(st.tuples(ENTROPY, st.floats(-0.5, 0.2), st.floats(0.01, 2), st.floats(0.05, 3), EFFECT), max_size=25),
    TARGET,
    st.booleans(),
    st.sampled_from([0.2, 5.0]),
    st.floats(0, 0.95),
    st.sampled_from([None, 0.1]),
)
def test_isentropic(
    history: list[tuple[float, float, float, float, float]],
    target: float,
    added: bool,
    high: float,
    memory: float,
    max_change: float | None,
) -> None:
    coefficient = RANGE.model_copy(update={"unit": "advantage" if added else "factor"})
    form: Any = {
        "gain": 0.3,
        "integral": 0.05,
        "lookahead": 2.0,
        "memory": memory,
        "high": high,
        "max_change": max_change,
    }
    actual = walk(controller("isentropic", coefficient, **form), history, target)
    expected = reference.isentropic(history, target, **form, added=added)
    assert [v for v, _ in actual] == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_isentropic_without_a_slope_is_feedback_alone() -> None:
    made = controller("isentropic", gain=0.3, integral=0.0)
    assert walk(made, [(0.5, -1.0, -0.1, 1.0)], 1.0)[0][0] == pytest.approx(0.15)


POINTS = st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 3)), max_size=4, unique_by=lambda p: p[0]).map(sorted)


@few
@given(
    st.lists(ENTROPY | st.just(math.nan), min_size=1, max_size=30),
    st.floats(0.1, 2),
    ENTROPY | st.just(math.nan),
    POINTS,
)
def test_targets(entropies: list[float], fraction: float, before: float, points: list[tuple[int, float]]) -> None:
    target = Target(TargetSettings(fraction=fraction, schedule=tuple(points)))
    target.set_start(before)
    expected = reference.targets(entropies, fraction, before, points)
    assert [target.observe(h) for h in entropies] == pytest.approx(expected, rel=1e-9)
    absolute = Target(TargetSettings(nats=0.7, schedule=tuple(points)))
    flat = [0.7 * reference.schedule(points, i + 1) for i in range(len(entropies))]
    assert [absolute.observe(h) for h in entropies] == pytest.approx(flat, rel=1e-9)


def test_a_target_lets_go_at_its_iteration_and_not_before() -> None:
    target = Target(TargetSettings(release_at=3))
    assert [(target.observe(1.0), target.released)[1] for _ in range(4)] == [False, False, True, True]


# --- the tokens' draws --------------------------------------------------------------------------------------------------------


def test_the_mixer_gives_the_published_outputs() -> None:
    """The reference sequence of splitmix64 from state 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = (np.uint64(1234567) + np.arange(4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    assert _mix(states).tolist() == expected
    assert [reference.splitmix64(int(s)) for s in states] == expected


@few
@given(st.integers(0, 2**63), st.integers(0, 10**6), st.lists(st.tuples(*[st.integers(0, 2**31 - 1)] * 2), max_size=8))
def test_a_draw_is_a_function_of_four_numbers(seed: int, step: int, where: list[tuple[int, int]]) -> None:
    trajectory, position = np.array(where, np.int32).reshape(-1, 2).T
    actual = token_uniform(seed, step, trajectory, position)
    assert actual.dtype == np.float32
    assert actual.tolist() == [reference.uniform(seed, step, t, p) for t, p in where]


def test_draws_are_uniform_and_no_number_of_the_four_gives_another_away() -> None:
    trajectory, position = (x.ravel().astype(np.int32) for x in np.mgrid[0:200, 0:500])
    draws = token_uniform(0, 0, trajectory, position).astype(np.float64)
    assert (draws.min() >= 0, draws.max() < 1) == (True, True)
    counts = np.histogram(draws, 100, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # 99 degrees of freedom: one in a thousand is above 149
    table = draws.reshape(200, 500)
    others = [table[1:], token_uniform(0, 1, trajectory, position), token_uniform(1, 0, trajectory, position)]
    for a, b in [(table[:-1], others[0]), (table[:, :-1], table[:, 1:]), (table, others[1]), (table, others[2])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.015
    assert len(np.unique(draws)) > 99_000


@few
@given(trajectories(max_size=8), st.integers(1, 3), st.integers(1, 60), st.booleans())
def test_a_token_keeps_its_draw_wherever_it_is_moved(
    responses: list[Trajectory], ranks: int, budget: int, packing: bool
) -> None:
    def draws(plan: BatchPlan) -> dict[tuple[int, int], float]:
        batches = build_batches(responses, np.ones(len(responses)), plan=plan, aggregation="token", temperature=1.0)
        actual: dict[tuple[int, int], float] = {}
        for m in (m for b in batches for m in b.updates[0]):
            numbers = token_uniform(7, 3, m.trajectory, m.action_index).tolist()
            actual |= dict(zip(zip(m.trajectory.tolist(), m.action_index.tolist(), strict=True), numbers, strict=True))
        return actual

    full = draws(BatchPlan(updates=1, epochs=1, ranks=1, micro_batch_tokens=10_000, packing=False))
    assert len(full) == sum(t.response_tokens for t in responses)
    assert draws(BatchPlan(updates=1, epochs=1, ranks=ranks, micro_batch_tokens=budget, packing=packing)) == full
