"""Tests sums: prompts, verdicts, refused parameters."""

from __future__ import annotations

import pytest

from envs.builtin.arithmetic import Arithmetic
from envs.types import Prompt, Verdict


def test_sums_are_right_and_within_their_range() -> None:
    tasks = Arithmetic(digits=2, operators="+-*")
    for index in range(300):
        prompt = tasks.prompt("train", index)
        text = prompt.messages[0].content
        assert text.endswith("=") and str(eval(text[:-1])) == prompt.task["answer"]
        assert all(0 <= int(part) <= 99 for part in text[:-1].replace("-", "+").replace("*", "+").split("+"))


def test_both_splits_of_the_smallest_setting_have_tasks() -> None:
    tasks = Arithmetic()
    train = {tasks.prompt("train", i).messages[0].content for i in range(2000)}
    held = {tasks.prompt("eval", i).messages[0].content for i in range(2000)}
    assert len(train | held) == 100 and not train & held and 10 <= len(held) <= 30


@pytest.mark.parametrize(
    ("response", "reward"), [("7", 1.0), (" 7\n", 1.0), ("07", 0.0), ("+7", 0.0), ("7.", 0.0), ("\u0667", 0.0)]
)
def test_only_the_canonical_number_is_right(response: str, reward: float) -> None:
    prompt = Prompt("arithmetic", "train", 0, (), {"answer": "7"})
    verdict = Arithmetic().open(prompt).reply(response)
    assert isinstance(verdict, Verdict)
    assert (verdict.reward, verdict.solution) == (reward, "7" if reward else None)


def test_sums_of_several_numbers_are_right() -> None:
    tasks = Arithmetic(operators="+-", terms=4)
    for index in range(100):
        text = tasks.prompt("train", index).messages[0].content
        assert len(text[:-1].replace("-", "+").split("+")) == 4
        assert str(eval(text[:-1])) == tasks.prompt("train", index).task["answer"]


@pytest.mark.parametrize(
    ("response", "reward"),
    [("7", 1.0), (" 3 plus 4 is 7. The answer is 7.", 1.0), (" 3+4=7, so 8", 0.0), ("seven", 0.0), ("7" * 5000, 0.0)],
)
def test_with_working_the_last_number_counts(response: str, reward: float) -> None:
    prompt = Prompt("arithmetic", "train", 0, (), {"answer": "7"})
    verdict = Arithmetic(working=True).open(prompt).reply(response)
    assert isinstance(verdict, Verdict)
    assert (verdict.reward, verdict.solution) == (reward, "7" if reward else None)


def test_products_of_more_than_two_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"arithmetic: 3 terms with \* would depend on the order"):
        Arithmetic(operators="+*", terms=3)


@pytest.mark.parametrize(
    "params", [{"terms": 1}, {"terms": 10}, {"digits": 0}, {"digits": 10}, {"operators": "/"}, {"operators": ""}]
)
def test_impossible_parameters(params: dict) -> None:
    with pytest.raises(ValueError, match=r"arithmetic: .* must be"):
        Arithmetic(**params)
