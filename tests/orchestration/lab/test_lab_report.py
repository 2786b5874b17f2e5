"""The report of a lab: a page that stands alone, names every arm and every failure, and claims what the seeds support."""

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import HOSTILE, run_folder
from support.html_page import Page

from orchestration.analysis.run_data import load_run
from orchestration.lab.charts import ArmTracks, entropy_tracks, relative
from orchestration.lab.collect import ArmRuns, collect
from orchestration.lab.lab_report import write_lab_report
from orchestration.lab.narrative import listed, narrative
from orchestration.report.run_report import write_report
from orchestration.report.svg.points import Box, Point, place_names, point_chart

STEERED = "entropy: {method: {kind: repo_r}, controller: {kind: doubling}}\n"
FREE = "entropy: {method: {kind: none}, controller: {kind: fixed}}\n"


def scores(pass_1: float, pass_4: float, seed: int) -> Callable[[int], dict[str, float]]:
    """Returns the last evaluation, slightly different for each seed."""
    keys = [f"eval/a/pass@{k}{heat}" for k in (1, 4) for heat in ("", "/T=1", "/T=0.3")]
    values = [(pass_1 if "@1" in key else pass_4) + 0.001 * seed for key in keys]
    return lambda i: dict(zip(keys, values, strict=True)) if i == 40 else {}


def lab(folder: Path, count: int = 2, seeds: int = 3) -> list[ArmRuns]:
    """Returns arms that trade pass@1 for pass@4; every other one is steered to its final entropy."""
    arms = []
    for a in range(count):
        runs = {}
        for seed in range(seeds):
            more, target = scores(0.5 - 0.01 * a, 0.7 + 0.01 * a, seed), 0.6 if a % 2 else None
            path, config = folder / "arms" / f"{a}-{seed}", STEERED if a % 2 else FREE
            runs[seed] = run_folder(path, end=0.6, target=target, config=config, more=more)
        arms.append(ArmRuns(f"arm-{a}", runs, note=f"note {a}"))
    return arms


