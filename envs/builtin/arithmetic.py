"""Provides Arithmetic: "3+4=" asks for "7". The smallest learnable task, for smoke tests and first runs."""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Iterable

from envs.answers.extract import extract, last_number
from envs.answers.grading import grade
from envs.builtin.countdown import left_to_right
from envs.checks import check_operators, check_range
from envs.tasks import OneReply, check_index, in_split, task_random
from envs.types import Message, Prompt, Split, Verdict

MAX_DIGITS, MAX_TERMS = 9, 9
LONGEST_WORKING = 4_000  # characters of a response
DRAWS = 5_000
_APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_TERM = re.compile(r"([-+*]?)([0-9]+)")
# "3 + 4 = 7" as a whole: not the end of "2 + 3 + 4 = 9", nor the beginning of "3 + 4 = 7.5". It never goes back, to be fast.
_EQUATION = re.compile(r"(?<![0-9.])-?[0-9]++(?:\s*+[-+*]\s*+[0-9]++)++\s*+=\s*+-?[0-9]++(?!\.[0-9])")
_PART = re.compile(r"[0-9]+|[-+*=]")


class Arithmetic:
    """Asks for the result of sums such as "3+4=", for smoke tests and for first runs of a pretrained model.

    digits     of each number, 1 to 9; smaller numbers appear too
    operators  one or more of "+-*"; products of two numbers only
    terms      how many numbers there are, 2 to 9
    working    a response may show its working, and the number that it ends with is its answer; else the whole response is
    steps      a response has to show its working: an equation for every number that is added, in order, "3 + 4 = 7, 7 + 5 = 12",
               with any words around them. The reward is the share of the steps, and of the answer that it ends with, that are right
               before the first that is not: what a response leaves out earns nothing, so that responses stay long
    name       name of its metrics
    """

    form = "-?[0-9]+"

    def __init__(
        self,
        seed: int = 0,
        *,
        digits: int = 1,
        operators: str = "+",
        terms: int = 2,
        working: bool = False,
        steps: bool = False,
        name: str = "arithmetic",
    ) -> None:
        check_range("arithmetic", "digits", digits, 1, MAX_DIGITS)
        check_range("arithmetic", "terms", terms, 2, MAX_TERMS)
        check_operators("arithmetic", operators)
        if "*" in operators and terms > 2:
            raise ValueError(
                f"arithmetic: {terms} terms with * would depend on the order of operations: take 2, or + and -"
            )
        if working and steps:
            raise ValueError(
                "arithmetic: working and steps were both given, steps asks for the working: leave working out"
            )
        self._seed = seed
        self._high = 10**digits - 1
        self._operators = operators
        self._terms = terms
        self._working = working
        self._steps = steps
        if steps:
            self.form = rf"(?s:.*{_EQUATION.pattern}.*)"
        self._name = name

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        check_index(split, index)
        rng = task_random(self._seed, split, index)
        for _ in range(DRAWS):
            sum_ = str(rng.randint(0, self._high))
            for _ in range(self._terms - 1):
                sum_ += f"{rng.choice(self._operators)}{rng.randint(0, self._high)}"
            if in_split(sum_, split):
                task = {"answer": str(left_to_right(sum_))} | ({"sum": sum_} if self._steps else {})
                return Prompt(self._name, split, index, (Message("user", sum_ + "="),), task)
        # Even one operator and one digit give 100 sums, some of them in either split.
        raise RuntimeError(f"arithmetic: {DRAWS} draws gave no {split} sum")

    def open(self, prompt: Prompt) -> OneReply:
        if self._steps:
            return OneReply(lambda text: _score_steps(text, prompt.task["sum"]), limit=LONGEST_WORKING)
        answer, right = prompt.task["answer"], _ends_with if self._working else _is
        return OneReply(
            lambda text: Verdict(1.0, True, answer) if right(text, answer) else Verdict(0.0, detail=f"not {answer}"),
            limit=LONGEST_WORKING if self._working else 4 * MAX_DIGITS,
        )

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns the answer, the only correct response; with `steps` a response of its steps alone."""
        return ", ".join(steps_of(prompt.task["sum"])) if self._steps else prompt.task["answer"]

    def alphabet(self) -> Iterable[str]:
        words = ", " if self._steps else ""
        return sorted({*"0123456789=-", *self._operators, *words})


def steps_of(sum_: str) -> list[str]:
    """Returns the equations that lead to a sum's result, from left to right: "3+4+5" -> ["3 + 4 = 7", "7 + 5 = 12"]."""
    (_, first), *rest = _TERM.findall(sum_)
    total, equations = int(first), []
    for sign, number in rest:
        result = _APPLY[sign](total, int(number))
        equations.append(f"{total} {sign} {number} = {result}")
        total = result
    return equations


def _score_steps(text: str, sum_: str) -> Verdict:
    """Scores the equations in a response, in order, and then the number that it ends with."""
    steps = steps_of(sum_)
    shown = _EQUATION.findall(text)
    right = next((i for i, step in enumerate(steps) if i >= len(shown) or not _same(shown[i], step)), len(steps))
    if right < len(steps):
        seen = f", not {shown[right]}" if right < len(shown) and len(shown[right]) < 40 else ""
        return Verdict(right / (len(steps) + 1), detail=f"step {right + 1} is {steps[right]}{seen}")
    answer = steps[-1].rpartition(" ")[2]
    if len(shown) > len(steps) or not _ends_with(text, answer):
        return Verdict(
            right / (len(steps) + 1), detail=f"the steps are right and end in {answer}, the response does not"
        )
    return Verdict(1.0, True, answer)


def _same(shown: str, step: str) -> bool:
    """Returns whether two equations are the same, white space aside."""
    return _PART.findall(shown) == _PART.findall(step)


def _is(text: str, answer: str) -> bool:
    return text.strip() == answer


def _ends_with(text: str, answer: str) -> bool:
    """Returns whether a response that shows its working comes to the answer, as `questions` reads one."""
    return grade(extract(text), answer, symbolic=False).correct or last_number(text) == answer
