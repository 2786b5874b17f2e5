"""The sentence on a lab of two arms: what is said to be ahead is ahead in every pair of seeds, beyond their noise."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.lab.headline import headline
from orchestration.lab.results import ArmResult, CellResult, LabResults, Spread


def arm(name: str, **metrics: list[float]) -> ArmResult:
    seeds = range(len(next(iter(metrics.values()))))
    named = {key.replace("__", "/").replace("pass", "pass@"): values for key, values in metrics.items()}
    cells = [CellResult(seed, {key: values[seed] for key, values in named.items()}) for seed in seeds]
    return ArmResult(name, cells=cells, metrics={key: Spread.over(values) for key, values in named.items()})


def test_ahead_behind_and_not_told_apart_with_their_numbers() -> None:
    base = arm(
        "grpo", area__reward__0=[0.3, 0.31, 0.29], area__reward__1=[0.02, 0.03, 0.01], pass1__best=[0.2, 0.1, 0.3]
    )
    held = arm(
        "held", area__reward__0=[0.2, 0.21, 0.19], area__reward__1=[0.22, 0.22, 0.22], pass1__best=[0.1, 0.3, 0.2]
    )
    assert headline(LabResults([base, held], k=1, stages=["first"])) == (
        "held against grpo, 3 seeds: ahead in the mean reward of stage 1 (0.220 against 0.020, +0.200 ± 0.025); behind in the mean "
        "reward of first (0.200 against 0.300, -0.100 ± 0.000); not told apart in pass@1 at each one's best temperature at the end "
        "(0.200 against 0.200, +0.000 ± 0.430)."
    )


def test_what_is_left_of_the_last_environment_after_the_stages_before_is_compared() -> None:
    def staged(name: str, first: float, last: float) -> ArmResult:
        metrics: dict[str, float] = {"area/reward/0": 0.3, "area/reward/1": 0.2}
        for stage, value in ((0, first), (1, last)):
            metrics |= {f"matrix/pass@{k}/{stage}/{env}": value for k in (1, 4) for env in ("one", "two")}
        cells = [CellResult(seed, metrics) for seed in (0, 1)]
        return ArmResult(name, cells=cells, metrics={key: Spread.over([v, v]) for key, v in metrics.items()})

    text = headline(LabResults([staged("a", 0.1, 0.4), staged("b", 0.3, 0.4)], k=4, stages=["one", "two"]))
    assert text.startswith(
        "b against a, 2 seeds: ahead in pass@1 in two after one (0.300 against 0.100, +0.200 ± 0.000)"
    )
    assert "pass@4 in two after one" in text and "in one after one" not in text and "after two" not in text


def test_one_seed_tells_nothing_apart() -> None:
    text = headline(LabResults([arm("a", pass1__best=[0.1]), arm("b", pass1__best=[0.9])], k=1))
    assert text == (
        "b against a, 1 seed: not told apart in pass@1 at each one's best temperature (0.900 against 0.100, +0.800)."
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_only_two_arms_have_a_headline(count: int) -> None:
    assert headline(LabResults([arm(f"a{i}", pass1__best=[0.1, 0.2]) for i in range(count)])) == ""


def test_an_arm_whose_runs_all_failed_leaves_nothing_to_say() -> None:
    failed = ArmResult("b", cells=[CellResult(0, failure="it broke")])
    assert headline(LabResults([arm("a", pass1__best=[0.1, 0.2]), failed])) == ""


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_what_is_ahead_has_an_interval_above_zero(pairs: list[tuple[float, float]]) -> None:
    text = headline(
        LabResults([arm("a", pass1__best=[a for a, _ in pairs]), arm("b", pass1__best=[b for _, b in pairs])], k=1)
    )
    gap = statistics.fmean(b - a for a, b in pairs)
    if "ahead" in text:
        assert gap > 0
    if "behind" in text:
        assert gap < 0
    if all(b - a > 0.5 for a, b in pairs) and statistics.stdev(b - a for a, b in pairs) < 0.01:
        assert "ahead" in text
