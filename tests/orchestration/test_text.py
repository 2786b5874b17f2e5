"""Numbers, shares, durations and errors as they stand in tables and sentences."""

import math

from orchestration.text import duration, label, number, one_line, percent, with_sign


def test_durations_and_shares_as_people_write_them() -> None:
    seconds = (45.2, 117.3, 599.7, 700, 12_000, math.nan)
    assert [duration(v) for v in seconds] == ["45 s", "1 min 57 s", "10 min", "12 min", "3 h 20 min", "—"]
    assert [percent(v) for v in (0.063, 0.06, 0.5, math.nan)] == ["6.3\xa0%", "6\xa0%", "50\xa0%", "—"]
    assert [percent(v, sign=True) for v in (0.5, -0.5, 0.0)] == ["+50\xa0%", "−50\xa0%", "0\xa0%"]


def test_numbers_of_a_table_and_of_an_axis() -> None:
    assert [number(v) for v in (0.25, 1234.0, math.inf)] == ["0.25", "1.23e+03", "—"]
    assert [label(v) for v in (0.0, 0.25, 1200, 15_000, 3e-4, -2.5e6)] == ["0", "0.25", "1200", "15k", "3e-4", "-2.5M"]
    assert label(math.nan) == "n/a"


def test_a_magnitude_that_reads_as_zero_has_no_sign() -> None:
    assert [with_sign(v, f"{abs(v):.2f}") for v in (0.123, -0.123, 0.001, -0.001, 0.0)] == [
        *("+0.12", "−0.12", "0.00", "0.00", "0.00")
    ]
    assert with_sign(math.nan, "n/a") == "n/a"


def test_an_error_stands_on_one_line() -> None:
    assert one_line(ValueError("first\n  second\tthird ")) == "first second third"
