"""Tests where the answer is found in a response."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.answers.extract import boxed, extract, tagged


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
