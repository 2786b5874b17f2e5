"""A target, and a method with its control loops: where entropy should be, and what moves towards it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.builders import assert_close, make_stats
from support.controllers import HIGH, LOW, SETTINGS, make, row, walk

from learner.entropy import build
from learner.entropy.steering import COMMON, Steering
from learner.entropy.target import Target, TargetSettings
from learner.ledger.history import LedgerRow

# --- target -------------------------------------------------------------------------------------------------------------


def test_the_target_is_a_fraction_of_the_entropy_before_the_first_update() -> None:
    target = Target(TargetSettings(fraction=0.5))
    target.set_start(3.0)
    target.set_start(math.nan)  # nothing was measured
    assert [target.observe(h) for h in (1.0, 2.0, 100.0)] == [1.5, 1.5, 1.5]
    target.anchor()
    assert target.observe(4.0) == 2.0
    start = Target(TargetSettings())  # without a measurement of its own: the first iteration's
    assert [start.observe(h) for h in (2.0, 9.0)] == [2.0, 2.0]
    absolute = Target(TargetSettings(nats=0.3))
    assert [absolute.observe(h) for h in (2.0, 9.0)] == [0.3, 0.3]
    resumed = Target(TargetSettings(fraction=0.5))  # asked for a fraction after all: of the run's start
    resumed.load_state_dict(absolute.state_dict())
    assert resumed.observe(100.0) == 1.0
    resumed.load_state_dict({"total": 6.0, "count": 2.0, "iteration": 7.0})  # of a checkpoint before
    assert (resumed.observe(100.0), resumed.iteration) == (1.5, 8)
    resumed.load_state_dict({"total": 0.0, "count": 0.0, "iteration": 0.0})
    assert resumed.observe(8.0) == 4.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nats": 0.5, "fraction": 0.7}, r"nats \(0\.5\) and fraction \(0\.7\) both set the target: give one"),
        ({"nats": 0.5, "fraction": [1.0, 0.5]}, r"fraction \(\[1, 0\.5\]\) both set the target"),
        ({"fraction": [1.0, 0.5], "schedule": [[1, 1.0]]}, r"fraction \(\[1, 0\.5\]\) and schedule both say"),
        ({"fraction": [1.0, 0.0]}, "greater than 0"),
        ({"nats": 0.0}, "greater than 0"),
        ({"fraction": -1.0}, "greater than 0"),
        ({"start_responses": 0}, "greater than or equal to 1"),
        ({"nats": float("inf")}, "finite number"),
        ({"over": "some"}, "'all' or 'successful'"),
        ({"schedule": [[5, 1.0], [5, 0.5]]}, r"the schedule \[5, 1\], \[5, 0\.5\] needs rising iterations"),
        ({"schedule": [[1, 0.0]]}, "factors above 0"),
        ({"schedule": [[1.5, 1.0]]}, "valid integer"),
        ({"release_at": 0}, "greater than or equal to 1"),
    ],
)
def test_a_target_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetSettings(**settings)


def test_a_schedule_multiplies_the_target_along_straight_lines() -> None:
    target = Target(TargetSettings(nats=2.0, schedule=((2, 1.0), (4, 0.5))))
    assert [target.observe(9.0) for _ in range(6)] == [2.0, 2.0, 1.5, 1.0, 1.0, 1.0]
    relative = Target(TargetSettings(fraction=0.5, schedule=((1, 2.0), (3, 1.0))))
    assert [relative.observe(h) for h in (4.0, 0.1, 0.1)] == [4.0, 3.0, 2.0]


def test_a_pair_of_fractions_is_a_straight_line_over_the_iterations() -> None:
    settings = TargetSettings.model_validate({"fraction": [1.0, 0.5]})
    target = Target(settings.annealed(5))
    target.set_start(8.0)
    assert [target.observe(3.0) for _ in range(6)] == pytest.approx([8.0, 7.0, 6.0, 5.0, 4.0, 4.0])
    assert TargetSettings(fraction=(0.8, 0.2)).annealed(9) == TargetSettings(
        fraction=0.8, schedule=((1, 1.0), (9, 0.25))
    )
    assert settings.annealed(1) == TargetSettings(fraction=1.0)
    plain = TargetSettings(fraction=0.7, schedule=((1, 2.0),))
    assert plain.annealed(5) is plain


def test_an_entropy_that_was_not_measured_does_not_define_the_start() -> None:
    target = Target(TargetSettings(fraction=1.0))
    assert [target.observe(h) for h in (math.nan, 1.0, 3.0, 9.0)][1:] == [1.0, 1.0, 1.0]


# --- the whole ----------------------------------------------------------------------------------------------------------


def steering(kind: str, **target: Any) -> Steering:
    method = build.parse(build.METHODS, {"kind": "repo"}, "method")
    controller = build.parse(build.CONTROLLERS, SETTINGS[kind], "controller")
    return build.build(method, controller, TargetSettings(**{"fraction": 0.7, **target}))


def test_every_controller_has_a_case_here() -> None:
    assert set(SETTINGS) == set(build.CONTROLLERS)


@pytest.mark.parametrize("kind", sorted(SETTINGS))
@given(entropies=st.lists(st.floats(0.01, 3), min_size=1, max_size=12), stop=st.integers(0, 12))
def test_a_steering_resumed_from_its_state_goes_on_bit_for_bit(kind: str, entropies: list[float], stop: int) -> None:
    more = {"schedule": [(2, 1.0), (6, 0.5)], "release_at": 9}
    undisturbed, first, second = (steering(kind, **more) for _ in range(3))
    expected = [undisturbed.observe(row(h)) for h in entropies]
    for h in entropies[:stop]:
        first.observe(row(h))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))  # a checkpoint is JSON
    assert repr(second.state_dict()) == repr(first.state_dict())  # a start that is not measured yet is nan
    assert [second.observe(row(h)) for h in entropies[stop:]] == expected[stop:]
    assert second.controller.value == undisturbed.controller.value


def test_a_saved_coefficient_that_is_not_a_number_is_refused() -> None:
    made = steering("doubling")
    state = made.state_dict()
    state[COMMON]["controller"]["value"] = math.nan
    with pytest.raises(ValueError, match="the saved coefficient is nan: the checkpoint cannot be resumed"):
        made.load_state_dict(state)


def test_a_checkpoint_of_other_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="has entropy targets for all, b, the run for all: they have to be the same"):
        steering("doubling").load_state_dict({**steering("doubling").state_dict(), "b": {}})


def test_what_is_observed_moves_the_coefficient_of_the_updates_that_follow() -> None:
    made = steering("doubling")
    before = made.controller.value
    metrics = made.observe(row(1.0))  # the target is 0.7: entropy is too high
    assert metrics["entropy/target"] == pytest.approx(0.7)
    assert metrics["entropy/controlled"] == 1.0
    assert metrics["entropy/error"] == pytest.approx(-0.3 / 0.7)
    assert metrics["entropy/coefficient"] == made.controller.value == before / 2
    assert metrics["entropy/coefficient_needed"] == pytest.approx(0.04)
    assert metrics["entropy/coefficient_high"] == -metrics["entropy/coefficient_low"] == pytest.approx(0.32)
    assert metrics["entropy/saturated"] == 0.0
    for _ in range(12):
        metrics = made.observe(row(1e-6))
    assert (metrics["entropy/coefficient"], metrics["entropy/saturated"]) == (pytest.approx(0.32), 1.0)


def test_a_coefficient_that_only_raises_entropy_waits_for_it_to_come_down_from_the_start() -> None:
    method = build.parse(build.METHODS, {"kind": "repo_r"}, "method")
    controller = build.parse(build.CONTROLLERS, {"kind": "doubling", "allow_negative": False}, "controller")
    made = build.build(method, controller, TargetSettings(fraction=0.7))
    made.set_start(row(1.0))
    for entropy, saturated in ((1.0, 0.0), (0.9, 0.0), (1.2, 1.0), (0.8, 0.0)):
        metrics = [made.observe(row(entropy)) for _ in range(12)][-1]
        assert metrics["entropy/coefficient"] == metrics["entropy/coefficient_low"]
        assert metrics["entropy/saturated"] == saturated
    signed = steering("doubling")  # it could have pushed entropy down, and is at the end of that
    signed.set_start(row(1.0))
    assert [signed.observe(row(0.9)) for _ in range(40)][-1]["entropy/saturated"] == 1.0


def test_entropy_over_successful_responses_is_held_where_that_was_asked_for() -> None:
    made = steering("doubling", over="successful", fraction=None, nats=0.5)
    metrics = made.observe(row(3.0, correct=0.4))
    assert metrics["entropy/controlled"] == 0.4
    assert metrics["entropy/error"] == pytest.approx(0.2)
    coefficient = made.controller.value
    unmeasured = made.observe(row(3.0))  # nobody was right: nothing to steer by
    assert math.isnan(unmeasured["entropy/controlled"])
    assert made.controller.value == coefficient
    assert unmeasured["entropy/saturated"] == 0.0


def test_from_the_release_on_nothing_is_touched_and_nothing_moves() -> None:
    made = steering("doubling", release_at=2)
    stats = make_stats(5)
    made.observe(row(0.1))
    assert made.shape(stats, ("toy",)).advantages is not None
    coefficient = made.controller.value
    metrics = made.observe(row(0.1))
    assert metrics["entropy/released"] == 1.0
    assert made.controller.value == coefficient
    shaping = made.shape(stats, ("toy",))
    assert shaping.advantages is None
    assert shaping.touched is not None
    assert not shaping.touched.any()


# --- targets of their own -----------------------------------------------------------------------------------------------


def test_an_environment_with_a_target_of_its_own_has_a_coefficient_of_its_own() -> None:
    method = build.parse(build.METHODS, {"kind": "repo"}, "method")
    controller = build.parse(build.CONTROLLERS, SETTINGS["doubling"], "controller")
    made = build.build(method, controller, TargetSettings(nats=1.0), {"b": TargetSettings(nats=0.2)})
    part = row(0.5).parts["toy"]
    metrics = made.observe(LedgerRow({"a": part, "b": part, "c": part}, 1, {}))
    assert metrics["entropy/error"] == 0.5  # a and c, below 1 nat
    assert metrics["error/b"] == pytest.approx(-1.5)  # b, above 0.2
    assert (metrics["entropy/coefficient"], metrics["coefficient/b"]) == (2e-3, 5e-4)
    stats = make_stats(9, envs=3)
    shaped = made.shape(stats, ("a", "b", "c")).advantages
    coefficients = torch.tensor([2e-3, 5e-4, 2e-3] * 3, dtype=torch.float64)
    assert_close(shaped, stats.advantages - coefficients * stats.centred)


def test_a_method_over_the_whole_batch_cannot_have_several_coefficients() -> None:
    method = build.parse(build.METHODS, {"kind": "clip_cov"}, "method")
    fixed = build.parse(build.CONTROLLERS, {"kind": "fixed"}, "controller")
    with pytest.raises(
        ValueError, match="gives 1 targets of their own, and clip_cov takes its statistics over the whole"
    ):
        build.build(method, fixed, TargetSettings(), {"b": TargetSettings()})


def test_a_rate_limit_lets_the_coefficient_move_that_far_either_way() -> None:
    controller = make("additive", max_change=0.001)
    assert walk(controller, [LOW, LOW, HIGH, HIGH, HIGH]) == pytest.approx([0.011, 0.012, 0.011, 0.01, 0.009])
