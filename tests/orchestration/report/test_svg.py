"""Pictures: ticks people can read, nothing drawn that is not a number, names escaped."""

import html
import itertools
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.report.page import ASSETS
from orchestration.report.svg.axes import axis, log_ticks, nice_ticks
from orchestration.report.svg.charts import line_chart, scatter_chart
from orchestration.report.svg.marks import PALETTE, Series, shade


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
    assert [scale.position(v, 0.0, 10.0) for v in (1.0, 10.0, 100.0)] == pytest.approx([0.0, 5.0, 10.0])
    assert math.isnan(scale.position(0.0, 0.0, 10.0))


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
    (packed,) = re.findall(r'data-chart="([^"]*)"', chart)
    data = json.loads(html.unescape(packed))
    assert data["series"][0]["name"] == '"><script>'


def test_the_ticks_of_an_axis_are_written_alike() -> None:
    chart = line_chart("t", [Series("s", range(3), [0.0, -0.001, -0.002])])
    assert {"-0.0005", "-0.001", "-0.0015"} <= set(re.findall(r'text-anchor="end">([^<]*)<', chart))


def test_a_share_that_stays_at_zero_has_no_ticks_below_it() -> None:
    drawn = axis([0.0, 0.0], zero=True)
    assert (drawn.low, drawn.ticks[0]) == (0.0, 0.0)


def test_every_colour_of_the_palette_has_its_class_and_its_value_in_light_and_dark() -> None:
    css = (ASSETS / "report.css").read_text("utf-8")
    for colour in range(-1, PALETTE):
        assert f".{shade(colour)}{{--c:var(--" in css
        assert css.count(f"--c{colour}:#") == (0 if colour < 0 else 2)
    assert shade(PALETTE) == "c0"


def test_an_invisible_character_in_a_name_is_shown() -> None:
    chart = line_chart("\x1b[2K", [Series("\u202eeman", [1.0, 2.0], [1.0, 2.0]), Series("b", [1.0], [1.0])])
    assert not re.search("[\x1b\u202e]", chart)
    assert "\\u202e" not in chart  # nor in the data of the tooltip
