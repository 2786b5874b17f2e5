"""The results of a lab: metrics against hand-computed ones, the Pareto front by its definition, differences by Student's t."""

import io
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.builders import run_folder

from orchestration.lab.collect import ArmRuns, collect
from orchestration.lab.compare import T95, difference, dominators, pareto, within_noise
from orchestration.lab.results import ArmResult, CellResult, LabResults, Spread
from orchestration.lab.tables import arm_table, matrices, percent_text, spread_text, tables, time_text

STEERED = "entropy: {method: {kind: repo_r}, controller: {kind: doubling}}\n"
FREE = "entropy: {method: {kind: none}, controller: {kind: fixed}}\n"


def passes(n: int, **by_heat: tuple[float, float]) -> Callable[[int], dict[str, float]]:
    """pass@1 and pass@4 of the last evaluation of a run of n iterations: T1=(0.5, 0.8), T03=..."""
    heats = {"T1": ("", "/T=1"), "T03": ("/T=0.3",)}

    def more(i: int) -> dict[str, float]:
        keys = {f"eval/a/pass@{k}{s}": v for t, pair in by_heat.items() for s in heats[t] for k, v in zip((1, 4), pair)}  # noqa: B905
        return keys if i == n else {}

    return more


def arm(name: str, **metrics: list[float]) -> ArmResult:
    """Builds an arm with one value per seed."""
    count = max(map(len, metrics.values()), default=0)
    cells = [
        CellResult(i, {key: values[i] for key, values in metrics.items() if i < len(values)}) for i in range(count)
    ]
    return ArmResult(name, cells=cells, metrics={key: expected(values) for key, values in metrics.items()})


def expected(values: list[float]) -> Spread:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values), deviation, len(values))


def close(value: Spread, mean: float, deviation: float, n: int) -> bool:
    return (value.mean, value.std, value.n) == pytest.approx((mean, deviation, n))


def test_metrics_their_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    one = run_folder(
        tmp_path / "0", end=0.5, target=0.5, config=STEERED, more=passes(40, T1=(0.4, 0.7), T03=(0.5, 0.6))
    )
    two = run_folder(
        tmp_path / "1", end=0.7, target=0.5, config=STEERED, more=passes(40, T1=(0.6, 0.8), T03=(0.8, 0.6))
    )
    results = collect([ArmRuns("repo", {0: one, 1: two}, note="held")])
    assert (results.temperature, results.k) == (1.0, 4)
    (repo,) = results.arms
    assert (repo.name, repo.note, repo.steered, repo.failed) == ("repo", "held", True, {})
    first, second = repo.finished[0], repo.finished[1]
    off = [(1 - 0.0125 * i - 0.5) / 0.5 for i in range(41)]  # rows 0..40: entropy on a line from 1 to 0.5
    assert first["rms_last_third"] == pytest.approx(math.sqrt(statistics.fmean(v * v for v in off[27:])))
    assert first["rms_last_two_thirds"] == pytest.approx(math.sqrt(statistics.fmean(v * v for v in off[13:])))
    assert first["max_last_two_thirds"] == pytest.approx(off[13])
    assert (first["seconds"], first["tokens"], first["iterations"], first["target"]) == (82.0, 4100.0, 40.0, 0.5)
    assert (first["reward_end"], first["distinct_start"], first["distinct_end"]) == pytest.approx((0.58, 5.0, 3.0))
    assert second["pass@1/T=0.3/start"] == pytest.approx(0.1)
    assert second["pass@4/T=0.3/end"] == pytest.approx(0.6)
    ends = [first["entropy_end"], second["entropy_end"]]
    assert ends == pytest.approx([0.525, 0.715])  # means of the last five: two steps before the last
    assert close(repo.spread("entropy_end"), 0.62, 0.19 / math.sqrt(2), 2)
    assert close(repo.spread("pass@1/end"), 0.5, 0.2 / math.sqrt(2), 2)
    assert repo.spread("nothing").n == 0


