"""The report: a page that stands alone, survives missing data and untrusted text, and says what the numbers say."""

import html.parser
import io
import itertools
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestration.plots import Series, axis, label, line_chart, log_ticks, nice_ticks, scatter_chart, spark_text
from orchestration.report import (
    RunSummary,
    comparison,
    demo_table,
    duration,
    percent,
    sentences,
    summarise,
    write_report,
)

CONFIG = "run: {name: demo, seed: 3}\nentropy:\n  method: {kind: repo}\nobjective: {advantage: grpo}\n"
HOSTILE = "</pre><script>alert('x')</script><img src=x onerror=alert(1)>\x1b[2J\u202e\ud800"


def make(
    folder: Path, n: int = 40, *, end: float = 0.5, target: float | None = None, envs: tuple[str, ...] = ("a",)
) -> Path:
    """A run whose entropy moves from 1 to `end` on a straight line, with an evaluation at both ends."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(n + 1):
        row: dict[str, float | None] = {"iteration": i, "time/iteration": 2.0, "tokens/generated": 100.0}
        row |= {"entropy/exact": 1.0 + (end - 1.0) * i / n, "reward/mean": 0.2 + 0.4 * i / n, "time/generate": 1.0}
        row |= {"entropy/predicted_dh": math.sin(i), "entropy/realised_dh": 2.0 * math.sin(i - 1)}
        if target is not None:
            row |= {"entropy/target": target, "entropy/knob": 0.1, "entropy/knob_low": 0.0, "entropy/knob_high": 1.0}
        if i in (0, n):
            for env in envs:
                row |= {f"eval/{env}/pass@{k}{t}": 0.1 * k + i / 100 for k in (1, 4) for t in ("", "/T=1", "/T=0.3")}
                row[f"eval/{env}/distinct_correct"] = 5.0 - i / 20
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(CONFIG)
    sample = {"env": HOSTILE, "prompt": [{"role": "user", "content": HOSTILE}], "reply": HOSTILE, "reward": 1.0}
    lines = [json.dumps(sample | {"iteration": i, "status": HOSTILE}) for i in (0, n // 2, n)]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


class Page(html.parser.HTMLParser):
    """Tags, addresses and texts of a page; complains about a tag closed out of order."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(out: Path, *runs: Path) -> Page:
    page = Page(write_report(list(runs), out / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_stands_alone_and_replies_cannot_act(tmp_path: Path) -> None:
    page = report(tmp_path, make(tmp_path / "<b>run</b>", target=0.5, envs=("a", "b")))
    assert page.tags.count("script") == 1
    assert not {"img", "link", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "onerror") or name.startswith("on")]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in text
    assert "<b>run" not in text
    assert not re.search("[\x1b\u202e]", text)
    assert "script-src 'sha256-" in text
    assert "http://" not in text
    assert "https://" not in text


def test_every_section_is_there(tmp_path: Path) -> None:
    one, two = make(tmp_path / "grpo"), make(tmp_path / "repo", target=0.9, end=0.9, envs=("a", "b"))
    page = report(tmp_path, one, two)
    for shown in (
        "grpo · repo",
        "Exact entropy fell 47",
        "repo, target",
        "Reward",
        "pass@k by temperature",
        "repo, T = 0.3",
        "Quality against coverage",
        "Entropy knob",
        "slope 2, r = 1.00",
        "Time of an iteration, grpo",
        "Environment: b",
        "Distinct correct solutions",
        "Configuration of repo",
        "method: {kind: repo}",
    ):
        assert shown in page.text, shown
    for numbers in (value for name, value in page.attributes if name in ("d", "cx", "cy", "x1", "points")):
        assert "nan" not in (numbers or "")
    assert page.tags.count("circle") > 80


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    page = report(tmp_path, make(tmp_path / "x" / "run"), make(tmp_path / "y" / "run"))
    assert "run (1) · run (2)" in page.text


@pytest.mark.parametrize(
    "line",
    [
        '{"iteration": 0}',
        '{"iteration": 1, "entropy/exact": null, "reward/mean": null, "loss": null}',
        '{"iteration": 1, "entropy/exact": 1.0, "entropy/target": 0.0, "entropy/knob": 0.0}',
        '{"iteration": 0, "eval/a/pass@1/T=1": 0.5}',
        '{"iteration": 1, "entropy/exact": 0.0, "reward/mean": -1e300, "foreign key": 3, "note": "text"}',
    ],
)
def test_a_run_of_one_row_with_almost_nothing_in_it(tmp_path: Path, line: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(line + "\n")
    page = report(tmp_path, tmp_path / "run")
    assert "Isentrope report" in page.text
    summarise(tmp_path / "run")


def test_runs_that_cannot_be_reported_say_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "out.html")
    with pytest.raises(ValueError, match="is not a folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "out.html")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="no finished iteration"):
        summarise(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n')
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        summarise(tmp_path)


def test_the_summary_follows_its_definitions(tmp_path: Path) -> None:
    s = summarise(make(tmp_path / "run", n=40, end=0.6, target=0.5))
    assert (s.name, s.iterations) == ("run", 40)
    assert s.entropy_start == pytest.approx(0.99)  # mean of 1.00, 0.99, 0.98
    assert s.entropy_end == pytest.approx(0.62)  # mean of 0.64 .. 0.60
    assert s.entropy_change == pytest.approx(0.62 / 0.99 - 1)
    late = [abs(1 - 0.01 * i - 0.5) / 0.5 for i in range(27, 41)]  # the last third of 41 rows
    assert s.target_error_last_third == pytest.approx(sum(late) / len(late))
    assert s.target_rms_last_third == pytest.approx(math.sqrt(sum(v * v for v in late) / len(late)))
    assert (s.pass_1, s.pass_at[4], s.distinct) == pytest.approx((0.5, 0.8, 3.0))
    assert s.pass_at_start == pytest.approx({1: 0.1, 4: 0.4})
    assert math.isnan(s.pass_16)
    assert (s.seconds, s.tokens) == (82.0, 4100.0)
    assert s.reward_end == pytest.approx(0.58)


def test_sentences_say_what_the_numbers_say() -> None:
    s = RunSummary("x", 300, entropy_start=1.21, entropy_end=0.45, entropy_change=0.45 / 1.21 - 1)
    assert sentences(s) == "Exact entropy fell 63\xa0% from 1.21 to 0.45 nats per token in 300 iterations."
    held = RunSummary(
        "x", 9, 1.0, 1.01, 0.01, target=1.0, target_rms_last_third=0.06, saturated=0.5, not_finite=("loss",)
    )
    assert "stayed near 1.01" in sentences(held)
    assert "within 6\xa0% rms of its target (1.00)" in sentences(held)
    assert "at its bound" in sentences(held)
    assert "loss" in sentences(held)
    assert sentences(RunSummary("x", 1)) == ""


def test_comparison_names_the_leader_and_a_tie() -> None:
    a = RunSummary("a", 1, pass_at={1: 0.5, 16: 0.8}, distinct=2.0)
    b = RunSummary("b", 1, pass_at={1: 0.5, 16: 0.9}, distinct=4.0)
    text = "Highest pass@1: a tie (0.50); pass@16: b (0.90); distinct correct solutions: b (4.0)."
    assert comparison([a, b]) == text
    assert comparison([a, RunSummary("c", 1)]) == ""


def test_the_demo_table_shows_names_as_they_are() -> None:
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(demo_table([RunSummary("[red]x", 1, 1.0, 0.4, -0.6, pass_at={1: 0.5, 8: 0.75}, seconds=4000)]))
    text = console.export_text()
    assert all(shown in text for shown in ("[red]x", "0.400", "−60", "pass@8", "0.750", "67 min"))


def test_numbers_as_people_write_them() -> None:
    assert [duration(v) for v in (45.2, 700, 12_000, math.nan)] == ["45 s", "12 min", "3 h 20 min", "—"]
    assert [percent(v) for v in (0.063, 0.06, 0.5, math.nan)] == ["6.3\xa0%", "6\xa0%", "50\xa0%", "—"]
    assert [label(v) for v in (0.0, 0.25, 1200, 15_000, 3e-4, -2.5e6)] == ["0", "0.25", "1200", "15k", "3e-4", "-2.5M"]


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 9))
def test_ticks_are_inside_evenly_spaced_and_about_as_many_as_asked(low: float, span: float, count: int) -> None:
    high = low + span
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return  # the numbers themselves are coarser than the ticks
    ticks = nice_ticks(low, high, count)
    assert 1 <= len(ticks) <= count + 1
    slack = 1e-6 * (high - low)
    assert all(low - slack <= t <= high + slack for t in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert all(step == pytest.approx(steps[0], rel=1e-3) for step in steps)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=8), st.booleans())
