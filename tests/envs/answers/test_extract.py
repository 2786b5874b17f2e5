"""Tests where the answer is found in a response."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.answers.extract import boxed, extract, last_number, tagged


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed {2}", "2"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("} \\boxed{5} {", "5"),
        ("work\n#### 1,234\n", "1,234"),
        ("#### 1\n#### 2", "2"),
        ("The answer is **42**.", "42"),
        ("The answer is: 3/4. ", "3/4"),
        ("Answer: Paris\nthank you", "Paris"),
        ("answer: 1\nAnswer: 2", "2"),
        ("<answer> 4 </answer> or \\boxed{5}", "4"),
        ("<answer>1</answer><answer>\n2\n3</answer>", "2\n3"),
        ("<think>the answer is 3</think>7", "7"),
        ("first\nlast\n\n", "last"),
        ("  7 ", "7"),
        ("", ""),
    ],
)
def test_extract(response: str, answer: str) -> None:
    assert extract(response) == answer


def test_nothing_marked_is_none() -> None:
    assert boxed("\\boxed{3") is None and boxed("boxed{3}") is None
    assert tagged("<answer>3") is None and tagged("3</answer>") is None


@given(st.text(alphabet="ab\\{} 12", max_size=30).filter(lambda text: "boxed" not in text), st.integers(-999, 999))
def test_a_box_after_any_text_is_found(before: str, value: int) -> None:
    assert extract(f"{before} \n\\boxed{{{value}}}") == str(value)


@given(st.text())
def test_never_raises_and_is_stripped(text: str) -> None:
    assert extract(text) == extract(text).strip()


@pytest.mark.parametrize("piece", ["\\boxed{", "<answer>", "</answer>", "####", "answer is ", "{", "\\", "\n"])
def test_takes_linear_time(piece: str) -> None:
    started = time.perf_counter()
    extract(piece * (200_000 // len(piece)))
    assert time.perf_counter() - started < 1.0  # a quadratic search takes minutes


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("Max has 4 + 5 = 9 cookies.", "9"),
        ("First 3.\nThen 2 + 2 = 4, so **4**.\n\n", "4"),
        ("The total is $1,234.50!", "1,234.50"),
        ("It is 1/2 of it", "1/2"),
        ("That makes -9 apples", "-9"),
        ("= \u22122", "-2"),
        ("7 - 9", "9"),
        ("(3)-5", "5"),
        ("It is 50%.", "50%"),
        ("<think>7</think> nothing", None),
        ("item2 of v1.2.3", None),
        ("9\u00b2", None),
        ("Answer: 9 cookies.", "9"),
        ("#### 1,200 dollars in all", "1,200"),
        ("Answer: Paris in 1900", None),
        ("\\boxed{9 + x} 7", None),
        ("\\boxed{5 \\pi}", None),
        ("", None),
    ],
)
def test_the_number_that_a_response_in_words_ends_with(response: str, number: str | None) -> None:
    assert last_number(response) == number


@given(st.text())
def test_the_last_number_is_found_in_any_text(text: str) -> None:
    assert last_number(text) is None or isinstance(last_number(text), str)


def test_the_last_number_takes_linear_time() -> None:
    begin = time.monotonic()
    last_number("1," * 200_000 + "x-" + " -" * 100_000 + "7")
    last_number("Answer: 9 " + "abc " * 50_000 + "!!")
    assert time.monotonic() - begin < 10