def test_the_best_temperature_is_best_on_the_mean_over_seeds(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "0", more=passes(40, T1=(0.60, 0.7), T03=(0.5, 0.7)))
    two = run_folder(tmp_path / "1", more=passes(40, T1=(0.40, 0.8), T03=(0.7, 0.8)))
    (actual,) = collect([ArmRuns("a", {0: one, 1: two})]).arms
    assert actual.best["pass@1"].temperature == 0.3
    assert close(actual.best["pass@1"].spread, 0.6, 0.2 / math.sqrt(2), 2)
    assert actual.best["pass@4"].temperature == 1.0  # of equals the first
    assert [actual.finished[seed]["pass@1/best"] for seed in (0, 1)] == [0.5, 0.7]


def test_a_temperature_that_only_a_lucky_seed_has_is_not_the_best(tmp_path: Path) -> None:
    def without(i: int) -> dict[str, float]:
        return {f"eval/a/pass@{k}/T=0.3": math.nan for k in (1, 4)} | passes(40, T1=(0.4, 0.8))(i)

    one = run_folder(tmp_path / "0", more=passes(40, T1=(0.4, 0.8), T03=(0.9, 0.9)))
    (actual,) = collect([ArmRuns("a", {0: one, 1: run_folder(tmp_path / "1", more=without)})]).arms
    assert actual.best["pass@1"].temperature == 1.0


def test_the_start_is_each_seeds_first_evaluation(tmp_path: Path) -> None:
    arms = [ArmRuns(name, {seed: run_folder(tmp_path / f"{name}{seed}") for seed in (0, 1)}) for name in "ab"]
    start = collect(arms).start
    assert close(start.spread("pass@4/end"), 0.4, 0.0, 2)
    assert start.spread("distinct_end").mean == 5.0
    assert start.best["pass@1"].spread.mean == pytest.approx(0.1)


def test_one_evaluation_is_an_end_and_not_a_start(tmp_path: Path) -> None:
    only = {f"eval/a/{what}": math.nan for what in ("pass@1", "pass@4", "pass@1/T=1", "pass@4/T=1", "pass@1/T=0.3")}
    only |= {"eval/a/pass@4/T=0.3": math.nan, "eval/a/distinct_correct": math.nan}
    run = run_folder(tmp_path / "0", more=lambda i: {} if i else only)
    (actual,) = collect([ArmRuns("a", {0: run})]).arms
    assert actual.spread("pass@1/end").n == 1
    assert not [key for key in actual.metrics if key.endswith("/start") or key == "distinct_start"]


def test_nobody_is_off_a_target_that_nobody_aims_at(tmp_path: Path) -> None:
    free = run_folder(tmp_path / "free", target=0.9, config=FREE)

    def released(i: int) -> dict[str, float]:
        return {"entropy/released": float(i > 20), "entropy/controlled": 0.55 if i <= 20 else 9.0}

    let_go = run_folder(tmp_path / "let-go", end=1.0, target=0.5, config=STEERED, more=released)
    one, two = collect([ArmRuns("free", {0: free}), ArmRuns("let go", {0: let_go})]).arms
    assert not one.steered
    assert one.spread("rms_last_two_thirds").n == 0
    assert two.spread("rms_last_two_thirds").mean == pytest.approx(
        0.1
    )  # of what the controller observes, while it holds


def test_runs_that_failed_or_cannot_be_read_are_named(tmp_path: Path) -> None:
    good = run_folder(tmp_path / "good")
    lab = [ArmRuns("a|b", {0: good, 2: tmp_path / "nowhere"}, {1: "Out of memory."}), ArmRuns("c", {}, {0: "No."})]
    results = collect(lab)
    assert list(results.arms[0].failed) == [1, 2]
    assert "is not a folder" in results.arms[0].failed[2]
    text = arm_table(results).to_markdown()
    assert "| a\\|b | 1 of 3 |" in text
    assert "- failed: a\\|b, seed 1: Out of memory." in text
    assert "| c | 0 of 1 | — |" in text
    console = Console(record=True, width=250, file=io.StringIO())
    console.print(arm_table(results).to_rich())
    shown = console.export_text()
    assert all(part in shown for part in ("a|b", "1 of 3", "failed: c, seed 0: No."))


def test_the_tables_of_nothing() -> None:
    results = collect([])
    assert (results.arms, results.k, results.temperature) == ((), 1, None)
    assert arm_table(results).to_markdown().count("\n") == 2
    assert arm_table(results).to_rich().row_count == 0


