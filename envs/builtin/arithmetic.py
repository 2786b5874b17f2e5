"""Arithmetic: "3+4=" asks for "7". The smallest task that can be learned, for smoke tests and first runs."""

from __future__ import annotations

import random
from collections.abc import Iterable

from envs.builtin.countdown import left_to_right
from envs.tasks import OneReply, check_index, in_split, task_random
from envs.types import Message, Prompt, Split, Verdict

MAX_DIGITS = 9
DRAWS = 5_000


class Arithmetic:
    """Sums such as "3+4=", for smoke tests.

    digits     of each number, 1 to 9; smaller numbers appear too
    operators  one or more of "+-*"
    name       what metrics are kept under
    """

    form = "-?[0-9]+"

    def __init__(self, seed: int = 0, *, digits: int = 1, operators: str = "+", name: str = "arithmetic") -> None:
        if not 1 <= digits <= MAX_DIGITS:
            raise ValueError(f"arithmetic: digits is {digits}, it must be 1 to {MAX_DIGITS}")
        if not operators or set(operators) - set("+-*") or len(set(operators)) != len(operators):
            raise ValueError(f"arithmetic: operators is {operators!r}, it must be one or more of + - *, each once")
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
        """The answer: the only correct response."""
        return prompt.task["answer"]

    def alphabet(self) -> Iterable[str]:
        return sorted("0123456789=-" + "".join(o for o in self._operators if o != "-"))
