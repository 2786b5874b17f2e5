"""Controllers and targets: bounded, validated, and exactly resumable."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.entropy import base, build
from learner.entropy.target import Target, TargetSettings
from learner.ledger import LedgerRow

KNOB = base.Knob(start=0.01, low=0.001, high=0.1, signed=True)
UNSIGNED = KNOB.model_copy(update={"signed": False})
SETTINGS: dict[str, dict[str, Any]] = {
    "fixed": {"kind": "fixed"},
    "doubling": {"kind": "doubling"},
    "proportional": {"kind": "proportional", "gain": 0.2},
}
LOW, HIGH = 0.5, 1.5  # entropies around a target of 1


def make(kind: str, knob: base.Knob = KNOB, **settings: Any) -> Any:
    return build.CONTROLLERS[kind](build.parse(build.CONTROLLERS, {**SETTINGS[kind], **settings}, "controller"), knob)


def row(entropy: float) -> LedgerRow:
    return LedgerRow(entropy, entropy, 0.0, 0.0, 0.0, None, {})


def walk(controller: Any, entropies: list[float], target: float = 1.0) -> list[float]:
    values = []
    for entropy in entropies:
        controller.update(entropy, target)
        values.append(controller.value)
    return values


# --- doubling -----------------------------------------------------------------------------------------------------------


def test_below_target_doubles_above_halves_and_both_stop_at_the_bounds() -> None:
    controller = make("doubling", UNSIGNED)
    assert walk(controller, [LOW] * 5) == [0.02, 0.04, 0.08, 0.1, 0.1]
    assert walk(controller, [HIGH] * 8) == pytest.approx(
        [0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625, 0.001, 0.001]
    )


def test_at_the_low_bound_the_sign_flips_and_back() -> None:
    controller = make("doubling", start=0.002)
    assert walk(controller, [HIGH, HIGH, HIGH, HIGH]) == [0.001, -0.001, -0.002, -0.004]
    assert walk(controller, [LOW, LOW, LOW, LOW]) == [-0.002, -0.001, 0.001, 0.002]
    assert walk(controller, [HIGH] * 20)[-1] == -0.1


def test_without_allow_negative_it_stops_at_the_low_bound() -> None:
    controller = make("doubling", start=0.002, allow_negative=False)
    assert walk(controller, [HIGH] * 4) == [0.001] * 4
    assert walk(controller, [LOW]) == [0.002]


@given(
    st.sampled_from(sorted(build.CONTROLLERS)),
    st.booleans(),
    st.lists(st.floats(0.01, 5), max_size=40),
    st.floats(0.05, 4),
)
def test_a_knob_never_leaves_its_bounds(kind: str, signed: bool, entropies: list[float], target: float) -> None:
    knob = KNOB.model_copy(update={"signed": signed})
    controller = make(kind, knob)
    for value in walk(controller, entropies, target):
        assert abs(value) <= knob.high
        assert signed or value >= knob.low
        assert kind != "doubling" or abs(value) >= knob.low


@given(st.lists(st.floats(0.01, 5), max_size=20), st.floats(0.05, 4))
def test_the_doubling_knob_moves_the_way_that_was_asked(entropies: list[float], target: float) -> None:
    controller = make("doubling")
    for entropy in entropies:
        before = controller.value
        controller.update(entropy, target)
        assert controller.value >= before if entropy < target else controller.value <= before
        assert controller.value != before or abs(before) == KNOB.high


def test_saturation_is_the_bound_the_error_pushes_against() -> None:
    controller = make("doubling")
    for value, entropy, expected in [
        (0.1, LOW, True),
        (0.1, HIGH, False),
        (-0.1, HIGH, True),
        (-0.1, LOW, False),
        (0.05, LOW, False),
        (0.001, HIGH, False),  # it may still flip
    ]:
        controller.value = value
        assert controller.saturated(entropy, 1.0) is expected
    for stopped in (make("doubling", allow_negative=False), make("doubling", UNSIGNED)):
        stopped.value = 0.001
        assert stopped.saturated(HIGH, 1.0)
        assert not stopped.saturated(LOW, 1.0)


# --- fixed, proportional ------------------------------------------------------------------------------------------------


def test_fixed_stays_where_it_was_put_and_is_never_saturated() -> None:
    for controller, value in (
        (make("fixed"), 0.01),
        (make("fixed", value=-3.0), -3.0),
        (make("fixed", value=0.0), 0.0),
    ):
        assert walk(controller, [LOW, HIGH, LOW]) == [value] * 3
        assert not controller.saturated(LOW, 1.0)
        assert not controller.saturated(HIGH, 1.0)
        assert controller.knob.low <= controller.value <= controller.knob.high


def test_proportional_is_the_gain_times_the_relative_error() -> None:
    controller = make("proportional", gain=0.2)
    assert walk(controller, [0.9, 1.1], 1.0) == pytest.approx([0.02, -0.02])
    assert walk(controller, [1.8], 2.0) == pytest.approx([0.02])  # relative: the unit of entropy does not matter
    assert walk(controller, [0.1, 5.0], 1.0) == [0.1, -0.1]
    assert controller.saturated(5.0, 1.0)
    assert not controller.saturated(0.5, 1.0)
    controller = make("proportional", UNSIGNED)
    assert walk(controller, [5.0], 1.0) == [0.001]
    assert controller.saturated(5.0, 1.0)


# --- bad settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "knob", "settings", "message"),
    [
        ("doubling", KNOB, {"low": 0.5, "high": 0.2}, r"low \(0\.5\) is above high \(0\.2\): give low <= high"),
        ("doubling", KNOB, {"low": 0.5}, r"the knob's low \(0\.5\) is above its high \(0\.1\)"),
        ("doubling", KNOB, {"start": 0.2}, r"the knob starts at 0\.2, outside its bounds \[0\.001, 0\.1\]"),
        ("doubling", UNSIGNED, {"start": -0.01}, r"the knob starts at -0\.01, outside its bounds"),
        ("doubling", KNOB, {"low": 0.0}, "needs a low bound above 0: halving never reaches 0"),
        ("proportional", KNOB, {"gain": 0.0}, "greater than 0"),
        ("proportional", KNOB, {"gain": float("inf")}, "finite number"),
        ("proportional", KNOB, {"high": -1.0}, "greater than 0"),
        ("fixed", UNSIGNED, {"value": -1.0}, "a fixed knob of -1 is negative and this method's knob cannot be"),
        ("fixed", KNOB, {"value": float("nan")}, "finite number"),
        ("fixed", KNOB, {"gain": 1.0}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused_with_the_numbers(
    kind: str, knob: base.Knob, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, knob, **settings)


def test_steering_nothing_is_refused() -> None:
    none = build.parse(build.METHODS, {"kind": "none"}, "method")
    with pytest.raises(ValueError, match="low bound above 0"):
        build.build(none, build.parse(build.CONTROLLERS, {"kind": "doubling"}, "controller"), TargetSettings())


# --- target -------------------------------------------------------------------------------------------------------------


def test_the_target_is_a_fraction_of_the_mean_of_the_first_iterations() -> None:
    target = Target(TargetSettings(fraction=0.5, average_over=3))
    assert [target.observe(h) for h in (1.0, 2.0, 3.0, 100.0, 0.1)] == [0.5, 0.75, 1.0, 1.0, 1.0]
    start = Target(TargetSettings(average_over=1))
    assert [start.observe(h) for h in (2.0, 9.0)] == [2.0, 2.0]
    absolute = Target(TargetSettings(nats=0.3))
    assert [absolute.observe(h) for h in (2.0, 9.0)] == [0.3, 0.3]
    resumed = Target(TargetSettings(fraction=0.5, average_over=2))  # asked for a fraction after all: of the run's start
    resumed.load_state_dict(absolute.state_dict())
    assert resumed.observe(100.0) == 2.75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nats": 0.5, "fraction": 0.7}, r"nats \(0\.5\) and fraction \(0\.7\) both set the target: give one"),
        ({"nats": 0.0}, "greater than 0"),
        ({"fraction": -1.0}, "greater than 0"),
        ({"average_over": 0}, "greater than or equal to 1"),
        ({"nats": float("inf")}, "finite number"),
    ],
)
def test_a_target_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetSettings(**settings)


# --- the whole ----------------------------------------------------------------------------------------------------------


def steering(kind: str) -> base.Steering:
    method = build.parse(build.METHODS, {"kind": "repo_d"}, "method")
    controller = build.parse(build.CONTROLLERS, SETTINGS[kind], "controller")
    return build.build(method, controller, TargetSettings(fraction=0.7, average_over=3))


def test_every_controller_has_a_case_here() -> None:
    assert set(SETTINGS) == set(build.CONTROLLERS)


@pytest.mark.parametrize("kind", sorted(SETTINGS))
@given(entropies=st.lists(st.floats(0.01, 3), min_size=1, max_size=12), cut=st.integers(0, 12))
def test_a_steering_resumed_from_its_state_goes_on_bit_for_bit(kind: str, entropies: list[float], cut: int) -> None:
    whole, first, second = steering(kind), steering(kind), steering(kind)
    expected = [whole.observe(row(h)) for h in entropies]
    for h in entropies[:cut]:
        first.observe(row(h))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))  # a checkpoint is JSON
    assert second.state_dict() == first.state_dict()
    assert [second.observe(row(h)) for h in entropies[cut:]] == expected[cut:]
    assert second.controller.value == whole.controller.value


def test_a_saved_knob_that_is_not_a_number_is_refused() -> None:
    made = steering("doubling")
    state = made.state_dict() | {"controller/value": float("nan")}
    with pytest.raises(ValueError, match="the saved knob is nan: the checkpoint cannot be resumed"):
        made.load_state_dict(state)


def test_what_is_observed_moves_the_knob_of_the_next_iteration_and_is_reported() -> None:
    made = steering("doubling")
    before = made.controller.value
    metrics = made.observe(row(1.0))  # the target is 0.7: entropy is too high
    assert metrics["entropy/target"] == pytest.approx(0.7)
    assert metrics["entropy/error"] == pytest.approx(-0.3 / 0.7)
    assert metrics["entropy/knob"] == before  # what this iteration was shaped with
    assert made.controller.value == before / 2
    assert (metrics["entropy/knob_low"], metrics["entropy/knob_high"]) == (1e-4, 0.05)
    assert metrics["entropy/saturated"] == 0.0
    for _ in range(12):
        metrics = made.observe(row(1e-6))
    assert (metrics["entropy/knob"], metrics["entropy/saturated"]) == (0.05, 1.0)