def test_numbers_of_the_table_with_their_spread() -> None:
    assert spread_text(Spread(0.5, 0.0123, 3)) == "0.500 ± 0.012"
    assert spread_text(Spread(0.5, math.nan, 1)) == "0.500"
    assert spread_text(Spread(math.nan, math.nan, 0)) == "—"
    assert percent_text(Spread(-0.66, 0.03, 3), sign=True) == "−66 ± 3\xa0%"
    assert percent_text(Spread(0.044, 0.01, 3)) == "4.4 ± 1.0\xa0%"
    assert percent_text(Spread(0.3, 0.004, 3), sign=True) == "+30.0 ± 0.4\xa0%"
    assert percent_text(Spread(-0.0001, 0.0, 3), sign=True) == "0.0 ± 0.0\xa0%"
    assert time_text(Spread(130.0, 4.2, 2)) == "2 min 10 s ± 4 s"


def test_the_table_says_mean_spread_and_best_temperature(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "0", more=passes(40, T1=(0.4, 0.7), T03=(0.5, 0.6)))
    two = run_folder(tmp_path / "1", more=passes(40, T1=(0.6, 0.8), T03=(0.8, 0.6)))
    results = collect([ArmRuns("a", {0: one, 1: two})])
    text = arm_table(results).to_markdown()
    for shown in ("pass@1, T = 1", "pass@4, best T", "| 0.500 ± 0.141 |", "0.650 ± 0.212 (T = 0.3)", "| start | 2 |"):
        assert shown in text, shown


DATA = Path(__file__).parents[2] / "benchmarks" / "data"


@pytest.mark.parametrize("name", ["entropy-grid", "entropy-pilot", "sequential", "sequential-deep"])
def test_earlier_results_files_are_read_and_written_alike(name: str) -> None:
    text = (DATA / f"{name}.json").read_text("utf-8")
    results = LabResults.from_json(json.loads(text))
    data = json.loads(text.replace('"authority"', '"affected"'))  # the metric's earlier name
    assert results.to_json() == data
    assert json.dumps(results.to_json(), indent=1) == json.dumps(data, indent=1)  # the same order as well
    assert len(arm_table(results).rows) == len(data["arms"]) + 1


def test_results_without_a_spread_and_with_failures_survive_json() -> None:
    failed = ArmResult(
        "b", cells=(CellResult(0, {"x": 1.0}), CellResult(2, failure="No.")), metrics={"x": Spread(1.0, n=1)}
    )
    data = LabResults((failed,)).to_json()
    assert data["arms"][0]["figures"] == {"x": {"mean": 1.0, "std": None, "n": 1}}
    assert (data["arms"][0]["seeds"], data["arms"][0]["failed"]) == ({"0": {"x": 1.0}}, {"2": "No."})
    again = LabResults.from_json(json.loads(json.dumps(data, allow_nan=False)))
    assert again.to_json() == data
    assert math.isnan(again.arms[0].spread("x").std)
    assert again.arms[0].failed == {2: "No."}


# ---------------------------------------------------------------- comparing

VALUES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=9)


@given(VALUES)
def test_the_front_is_who_is_not_dominated(points: list[tuple[int, int]]) -> None:
    arms = [arm(f"arm {i}", x=[float(x)], y=[float(y)]) for i, (x, y) in enumerate(points)]
    front = {int(name[4:]) for name in pareto(arms, "x", "y")}

    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)

    assert all(not beaten(i) for i in front)
    assert all(beaten(i) for i in range(len(points)) if i not in front)
    assert bool(front) == bool(points)


def test_an_arm_without_a_metric_is_neither_on_the_front_nor_dominates() -> None:
    arms = [arm("a", x=[1.0], y=[1.0]), arm("b", x=[2.0]), arm("c")]
    assert pareto(arms, "x", "y") == ["a"]
    assert dominators(arms, arms[0], "x", "y") == []


def test_differences_are_paired_by_seed() -> None:
    a, b = arm("a", x=[0.50, 0.61, 0.69]), arm("b", x=[0.40, 0.50, 0.60])  # far apart seeds, alike differences
    actual = difference(a, b, "x")
    steps = [0.10, 0.11, 0.09]
    assert actual.mean == pytest.approx(0.10)
    assert actual.error == pytest.approx(statistics.stdev(steps) / math.sqrt(3))
    assert (actual.pairs, actual.clear) == (3, True)
    assert difference(b, a, "x").clear
    # The same means without pairs: the spread of the seeds hides it.
    other = replace(b, cells=[replace(cell, seed=cell.seed + 10) for cell in b.cells])
    unpaired = difference(a, other, "x")
    spreads = [statistics.variance(values) / 3 for values in ([0.50, 0.61, 0.69], [0.4, 0.5, 0.6])]
    assert (unpaired.mean, unpaired.error) == pytest.approx((0.10, math.sqrt(sum(spreads))))
    assert (unpaired.pairs, unpaired.clear) == (0, False)