def written(out: Path, arms: list[ArmRuns], title: str = "A lab") -> Page:
    page = Page(write_lab_report(title, arms, collect(arms), out / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_every_part_is_there(tmp_path: Path) -> None:
    arms = lab(tmp_path)
    write_report([arms[0].runs[1]], arms[0].runs[1] / "report.html")
    page = written(tmp_path, arms)
    for shown in (
        "Isentrope lab",
        "2 arms, 6 finished runs.",
        "No controller steers arm-0",
        "Front of pass@1 and pass@4 at T = 1. arm-0 (0.501, 0.701) and arm-1 (0.491, 0.711)",
        "Highest pass@1 at T = 1. arm-0 (0.501 ± 0.001), clear of every other arm.",
        "0.501± 0.001 (T = 1)",
        "pass@1 against pass@4 at T = 1",
        "each at its best temperature",
        "pass@k at T = 1",
        "Exact entropy over its start",
        "Entropy coefficient",
        "Reward",
        "note 1",
        "Every run",
    ):
        assert shown in page.text, shown
    assert [value for name, value in page.attributes if name == "href"] == ["./arms/0-1/report.html"]
    for numbers in (value for name, value in page.attributes if name in ("d", "cx", "cy", "x1", "x2", "y1", "x", "y")):
        assert "nan" not in (numbers or "")
    assert written(tmp_path, arms).text == page.text


def test_more_arms_than_colours_get_a_chart_each(tmp_path: Path) -> None:
    few = written(tmp_path / "few", lab(tmp_path / "8", 8, 1))
    many = written(tmp_path / "many", lab(tmp_path / "9", 9, 1))
    assert few.tags.count("figure") == 6
    assert many.tags.count("figure") == 2 + 3 * 9 + 1  # the four arms with a coefficient that moves share one chart
    assert "Grey: arm-0." in many.text
    assert ("class", "ring c0") in many.attributes


def test_a_failed_arm_is_named_with_its_reason(tmp_path: Path) -> None:
    arms = [*lab(tmp_path, 1), ArmRuns("lost", {}, {0: "The engine did not start.", 1: "Nor did it this time."})]
    page = written(tmp_path, arms)
    assert "lost, seed 0: The engine did not start." in page.text
    assert "2 runs failed and are left out of every mean." in page.text
    assert "0 of 2" in page.text


@pytest.mark.parametrize("arms", [[], [ArmRuns("only", {}, {3: "No."})], [ArmRuns("nothing", {})]])
def test_a_lab_without_a_finished_run(tmp_path: Path, arms: list[ArmRuns]) -> None:
    page = written(tmp_path, arms)
    assert ("No run has finished." if arms else "The lab has no arms.") in page.text
    assert page.tags.count("svg") == 0


def test_runs_with_almost_nothing_in_them(tmp_path: Path) -> None:
    for i, line in enumerate(('{"iteration": 0}', '{"iteration": 1, "entropy/exact": 0.0, "entropy/target": 0.0}')):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "metrics.jsonl").write_text(line + "\n")
    assert "Every run" in written(tmp_path, [ArmRuns("a", {0: tmp_path / "0", 1: tmp_path / "1"})]).text


def test_hostile_names_cannot_act(tmp_path: Path) -> None:
    folder = tmp_path / "javascript:alert(1)\"'<b>"
    runs = {0: run_folder(folder / "run"), 1: run_folder(folder / "two")}
    write_report([runs[0]], runs[0] / "report.html")
    arms = [ArmRuns(HOSTILE, runs, {2: HOSTILE}, note=HOSTILE), ArmRuns("b", runs, note="]]>")]
    page = written(tmp_path, arms, title=HOSTILE)
    assert page.tags.count("script") == 1
    assert not {"img", "b>", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    links = [value or "" for name, value in page.attributes if name == "href"]
    assert links
    assert all(link.startswith("./javascript%3Aalert") for link in links)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text
    assert "<script>alert" not in text
    assert not re.search("[\x1b\u202e]", text)
    assert "script-src 'sha256-" in text


# ---------------------------------------------------------------- words


def paragraphs(arms: list[ArmRuns]) -> dict[str, str]:
    return {paragraph.subject: paragraph.text for paragraph in narrative(collect(arms))}


def test_the_narrative_says_which_arm_holds_its_target(tmp_path: Path) -> None:
    held = run_folder(tmp_path / "held", end=1.0, target=0.98, config=STEERED)
    missed = run_folder(
        tmp_path / "missed", end=0.5, target=1.0, config=STEERED, more=lambda i: {"entropy/saturated": 1.0}
    )
    text = paragraphs([ArmRuns("a", {0: held}), ArmRuns("b", {0: missed})])["Targets"]
    assert "Held to within 10\xa0% rms over the last two thirds of the iterations: a (2\xa0%)." in text
    assert re.search(r"Missed by more: b \(\d+\xa0%, its coefficient at a bound in 100\xa0% of the iterations\)", text)


def test_the_narrative_does_not_call_noise_a_lead(tmp_path: Path) -> None:
    a = {s: run_folder(tmp_path / f"a{s}", more=scores(0.50 + d, 0.70, 0)) for s, d in enumerate((0.0, 0.02, 0.04))}
    b = {s: run_folder(tmp_path / f"b{s}", more=scores(0.51 - d, 0.70, 0)) for s, d in enumerate((0.0, 0.02, 0.01))}
    text = paragraphs([ArmRuns("a", a), ArmRuns("b", b)])
    assert text["Highest pass@1 at T = 1"].endswith("which these seeds cannot tell from any other arm.")
    assert text["Front of pass@1 and pass@4 at T = 1"].endswith("Off it by no more than the noise of the seeds: b.")
    assert "clearly higher in every arm" in text["Against the start"]  # 0.4 before training
    single = paragraphs([ArmRuns("a", {0: a[0]}), ArmRuns("b", {0: b[0]})])
    assert "no difference between arms can be told" in single["How differences are scored"]
    assert "clear of every other arm" not in " ".join(single.values())


def test_lists_as_people_write_them() -> None:
    assert [listed(list(words)) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


# ---------------------------------------------------------------- charts


def test_tracks_are_means_over_seeds_with_their_spread(tmp_path: Path) -> None:
    ends = (0.5, 0.7)
    runs = [load_run(run_folder(tmp_path / str(end), n=20, end=end)) for end in ends]
    assert relative(runs[0], "entropy/exact")[-1] == pytest.approx(0.5 / 0.975)
    panel = entropy_tracks([ArmTracks("a", 0, runs)])
    assert panel is not None
    (chart,) = panel.charts
    (packed,) = re.findall(r"data-chart=\"([^\"]*)\"", chart)
    last = float(re.findall(r"([\d.]+)\]", packed)[-1])
    assert last == pytest.approx((0.5 / 0.975 + 0.7 / 0.985) / 2, rel=1e-4)
    assert chart.count('class="band c0"') == 1
    single = entropy_tracks([ArmTracks("a", 0, runs[:1])])
    assert single is not None
    assert 'class="band c0"' not in single.charts[0]


@given(
    st.lists(st.tuples(st.floats(80, 1000), st.floats(40, 380), st.integers(1, 25)), max_size=8),
)
def test_names_stay_inside_and_near_their_points(points: list[tuple[float, float, int]]) -> None:
    frame = Box(60, 12, 1086, 404)
    boxes = place_names([(x, y) for x, y, _ in points], [n * 6.1 for _, _, n in points], frame)
    for (x, y, n), box in zip(points, boxes, strict=True):
        assert box.right - box.left == pytest.approx(n * 6.1)
        assert frame.left <= box.left and box.right <= frame.right
        assert frame.top <= box.top and box.bottom <= frame.bottom
        assert math.hypot(max(box.left - x, x - box.right, 0), max(box.top - y, y - box.bottom, 0)) < 110


def test_names_of_a_crowd_do_not_cover_one_another() -> None:
    anchors = [(500.0 + 7 * i, 200.0 + 3 * (i % 3)) for i in range(10)]
    boxes = place_names(anchors, [90.0] * 10, Box(60, 12, 1086, 404))
    for a, b in itertools.combinations(boxes, 2):
        assert min(a.right, b.right) <= max(a.left, b.left) or min(a.bottom, b.bottom) <= max(a.top, b.top)


def test_points_show_bars_where_there_is_a_spread() -> None:
    chart = point_chart("t", [Point("a", 0.5, 0.8, 0.1, 0.05), Point("<b>", 0.6, 0.7, colour=9, mark="ring")])
    assert chart.count('class="bar') == 2
    assert 'class="ring c1"' in chart
    assert "<b>" not in chart
    assert point_chart("t", [Point("a", math.nan, 1.0)]) == ""
