"""Tests that the listed solutions of countdown are exactly the correct responses."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from envs.builtin.countdown import Countdown, _counts, left_to_right
from envs.types import Prompt, Split, Verdict

TASKS = Countdown(seed=1)
TASKS_ROOT = Path(envs.__file__).parent.parent
SPLITS: tuple[Split, ...] = ("train", "eval")


def every_expression(numbers: list[int], operators: str) -> set[str]:
    """Enumerates all expressions by brute force, without the tables under test."""
    return {
        "".join(map(str, itertools.chain(order[:1], *zip(signs, order[1:], strict=True))))
        for order in itertools.permutations(numbers)
        for signs in itertools.product(operators, repeat=len(numbers) - 1)
    }


@pytest.mark.parametrize(
    ("expression", "value"), [("4+5*3-6", 21), ("2-9*3", -21), ("7", 7), ("10*2-1", 19), ("2+3*4", 20)]
)
def test_evaluates_left_to_right(expression: str, value: int) -> None:
    assert left_to_right(expression) == value


@given(st.integers(0, 10_000), st.sampled_from(SPLITS))
@settings(max_examples=25, deadline=None)
def test_exactly_the_listed_solutions_are_rewarded(index: int, split: Split) -> None:
    prompt = TASKS.prompt(split, index)
    session = TASKS.open(prompt)
    expressions = every_expression(prompt.task["numbers"], "+-*")
    rewarded = {text for text in expressions if session.reply(text) == Verdict(1.0, True, text)}
    unrewarded = {text for text in expressions if session.reply(text).reward == 0.0}
    assert rewarded == set(TASKS.solutions(prompt))
    assert unrewarded == expressions - rewarded
    assert len(rewarded) >= 4


@given(
    numbers=st.integers(2, 5),
    high=st.integers(3, 20),
    operators=st.sampled_from(["+", "+-", "*+", "-+*"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_tables_agree_with_brute_force(numbers: int, high: int, operators: str, seed: int) -> None:
    tasks = Countdown(seed, numbers=numbers, high=high, operators=operators, min_solutions=1, target_high=200)
    prompt = tasks.prompt("train", 0)
    target = prompt.task["target"]
    expected = {x for x in every_expression(prompt.task["numbers"], operators) if left_to_right(x) == target}
    assert set(tasks.solutions(prompt)) == expected
    assert len(expected) >= 1
    counts = Counter(map(left_to_right, every_expression(prompt.task["numbers"], operators)))
    assert _counts(tuple(prompt.task["numbers"]), operators) == counts  # what min_solutions is compared with


@given(st.integers(0, 10_000), st.sampled_from(SPLITS), st.integers(3, 4), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_some_numbers_are_enough_where_the_parameter_says_so(
    index: int, split: Split, numbers: int, least: int
) -> None:
    tasks = Countdown(seed=1, numbers=numbers, use="some", min_solutions=least)
    prompt = tasks.prompt(split, index)
    given_numbers, target = prompt.task["numbers"], prompt.task["target"]
    chosen = {c for size in range(2, numbers + 1) for c in itertools.combinations(given_numbers, size)}
    expressions = {x for c in chosen for x in every_expression(list(c), "+-*")}
    expected = {x for x in expressions if left_to_right(x) == target}
    assert set(tasks.solutions(prompt)) == expected and len(tasks.solutions(prompt)) == len(expected) >= least
    session = tasks.open(prompt)
    assert all((session.reply(x).reward == 1.0) == (x in expected) for x in expressions)


def test_of_some_numbers_none_is_used_twice_and_one_is_too_few() -> None:
    prompt = Prompt("countdown", "train", 0, (), {"numbers": [2, 4, 6, 6], "target": 6})
    session = Countdown(use="some").open(prompt)
    assert (
        session.reply("4+2").correct
        and session.reply("6+6-6").detail == "uses 6 6 6, not two or more of the numbers, each once"
    )
    assert not session.reply("6").correct and not session.reply("3+3").correct
    assert Countdown().open(prompt).reply("4+2").detail == "uses 4 2, not each number once"


def test_abstaining_earns_what_the_parameter_says_and_is_not_correct() -> None:
    abstaining, plain = Countdown(abstain=0.2), Countdown()
    prompt = abstaining.prompt("train", 3)
    assert prompt == plain.prompt("train", 3)
    verdict = abstaining.open(prompt).reply(" ? ")
    assert (verdict.reward, verdict.correct, verdict.solution) == (0.2, False, None)
    assert plain.open(prompt).reply("?").reward == 0.0
    solution = plain.solutions(prompt)[0]
    assert abstaining.open(prompt).reply(solution) == plain.open(prompt).reply(solution)
    assert "?" in abstaining.alphabet() and "?" not in plain.alphabet()
    assert re.fullmatch(abstaining.form, "?") and re.fullmatch(abstaining.form, solution)
    assert not re.fullmatch(plain.form, "?")
    rng = random.Random(0)
    shown = [abstaining.demonstration(prompt, rng) for _ in range(2000)]
    assert shown.count("?") / 2000 == pytest.approx(0.1, abs=0.02)
    assert {abstaining.open(prompt).reply(text).reward for text in shown} == {0.2, 1.0}


def test_text_is_compact() -> None:
    prompt = TASKS.prompt("train", 3)
    numbers, target = prompt.task["numbers"], prompt.task["target"]
    assert [message.content for message in prompt.messages] == [f"{' '.join(map(str, numbers))}={target}"]
    assert len(numbers) == 4 and set(numbers) <= set(range(1, 10)) and 1 <= target <= 99


@pytest.mark.parametrize(
    "response",
    ["", "3 4 5 6", "4+5*3-6=21", "4+5*3", "4+5*3-6+0", "4+5*3-06", "4+5*3-6-", "(4+5)*3-6", "4+5*3-\u0666", "4+5*3/6"],
)
def test_other_responses_are_wrong(response: str) -> None:
    prompt = Prompt("countdown", "train", 0, (), {"numbers": [3, 4, 5, 6], "target": 21})
    session = TASKS.open(prompt)
    assert session.reply(" 4+5 * 3-6\n") == Verdict(1.0, True, "4+5*3-6")
    verdict = session.reply(response)
    assert (verdict.reward, verdict.correct, verdict.solution) == (0.0, False, None)


def test_an_operator_outside_the_parameter_is_wrong() -> None:
    prompt = Prompt("countdown", "train", 0, (), {"numbers": [2, 2], "target": 4})
    tasks = Countdown(numbers=2, operators="+", min_solutions=1)
    assert tasks.solutions(prompt) == ("2+2",)
    assert tasks.open(prompt).reply("2+2").correct and not tasks.open(prompt).reply("2*2").correct


def test_demonstrations_are_uniform_over_all_solutions() -> None:
    prompt = next(p for i in itertools.count() if len(TASKS.solutions(p := TASKS.prompt("train", i))) == 10)
    rng, draws = random.Random(7), 4000
    counts = Counter(TASKS.demonstration(prompt, rng) for _ in range(draws))
    assert set(counts) == set(TASKS.solutions(prompt))
    chi_square = sum((count - draws / 10) ** 2 / (draws / 10) for count in counts.values())
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001


def test_splits_share_no_task_whatever_seed_and_ranges() -> None:
    train = {Countdown(seed=1).prompt("train", i).messages for i in range(3000)}
    held = {Countdown(seed=2, target_high=50, min_solutions=1).prompt("eval", i).messages for i in range(3000)}
    assert not train & held
    assert len(train) > 1500 and len(held) > 500


def test_a_fifth_of_the_tasks_is_held_out() -> None:
    sets = itertools.combinations_with_replacement(range(1, 10), 4)
    counts = [
        (len(TASKS._find_targets(n, "train")), len(TASKS._find_targets(n, "eval"))) for n in itertools.islice(sets, 200)
    ]
    train, held = map(sum, zip(*counts, strict=True))
    assert 0.17 < held / (train + held) < 0.23


def test_prompts_are_a_pure_function_of_the_parameters() -> None:
    forward = [TASKS.prompt("train", i) for i in range(20)]
    fresh = Countdown(seed=1)
    assert [fresh.prompt("train", i) for i in reversed(range(20))] == forward[::-1]
    assert [Countdown(seed=2).prompt("train", i) for i in range(20)] != forward
    code = (
        "from envs.builtin.countdown import Countdown; tasks = Countdown(1);"
        "print(*(tasks.prompt('train', i).messages[0].content for i in range(20)), sep=';')"
    )
    expected = ";".join(p.messages[0].content for p in forward)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TASKS_ROOT)
    assert out.stdout.strip() == expected


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"numbers": 1}, "numbers is 1"),
        ({"low": 0}, "low is 0"),
        ({"use": "most"}, "use is 'most'"),
        ({"operators": "+/"}, "operators is '+/'"),
        ({"operators": "++"}, "operators is '++'"),
        ({"min_solutions": 0}, "min_solutions is 0"),
        ({"abstain": 1.0}, "abstain is 1"),
        ({"target_low": 9, "target_high": 3}, "target_low 9"),
        ({"min_solutions": 5000}, "5000 solutions"),
    ],
)
def test_impossible_parameters_are_a_sentence(params: dict, words: str) -> None:
    with pytest.raises(ValueError, match="countdown") as caught:
        Countdown(**params)
    assert words in str(caught.value) and "\n" not in str(caught.value)