def test_three_seeds_need_four_standard_errors() -> None:
    assert (T95[0], T95[1], T95[9], len(T95)) == (12.706, 4.303, 2.228, 30)
    base = arm("b", x=[0.0, 0.0, 0.0])
    error = 1.0 / math.sqrt(3)  # of differences m - 1, m, m + 1
    assert difference(arm("a", x=[m - 1.0 for m in (0.0, 1.0, 2.0)]), base, "x").error == pytest.approx(error)
    for factor, clear in ((4.2, False), (4.4, True)):
        middle = factor * error
        assert difference(arm("a", x=[middle - 1.0, middle, middle + 1.0]), base, "x").clear is clear


def test_one_seed_and_rounding_tell_nothing_apart() -> None:
    assert not difference(arm("a", x=[0.9]), arm("b", x=[0.1]), "x").clear
    same, again = arm("a", x=[0.1 + 0.2, 0.3, 0.7 + 0.1]), arm("b", x=[0.3, 0.1 + 0.2, 0.8])
    assert not difference(same, again, "x").clear
    off = arm("c", x=[value + 2e-16 for value in (0.3, 0.3, 0.3)])  # each by the same: no spread to hide it
    assert difference(off, arm("d", x=[0.3] * 3), "x").mean > 0.0
    assert not difference(off, arm("d", x=[0.3] * 3), "x").clear
    assert not difference(arm("a"), same, "x").clear


def test_off_the_front_within_the_noise_or_clearly() -> None:
    best = arm("best", x=[0.50, 0.52, 0.54], y=[0.9, 0.9, 0.9])
    near = arm("near", x=[0.53, 0.50, 0.50], y=[0.9, 0.9, 0.9])
    far = arm("far", x=[0.40, 0.42, 0.44], y=[0.9, 0.9, 0.9])
    arms = [best, near, far]
    assert pareto(arms, "x", "y") == ["best"]
    assert [within_noise(arms, one, "x", "y") for one in arms] == [False, True, False]


def test_a_lab_of_runs_with_stages_has_a_second_table(tmp_path: Path) -> None:
    staged = {"retained/pass@1": [0.5, 0.7], "forgetting/pass@1": [0.1, 0.1], "area/reward/0": [0.4, 0.6]}
    staged["entropy_change/0"] = [-0.8, -0.6]
    plain = LabResults([arm("a", reward_end=[0.5, 0.7])], temperature=1.0)
    assert len(tables(plain)) == 1
    _, shown = tables(LabResults([arm("a", **staged)], temperature=1.0))
    assert shown.headings == [
        "arm",
        "at the end, pass@1",
        "forgetting, pass@1",
        "reward, stage 0",
        "entropy, stage 0",
    ]
    assert "| a | 0.600 ± 0.141 | 0.100 ± 0.000 | 0.500 ± 0.141 | −70 ± 14\N{NO-BREAK SPACE}% |" in shown.to_markdown()


def test_a_lab_of_runs_with_stages_has_the_matrix_of_every_arm() -> None:
    cells = {
        "matrix/pass@1/start/add": [0.1, 0.1],
        "matrix/pass@1/0/add": [0.5, 0.7],
        "matrix/pass@1/start/rg/gcd": [0.0, 0.2],
        "matrix/pass@1/0/rg/gcd": [0.2, 0.2],
    }
    (matrix,) = matrices(LabResults([arm("a|b", **cells)], temperature=1.0))
    assert matrix.to_markdown().splitlines() == [
        "| pass@1 | after | add | rg/gcd |",
        "|---|---|---:|---:|",
        "| a\\|b | before training | 0.100 ± 0.000 | 0.100 ± 0.141 |",
        "| a\\|b | stage 0 | 0.600 ± 0.141 | 0.200 ± 0.000 |",
    ]
    assert matrices(LabResults([arm("a", reward_end=[0.5, 0.7])])) == []
