"""Tests sums: prompts, verdicts, refused parameters."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.builtin.arithmetic import Arithmetic, steps_of
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


SUM = Prompt("arithmetic", "train", 0, (), {"answer": "12", "sum": "3+4+5"})


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("3 + 4 = 7, 7 + 5 = 12", 1.0),
        ("3+4=7\n7+5=12\n", 1.0),
        ("First 3 + 4 = 7. Then 7 + 5 = 12. The answer is 12.", 1.0),
        ("3 + 4 = 7, 7 + 5 = 12. The answer is 13.", 2 / 3),
        ("3 + 4 = 7, 7 + 5 = 12, 12 + 0 = 12", 2 / 3),  # more than was asked for
        ("3 + 4 = 7, 7 + 5 = 13. The answer is 12.", 1 / 3),
        ("3 + 4 = 7. The answer is 12.", 1 / 3),
        ("3 + 4 = 8, 7 + 5 = 12", 0.0),  # nothing counts after the first mistake
        ("3 + 4 = 8, 3 + 4 = 7, 7 + 5 = 12", 0.0),
        ("4 + 3 = 7, 7 + 5 = 12", 0.0),
        ("7 + 5 = 12", 0.0),
        ("12", 0.0),
        ("3 + 4 = 7.5, 7 + 5 = 12", 0.0),
        ("13 + 4 = 7, 7 + 5 = 12", 0.0),
        ("2 + 3 + 4 = 9, 7 + 5 = 12", 0.0),
        ("2 + 3 + 4 = 7, 7 + 5 = 12", 0.0),
        ("3 + 4 = -7, 7 + 5 = 12", 0.0),
        ("-3 + 4 = 7, 7 + 5 = 12", 0.0),
        ("3 + 4 = 7; 7 + 5 = 1 2", 1 / 3),
        ("3 + 4 = 07, 7 + 5 = 12", 0.0),
        ("3 + 4 = 7 + 5 = 12", 1 / 3),  # which says that 7 is 12
        ("3 + 4 = \u0667, 7 + 5 = 12", 0.0),
        ("", 0.0),
        ("3 + 4 = 7, 7 + 5 = 12 " + " " * 5000, 0.0),
    ],
)
def test_steps_are_paid_for_up_to_the_first_mistake(response: str, reward: float) -> None:
    verdict = Arithmetic(steps=True, terms=3).open(SUM).reply(response)
    assert isinstance(verdict, Verdict)
    assert verdict.reward == pytest.approx(reward)
    assert (verdict.correct, verdict.solution) == ((True, "12") if reward == 1.0 else (False, None))


def test_the_verdict_says_which_step_is_wrong() -> None:
    session = Arithmetic(steps=True, terms=3).open(SUM)
    assert getattr(session.reply("3 + 4 = 7, 7 + 5 = 13"), "detail", "") == "step 2 is 7 + 5 = 12, not 7 + 5 = 13"


@given(st.integers(0, 500), st.integers(2, 9), st.integers(1, 3), st.sampled_from(["+", "-", "+-"]), st.data())
def test_a_demonstration_of_steps_earns_all_and_a_changed_digit_what_is_before_it(
    index: int, terms: int, digits: int, operators: str, data: st.DataObject
) -> None:
    tasks = Arithmetic(steps=True, terms=terms, digits=digits, operators=operators)
    prompt = tasks.prompt("train", index)
    response = tasks.demonstration(prompt, random.Random(0))
    verdict = tasks.open(prompt).reply(response)
    assert isinstance(verdict, Verdict) and (verdict.reward, verdict.solution) == (1.0, prompt.task["answer"])
    assert set(response) <= set(tasks.alphabet()) and re.fullmatch(tasks.form, response)
    steps = steps_of(prompt.task["sum"])
    assert len(steps) == terms - 1 and all(eval(step.replace(" = ", "=="), {}) for step in steps)
    place = data.draw(st.sampled_from([i for i, character in enumerate(response) if character.isdigit()]))
    digit = data.draw(st.sampled_from([d for d in "123456789" if d != response[place]]))
    verdict = tasks.open(prompt).reply(response[:place] + digit + response[place + 1 :])
    assert isinstance(verdict, Verdict) and not verdict.correct
    assert verdict.reward == pytest.approx(response[:place].count(",") / terms)


@given(st.text("0123456789+-*=., \n", max_size=80))
def test_any_text_has_a_share_of_its_steps(text: str) -> None:
    verdict = Arithmetic(steps=True, terms=3).open(SUM).reply(text)
    assert isinstance(verdict, Verdict) and 3 * verdict.reward == pytest.approx(round(3 * verdict.reward))
    assert verdict.correct == (verdict.reward == 1.0)


@pytest.mark.parametrize("piece", ["1+", "1", "1 + 1 = ", "1-", " ", "1 * 1 = 1 + "])
def test_a_long_response_is_scored_at_once(piece: str) -> None:
    session = Arithmetic(steps=True, terms=3).open(SUM)
    began = time.process_time()
    session.reply((piece * 4000)[:4000])
    assert time.process_time() - began < 1.0


def test_working_and_steps_together_are_refused() -> None:
    with pytest.raises(ValueError, match="arithmetic: working and steps were both given"):
        Arithmetic(working=True, steps=True)


def test_products_of_more_than_two_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"arithmetic: 3 terms with \* would depend on the order"):
        Arithmetic(operators="+*", terms=3)


@pytest.mark.parametrize(
    "params", [{"terms": 1}, {"terms": 10}, {"digits": 0}, {"digits": 10}, {"operators": "/"}, {"operators": ""}]
)
def test_impossible_parameters(params: dict) -> None:
    with pytest.raises(ValueError, match=r"arithmetic: .* must be"):
        Arithmetic(**params)
