"""Provides Arithmetic: "3+4=" asks for "7". The smallest learnable task, for smoke tests and first runs."""

from __future__ import annotations

import random
from collections.abc import Iterable

from envs.builtin.countdown import left_to_right
from envs.checks import check_operators, check_range
from envs.tasks import OneReply, check_index, in_split, task_random
from envs.types import Message, Prompt, Split, Verdict

MAX_DIGITS = 9
DRAWS = 5_000


class Arithmetic:
    """Asks for the result of sums such as "3+4=", for smoke tests.

    digits     of each number, 1 to 9; smaller numbers appear too
    operators  one or more of "+-*"
    name       name of its metrics
    """

    form = "-?[0-9]+"

    def __init__(self, seed: int = 0, *, digits: int = 1, operators: str = "+", name: str = "arithmetic") -> None:
        check_range("arithmetic", "digits", digits, 1, MAX_DIGITS)
        check_operators("arithmetic", operators)
        self._seed = seed
        self._high = 10**digits - 1
        self._operators = operators
        self._name = name

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        check_index(split, index)
        rng = task_random(self._seed, split, index)
        for _ in range(DRAWS):
            sum_ = f"{rng.randint(0, self._high)}{rng.choice(self._operators)}{rng.randint(0, self._high)}"
            if in_split(sum_, split):
                return Prompt(
                    self._name, split, index, (Message("user", sum_ + "="),), {"answer": str(left_to_right(sum_))}
                )
        # Even one operator and one digit give 100 sums, some of them in either split.
        raise RuntimeError(f"arithmetic: {DRAWS} draws gave no {split} sum")

    def open(self, prompt: Prompt) -> OneReply:
        answer = prompt.task["answer"]
        return OneReply(
            lambda text: Verdict(1.0, True, answer) if text.strip() == answer else Verdict(0.0, detail=f"not {answer}"),
            limit=4 * MAX_DIGITS,
        )

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns the answer, the only correct response."""
        return prompt.task["answer"]

    def alphabet(self) -> Iterable[str]:
        return sorted("0123456789=-" + "".join(o for o in self._operators if o != "-"))
