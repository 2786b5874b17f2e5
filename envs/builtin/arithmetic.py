"""Provides Arithmetic: "3+4=" asks for "7". The smallest learnable task, for smoke tests and first runs."""

from __future__ import annotations

import random
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


class Arithmetic:
    """Asks for the result of sums such as "3+4=", for smoke tests and for first runs of a pretrained model.

    digits     of each number, 1 to 9; smaller numbers appear too
    operators  one or more of "+-*"; products of two numbers only
    terms      how many numbers there are, 2 to 9
    working    a response may show its working, and the number that it ends with is its answer; else the whole response is
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
        name: str = "arithmetic",
    ) -> None:
        check_range("arithmetic", "digits", digits, 1, MAX_DIGITS)
        check_range("arithmetic", "terms", terms, 2, MAX_TERMS)
        check_operators("arithmetic", operators)
        if "*" in operators and terms > 2:
            raise ValueError(
                f"arithmetic: {terms} terms with * would depend on the order of operations: take 2, or + and -"
            )
        self._seed = seed
        self._high = 10**digits - 1
        self._operators = operators
        self._terms = terms
        self._working = working
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
                return Prompt(
                    self._name, split, index, (Message("user", sum_ + "="),), {"answer": str(left_to_right(sum_))}
                )
        # Even one operator and one digit give 100 sums, some of them in either split.
        raise RuntimeError(f"arithmetic: {DRAWS} draws gave no {split} sum")

    def open(self, prompt: Prompt) -> OneReply:
        answer, right = prompt.task["answer"], _ends_with if self._working else _is
        return OneReply(
            lambda text: Verdict(1.0, True, answer) if right(text, answer) else Verdict(0.0, detail=f"not {answer}"),
            limit=LONGEST_WORKING if self._working else 4 * MAX_DIGITS,
        )

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns the answer, the only correct response."""
        return prompt.task["answer"]

    def alphabet(self) -> Iterable[str]:
        return sorted("0123456789=-" + "".join(o for o in self._operators if o != "-"))


def _is(text: str, answer: str) -> bool:
    return text.strip() == answer


def _ends_with(text: str, answer: str) -> bool:
    """Returns whether a response that shows its working comes to the answer, as `questions` reads one."""
    return grade(extract(text), answer, symbolic=False).correct or last_number(text) == answer