def test_charts_never_draw_what_is_not_a_number(values: list[float], log: bool) -> None:
    values = [v if not math.isfinite(v) or abs(v) < 1e100 else math.copysign(1e100, v) for v in values]
    chart = line_chart("t", [Series("s", range(len(values)), values, low=values, high=values)], log_y=log)
    assert (chart == "") == (not any(map(math.isfinite, values)))
    drawn = "".join(re.findall(r' (?:d|cx|cy|x1|y1|x|y)="([^"]*)"', chart))
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_log_axis_ticks_are_powers_and_keep_their_order() -> None:
    assert log_ticks(1e-4, 0.05) == pytest.approx((1e-4, 1e-3, 1e-2))
    assert log_ticks(2.0, 7.0) == pytest.approx((2.0, 5.0))
    scale = axis([1.0, 100.0], log=True, pad=0.0)
    assert [scale.place(v, 0.0, 10.0) for v in (1.0, 10.0, 100.0)] == pytest.approx([0.0, 5.0, 10.0])
    assert math.isnan(scale.place(0.0, 0.0, 10.0))


def test_a_gap_splits_the_line_and_a_spike_survives_thinning() -> None:
    chart = line_chart("t", [Series("s", range(5), [1.0, 2.0, math.nan, 1.0, 2.0])])
    assert re.findall(r'class="line c0" d="([^"]*)"', chart)[0].count("M") == 2
    values = [0.0] * 5000
    values[2501] = 1.0
    chart = line_chart("t", [Series("s", range(5000), values)])
    assert len(chart) < 30_000
    heights = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", re.findall(r'class="line c0" d="([^"]*)"', chart)[0])]
    assert max(heights) - min(heights) > 150


def test_names_are_escaped_in_pictures() -> None:
    chart = scatter_chart("<i>t</i>", [Series('"><script>', [1.0, 2.0], [1.0, 2.0], style="points")])
    assert "<i>t" not in chart
    assert "<script>" not in chart
    data = json.loads(dict(Page(chart).attributes)["data-chart"] or "")
    assert data["series"][0]["name"] == '"><script>'


def test_spark_text_is_low_to_high_with_gaps() -> None:
    assert spark_text([0.0, math.nan, 7.0]) == "▁ █"
    assert spark_text([2.0, 2.0]) == "▄▄"
    assert spark_text([math.nan]) == ""
    assert len(spark_text(range(100), 10)) == 10
