"""Tests the grading table: exact, numeric, symbolic."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.answers.grading import Grade, grade, number


@pytest.mark.parametrize(
    ("answer", "reference", "how"),
    [
        ("Paris", "paris", "exact"),
        (" $\\text{New  York}.$", "new york", "exact"),
        ("\\left(1,2\\right)", "(1,2)", "exact"),
        ("\\Gamma", "$\\Gamma$", "exact"),
        ("1,234", "1234", "numeric"),
        ("$5", "5.0", "numeric"),
        ("1/2", "0.5", "numeric"),
        ("-\\frac{3}{4}", "-0.75", "numeric"),
        ("50%", "1/2", "numeric"),
        ("12\\%", "12%", "exact"),
        ("1e3", "1000", "numeric"),
        ("0.3333333333", "1/3", "numeric"),
        ("\u22125", "-5", "exact"),
        ("+7", "7", "numeric"),
        ("x+1", "1+x", "symbolic"),
        ("(x+1)^2", "x^2+2x+1", "symbolic"),
        ("2\\sqrt{2}", "\\sqrt{8}", "symbolic"),
        ("\\{1,2\\}", "\\{2,1\\}", "symbolic"),
    ],
)
def test_equal(answer: str, reference: str, how: str) -> None:
    assert grade(answer, reference) == Grade(True, how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("", "5"),
        ("$$", "5"),
        ("1000001", "1000000"),
        ("0.333", "1/3"),
        ("50", "50%"),
        ("1/0", "0"),
        ("12,34", "1234"),
        ("5", "-5"),
        ("tea", "eat"),
        ("3 or 4", "3"),
        ("3,4", "3"),
        ("(1,2)", "(2,1)"),
        ("-x", "x"),
        ("x^2", "2x"),
        ("\\boxed{", "5"),
    ],
)
def test_different(answer: str, reference: str) -> None:
    assert grade(answer, reference).correct is False


def test_symbolic_can_be_switched_off() -> None:
    assert grade("x+1", "1+x", symbolic=False) == Grade(False, "different")


def test_a_comparison_that_does_not_come_back_is_killed() -> None:
    assert grade("x+1", "1+x").correct  # the library is loaded: what follows is the comparison's own time
    assert grade("10^{100000000}", "5x", timeout_s=0.5) == Grade(False, "timeout")
    assert grade("x+1", "1+x").correct


def test_works_outside_the_main_thread() -> None:
    results: list[Grade] = []
    thread = threading.Thread(target=lambda: results.append(grade("x+2", "2+x")))
    thread.start()
    thread.join()
    assert results == [Grade(True, "symbolic")]


@given(st.integers(-(10**9), 10**9))
def test_integers_equal_only_themselves(value: int) -> None:
    assert grade(f"{value:,}", str(value)).correct
    assert not grade(str(value + 1), str(value)).correct


@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_equal_their_value(above: int, below: int) -> None:
    assert grade(f"{above}/{below}", repr(above / below)).correct
    assert not grade(f"{above}/{below}", repr(above / below + 0.01)).correct


@pytest.mark.parametrize("text", ["9" * 101, "1e9999", "1e", "--5", "1.2.3", "½", "٣", "nan", "inf", "1_000", "0x10"])
def test_what_is_not_read_as_a_number(text: str) -> None:
    assert number(text) is None
