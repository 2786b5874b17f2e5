"""Controllers and targets: bounded, validated, and exactly resumable."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.controllers import HIGH, LOW, RANGE, SETTINGS, UNSIGNED, make, observed, walk, walk_on

from learner.entropy import base, build
from learner.entropy.target import TargetSettings
from learner.types import Observed

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


def test_outside_its_band_a_coefficient_is_turned_fully_up_or_down() -> None:
    controller = make("band", start=0.01)
    assert walk(controller, [0.99, 0.9, 1.05, 1.1, 1.0]) == [0.01, 0.1, 0.01, -0.1, 0.01]
    assert not controller.saturated(0.5, 1.0) and not controller.saturated(1.5, 1.0)
    assert walk(make("band", UNSIGNED), [0.9, 1.1, 1.0]) == [0.1, 0.001, 0.01]
    assert walk(make("band", dead_band=0.2, max_change=0.04), [0.9, 0.7, 0.7, 0.7]) == pytest.approx(
        [0.01, 0.05, 0.09, 0.1]
    )


@given(
    st.sampled_from(sorted(build.CONTROLLERS)),
    st.booleans(),
    st.lists(st.floats(0.01, 5), max_size=40),
    st.floats(0.05, 4),
)
def test_a_coefficient_never_leaves_its_bounds(kind: str, signed: bool, entropies: list[float], target: float) -> None:
    coefficient = RANGE.model_copy(update={"signed": signed})
    controller = make(kind, coefficient)
    for value in walk(controller, entropies, target):
        assert abs(value) <= coefficient.high * (1 if kind != "isentropic" else 1.0000001)
        assert signed or kind == "isentropic" or value >= (0.0 if kind == "additive" else coefficient.low)
        assert kind != "doubling" or abs(value) >= coefficient.low


@given(st.lists(st.floats(0.01, 5), max_size=20), st.floats(0.05, 4))
def test_the_doubling_coefficient_moves_the_way_that_was_asked(entropies: list[float], target: float) -> None:
    controller = make("doubling")
    for entropy in entropies:
        before = controller.value
        controller.update(observed(entropy), target)
        assert controller.value >= before if entropy < target else controller.value <= before
        assert controller.value != before or abs(before) == RANGE.high


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
    assert not make("doubling", start=0.1, dead_band=0.6).saturated(LOW, 1.0)  # near enough
    for stopped in (make("doubling", allow_negative=False), make("doubling", UNSIGNED)):
        stopped.value = 0.001
        assert stopped.saturated(HIGH, 1.0)
        assert not stopped.saturated(LOW, 1.0)


def test_an_upper_bound_that_nobody_set_follows_what_the_batches_need() -> None:
    """Where the coefficient has to be 0.4 to hold entropy it may be eight times that."""
    needs = Observed(LOW, free=-0.04, slope=0.1, advantage=0.9)
    for kind in ("doubling", "pi", "additive", "proportional"):
        controller = make(kind, RANGE)
        for _ in range(4):
            controller.update(needs, 1.0)
        assert controller.needed == pytest.approx(0.4)
        assert controller.coefficient_range.high == pytest.approx(3.2)
        again = make(kind, RANGE)
        again.load_state_dict(controller.state_dict())
        assert again.coefficient_range == controller.coefficient_range
    assert walk_on(make("doubling", RANGE), [needs] * 12)[-1] == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("settings", "free", "slope", "high"),
    [
        ({"high": 0.05}, -0.04, 0.1, 0.05),  # what was set stays
        ({"low": 0.002}, -0.04, 0.1, 3.2),
        ({"start": 0.2}, math.nan, math.nan, 0.2),  # a start above what was published
        ({}, -1e-4, 0.1, 0.1),  # what was published is not lowered
        ({}, 0.04, 0.1, 0.1),  # entropy rises by itself
        ({}, -0.04, -0.1, 0.1),
        ({}, 0.04, -0.1, 0.1),  # a coefficient that lowers it
        ({}, math.nan, math.nan, 0.1),
    ],
)
def test_what_was_set_or_published_is_not_narrowed(
    settings: dict[str, float], free: float, slope: float, high: float
) -> None:
    controller = make("doubling", RANGE, **settings)
    low = controller.coefficient_range.low
    controller.update(Observed(LOW, free, slope, 0.9), 1.0)
    assert controller.coefficient_range.high == pytest.approx(high)
    assert controller.coefficient_range.low == low


def test_the_state_of_an_older_checkpoint_has_no_running_means() -> None:
    controller = make("doubling", RANGE)
    controller.load_state_dict({"value": 0.05})
    assert controller.value == 0.05
    assert math.isnan(controller.needed)
    assert controller.coefficient_range.high == RANGE.high


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
        assert controller.coefficient_range.low <= controller.value <= controller.coefficient_range.high


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


# --- additive, PI -------------------------------------------------------------------------------------------------------


def test_additive_steps_up_and_down_and_stops_at_zero() -> None:
    controller = make("additive", start=0.005)
    assert walk(controller, [LOW, LOW, HIGH, HIGH, HIGH, HIGH]) == pytest.approx(
        [0.009, 0.013, 0.009, 0.005, 0.001, 0.0]
    )
    assert controller.saturated(HIGH, 1.0)


def test_gated_it_acts_only_at_or_below_its_target_as_skywork_does() -> None:
    controller = make("additive", start=0.02, gated=True)
    for entropy, value, effective in [(HIGH, 0.016, 0.0), (LOW, 0.02, 0.02), (1.0, 0.016, 0.016), (HIGH, 0.012, 0.0)]:
        controller.update(observed(entropy), 1.0)
        assert controller.value == pytest.approx(value)
        assert controller.effective == pytest.approx(effective)
    state = controller.state_dict()
    assert (state["value"], state["gate"]) == (pytest.approx(0.012), 0.0)


def test_pi_is_proportional_and_integral_on_the_logarithm() -> None:
    controller = make("pi", gain=2.0, integral=0.5)
    logs = [math.log(v / 0.01) for v in walk(controller, [0.9, 0.9, 1.0, 1.05])]
    errors, total, expected = [0.1, 0.1, 0.0, -0.05], 0.0, []
    for e in errors:
        total += e
        expected.append(2.0 * e + 0.5 * total)
    assert logs == pytest.approx(expected)


def test_a_pi_coefficient_at_its_bound_comes_back_at_once() -> None:
    controller = make("pi", gain=2.0, integral=0.5)
    assert walk(controller, [LOW] * 50)[-1] == 0.1
    assert walk(controller, [1.1])[0] < 0.1


# --- isentropic ---------------------------------------------------------------------------------------------------------


def isentropic(unit: Any, **settings: Any) -> Any:
    bounds = base.CoefficientRange(start=0.01, low=1e-4, high=0.05, signed=True, linear=True, unit=unit)
    parsed = build.parse(build.CONTROLLERS, {"kind": "isentropic", **settings}, "controller")
    return build.CONTROLLERS["isentropic"](parsed, bounds)


@pytest.mark.parametrize("unit", ["factor", "advantage"])
def test_on_target_the_coefficient_is_where_the_predicted_change_vanishes(unit: str) -> None:
    controller = isentropic(unit)
    for free, slope in [(-0.02, 0.1), (-0.04, 0.1), (0.01, 0.3)]:
        controller.update(Observed(1.0, free, slope, 0.5), 1.0)
    means = [
        sum(0.9 ** (2 - i) * x[k] for i, x in enumerate([(-0.02, 0.1), (-0.04, 0.1), (0.01, 0.3)])) for k in (0, 1)
    ]
    assert controller.value == pytest.approx(-means[0] / means[1])
    assert means[0] + controller.value * means[1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("unit", "scale"), [("factor", 1.0), ("advantage", 0.5)])
def test_feedback_is_in_the_coefficients_own_unit(unit: str, scale: float) -> None:
    controller = isentropic(unit, gain=0.3, integral=0.02)
    total = 0.0
    for entropy in (0.95, 0.8, 1.1):
        total += min(1 - entropy, 0.1)  # a distant target winds nothing up
        controller.update(Observed(entropy, -0.02, 0.1, 0.5), 1.0)
        assert controller.value == pytest.approx(0.2 + scale * (0.3 * (1 - entropy) + 0.02 * total))


@pytest.mark.parametrize(("unit", "scale"), [("factor", 1.0), ("advantage", 0.5)])
def test_the_first_coefficients_are_bounded_however_far_the_target_is(unit: str, scale: float) -> None:
    """A target of 0.7 of the start is 43 % away at first, and coming nearer by itself: pushing would spend the policy."""
    above, below = isentropic(unit), isentropic(unit)
    above.update(Observed(1.0, -0.02, 0.1, 0.5), 0.7)
    assert above.value == pytest.approx(0.2 - scale * (3.0 * 0.1 + 0.15 * 0.1))
    values = [0.0]
    for _ in range(3):
        below.update(Observed(0.1, -0.02, 0.1, 0.5), 1.0)
        values.append(below.value)
    assert [b - a for a, b in itertools.pairwise(values)] == pytest.approx([0.5 * scale] * 3)


def test_a_policy_that_falls_fast_is_caught_above_its_target() -> None:
    """What the last steps did is taken to go on for three iterations; a batch that nobody measured says nothing."""
    falling, unmeasured, rising = (isentropic("factor", max_change=None, integral=0.0) for _ in range(3))
    falling.update(Observed(1.2, -0.02, 0.1, 0.5, step=-0.15), 1.0)
    assert falling.value == pytest.approx(0.2 + 3.0 * (-0.2 + 3 * 0.15))
    unmeasured.update(Observed(1.2, -0.02, 0.1, 0.5), 1.0)
    assert unmeasured.value == pytest.approx(0.2 - 3.0 * 0.1)
    rising.update(Observed(0.8, -0.02, 0.1, 0.5, step=0.05), 1.0)
    assert rising.value == pytest.approx(0.2 + 3.0 * (0.2 - 3 * 0.05))


def test_the_integral_does_not_wind_up_at_a_bound() -> None:
    controller = isentropic("factor", high=0.3, integral=0.1)
    for _ in range(40):
        controller.update(Observed(0.5, -0.02, 0.1, 1.0), 1.0)
    assert controller.value == 0.3
    assert controller.saturated(0.5, 1.0)
    assert controller.sum < 2  # the sum of 40 errors of a half would be 20
    controller.update(Observed(1.2, -0.02, 0.1, 1.0), 1.0)
    assert controller.value < 0.3


def test_scaling_rewards_scales_an_additive_coefficient_and_leaves_a_factor_alone() -> None:
    for unit, expected in (("advantage", 7.0), ("factor", 1.0)):
        values = []
        for scale in (1.0, 7.0):
            controller = isentropic(unit)
            for entropy in (0.9, 0.8):
                slope = 0.1 if unit == "advantage" else 0.1 * scale  # |A| L scales with the rewards
                controller.update(Observed(entropy, -0.02 * scale, slope, 0.5 * scale), 1.0)
            values.append(controller.value)
        assert values[1] / values[0] == pytest.approx(expected)


def test_isentropic_needs_a_method_that_is_linear_in_its_coefficient() -> None:
    with pytest.raises(
        ValueError, match="needs a method whose effect is linear in its coefficient: repo, repo_r or bonus"
    ):
        make("isentropic", RANGE.model_copy(update={"linear": False}))


# --- dead band, rate limit ----------------------------------------------------------------------------------------------

STEERED = sorted(set(SETTINGS) - {"fixed"})


@pytest.mark.parametrize("kind", STEERED)
def test_within_the_dead_band_the_coefficient_stays(kind: str) -> None:
    controller = make(kind, dead_band=0.1)
    before = controller.value
    assert walk(controller, [0.95, 1.05, 0.91]) == [before] * 3
    assert walk(controller, [0.5]) != [before]


@pytest.mark.parametrize("kind", sorted(set(STEERED) - {"isentropic"}))
@given(entropies=st.lists(st.floats(0.01, 5), min_size=1, max_size=20))
def test_a_rate_limit_bounds_what_one_iteration_can_do(kind: str, entropies: list[float]) -> None:
    controller = make(kind, max_change=0.002)
    values = [controller.value, *walk(controller, entropies)]
    assert all(abs(b - a) <= 0.002 + 1e-12 for a, b in itertools.pairwise(values))


# --- bad settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "coefficient", "settings", "message"),
    [
        ("doubling", RANGE, {"low": 0.5, "high": 0.2}, r"low \(0\.5\) is above high \(0\.2\): give low <= high"),
        ("doubling", RANGE, {"low": 0.5}, r"the coefficient's low \(0\.5\) is above its high \(0\.1\)"),
        (
            "doubling",
            RANGE,
            {"start": 0.2, "high": 0.1},
            r"the coefficient starts at 0\.2, outside its bounds \[0\.001, 0\.1\]",
        ),
        ("doubling", UNSIGNED, {"start": -0.01}, r"the coefficient starts at -0\.01, outside its bounds"),
        ("doubling", RANGE, {"low": 0.0}, "needs a low bound above 0: halving never reaches 0"),
        (
            "pi",
            RANGE,
            {"low": 0.0},
            r"moves the logarithm of the coefficient: low \(0\) and start \(0\.01\) have to be above 0",
        ),
        ("additive", RANGE, {"step": 0.0}, "greater than 0"),
        ("isentropic", RANGE, {"memory": 1.0}, "less than 1"),
        ("doubling", RANGE, {"dead_band": -0.1}, "greater than or equal to 0"),
        ("doubling", RANGE, {"max_change": 0.0}, "greater than 0"),
        ("proportional", RANGE, {"gain": 0.0}, "greater than 0"),
        ("proportional", RANGE, {"gain": float("inf")}, "finite number"),
        ("proportional", RANGE, {"high": -1.0}, "greater than 0"),
        (
            "fixed",
            UNSIGNED,
            {"value": -1.0},
            "a fixed coefficient of -1 is negative and this method's coefficient cannot be",
        ),
        ("fixed", RANGE, {"value": float("nan")}, "finite number"),
        ("fixed", RANGE, {"gain": 1.0}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused_with_the_numbers(
    kind: str, coefficient: base.CoefficientRange, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, coefficient, **settings)


def test_steering_nothing_is_refused() -> None:
    none = build.parse(build.METHODS, {"kind": "none"}, "method")
    with pytest.raises(ValueError, match="low bound above 0"):
        build.build(none, build.parse(build.CONTROLLERS, {"kind": "doubling"}, "controller"), TargetSettings())
