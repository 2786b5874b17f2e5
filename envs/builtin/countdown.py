"""Provides Countdown: reach the target with all the numbers, each used once, evaluated from left to right.

    prompt  3 4 5 6=21        response  4+5*3-6        because ((4+5)*3)-6 = 21

With `use: some` two or more of the numbers are enough: 4*6-3 is another solution, and prompts have many more of them.
With `abstain: 0.2` the response ? says that the model does not know, and earns that much whatever the prompt: more than trying
while few attempts succeed, less than what trying can learn to earn.

Every correct expression can be listed, counted and drawn uniformly, so diversity is measured rather than guessed. The
counts come from dynamic programming over the numbers left:

    count(S, v) = sum over distinct d in S and operators o of count(S - d, u) over all u with  u o d = v

which counts expressions as texts: 3+4 and 4+3 are two solutions, swapping two equal digits gives one.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import combinations
from typing import Literal

from envs.checks import check_operators, check_range
from envs.tasks import OneReply, check_index, in_split, task_random
from envs.types import Message, Prompt, Split, Verdict

Numbers = tuple[int, ...]  # sorted: a multiset

MAX_NUMBERS = 6  # 6 numbers have up to 720 * 3^5 expressions
MAX_HIGH = 99
ABSTAIN = "?"
ABSTENTIONS = 0.1  # share of the demonstrations, so that a warm-started model knows that it may
MAX_EXPRESSION = 256  # characters of a response that is scored, spaces included
DRAWS = 5_000  # of numbers, before the parameters are reported as impossible

_EXPRESSION = re.compile(
    r"[0-9]{1,3}(?:[-+*][0-9]{1,3})*"
)  # at most three digits, so that no response makes a huge number
_TOKEN = re.compile(r"[0-9]+|[-+*]")


class Countdown:
    """Asks for a target from the numbers and left-to-right + - *; every solution is known.

    numbers        how many numbers, 2 to 6
    use            "all" of them, or "some": two or more
    low, high      range of each number, 1 to 99
    operators      those a solution may use, out of "+-*"
    min_solutions  distinct correct expressions that a prompt has at least
    target_low, target_high   range of the target
    abstain        reward of the response "?", from 0 to under 1; 0: it is as wrong as any other
    name           name of its metrics
    system         text of a system message, to explain the rules to a model that does not know them; none by default
    Raises ValueError, with the numbers in the sentence, for parameters that allow no task.
    """

    form = r"[0-9]{1,3}(?:\s*[-+*]\s*[0-9]{1,3})*"

    def __init__(
        self,
        seed: int = 0,
        *,
        numbers: int = 4,
        use: Literal["all", "some"] = "all",
        low: int = 1,
        high: int = 9,
        operators: str = "+-*",
        min_solutions: int = 4,
        target_low: int = 1,
        target_high: int = 99,
        abstain: float = 0.0,
        name: str = "countdown",
        system: str = "",
    ) -> None:
        check_range("countdown", "numbers", numbers, 2, MAX_NUMBERS)
        if use not in ("all", "some"):
            raise ValueError(f"countdown: use is {use!r}, it must be 'all' or 'some'")
        if not 1 <= low <= high <= MAX_HIGH:
            raise ValueError(
                f"countdown: low is {low} and high is {high}, they must meet 1 <= low <= high <= {MAX_HIGH}"
            )
        check_operators("countdown", operators)
        check_range("countdown", "min_solutions", min_solutions, 1)
        if target_low > target_high:
            raise ValueError(f"countdown: target_low {target_low} is above target_high {target_high}")
        if not 0 <= abstain < 1:
            raise ValueError(f"countdown: abstain is {abstain:g}, it must be from 0 to under 1, what a solution earns")
        self._seed = seed
        self._abstain = abstain
        if abstain:
            self.form = rf"(?:{self.form})|\{ABSTAIN}"
        self._numbers, self._use = numbers, use
        self._low, self._high = low, high
        self._operators = "".join(o for o in "+-*" if o in operators)  # one order, so that equal settings share a cache
        self._min_solutions = min_solutions
        self._target_low, self._target_high = target_low, target_high
        self._name = name
        self._system = system
        self._targets = lru_cache(maxsize=2048)(self._find_targets)
        for split in ("train", "eval"):
            self.prompt(split, 0)

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        """Draws the numbers uniformly, then the target uniformly from the split's targets with enough solutions."""
        check_index(split, index)
        rng = task_random(self._seed, split, index)
        for _ in range(DRAWS):
            numbers = tuple(sorted(rng.randint(self._low, self._high) for _ in range(self._numbers)))
            targets = self._targets(numbers, split)
            if targets:
                return self._write(split, index, numbers, rng.choice(targets))
        raise ValueError(
            f"countdown: {DRAWS} draws of {self._numbers} numbers from {self._low} to {self._high} gave no {split} task "
            f"with {self._min_solutions} solutions and a target from {self._target_low} to {self._target_high}: lower "
            "min_solutions or widen the ranges"
        )

    def open(self, prompt: Prompt) -> OneReply:
        numbers, target = _task(prompt)
        return OneReply(lambda text: self._score(text, numbers, target), limit=MAX_EXPRESSION)

    def solutions(self, prompt: Prompt) -> tuple[str, ...]:
        """Returns every correct expression, sorted, in the form of `Verdict.solution`."""
        numbers, target = _task(prompt)
        return tuple(
            sorted(e for chosen in self._choices(numbers) for e in _solutions(chosen, target, self._operators))
        )

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns a solution drawn uniformly from `solutions(prompt)`, or now and then ? where abstaining earns something."""
        if self._abstain and rng.random() < ABSTENTIONS:
            return ABSTAIN
        return rng.choice(self.solutions(prompt))

    def _choices(self, numbers: Numbers) -> list[Numbers]:
        """Lists what a solution may use: all numbers, or every choice of two or more, equal ones once."""
        sizes = range(2, len(numbers) + 1) if self._use == "some" else (len(numbers),)
        return sorted({chosen for size in sizes for chosen in combinations(numbers, size)})

    def alphabet(self) -> Iterable[str]:
        return sorted(set("0123456789 =+-*") | set(self._system) | set(ABSTAIN if self._abstain else ""))

    def _find_targets(self, numbers: Numbers, split: Split) -> tuple[int, ...]:
        counts: Counter[int] = Counter()
        for chosen in self._choices(numbers):
            counts.update(_counts(chosen, self._operators))
        return tuple(
            sorted(
                value
                for value, count in counts.items()
                if count >= self._min_solutions
                and self._target_low <= value <= self._target_high
                and in_split(_text(numbers, value), split)
            )
        )

    def _write(self, split: Split, index: int, numbers: Numbers, target: int) -> Prompt:
        system = (Message("system", self._system),) if self._system else ()
        messages = (*system, Message("user", _text(numbers, target)))
        return Prompt(self._name, split, index, messages, {"numbers": list(numbers), "target": target})

    def _score(self, text: str, numbers: Numbers, target: int) -> Verdict:
        expression = "".join(text.split())
        if self._abstain and expression == ABSTAIN:
            return Verdict(self._abstain, detail="abstains")
        if not _EXPRESSION.fullmatch(expression):
            return Verdict(0.0, detail="not an expression")
        used = [token for token in _TOKEN.findall(expression) if token.isdigit()]
        over = Counter(used) - Counter(map(str, numbers))  # as texts: 03 is not 3
        if over or len(used) < (2 if self._use == "some" else len(numbers)):
            each = "two or more of the numbers, each once" if self._use == "some" else "each number once"
            return Verdict(0.0, detail=f"uses {' '.join(used)}, not {each}")
        if any(o in "+-*" and o not in self._operators for o in expression):
            return Verdict(0.0, detail=f"uses an operator that is not among {self._operators}")
        value = left_to_right(expression)
        if value != target:
            return Verdict(0.0, detail=f"makes {value}, not {target}")
        return Verdict(1.0, correct=True, solution=expression)


def left_to_right(expression: str) -> int:
    """Evaluates an expression of integers and + - * without precedence: '4+5*3-6' is 21."""
    first, *rest = _TOKEN.findall(expression)
    value = int(first)
    for operator, number in zip(rest[::2], rest[1::2], strict=True):
        value = _apply(value, operator, int(number))
    return value


def _apply(value: int, operator: str, number: int) -> int:
    if operator == "+":
        return value + number
    if operator == "-":
        return value - number
    return value * number


def _text(numbers: Numbers, target: int) -> str:
    return f"{' '.join(map(str, numbers))}={target}"


def _task(prompt: Prompt) -> tuple[Numbers, int]:
    return tuple(sorted(prompt.task["numbers"])), prompt.task["target"]


def _last_numbers(numbers: Numbers) -> Iterator[tuple[int, Numbers]]:
    """Yields each distinct number that can come last, with the numbers left to come before it."""
    for i, number in enumerate(numbers):
        if i == 0 or numbers[i - 1] != number:
            yield number, numbers[:i] + numbers[i + 1 :]


def _counts(numbers: Numbers, operators: str) -> dict[int, int]:
    """Returns value -> number of distinct expressions that use all the numbers and have it. Cached: do not modify."""
    # With more than four numbers there are too many sets and their tables are too large to cache.
    return _kept_table(numbers, operators) if len(numbers) <= 4 else _table(numbers, operators)


def _table(numbers: Numbers, operators: str) -> dict[int, int]:
    if len(numbers) == 1:
        return {numbers[0]: 1}
    table: dict[int, int] = {}
    for number, rest in _last_numbers(numbers):
        for before, count in _counts(rest, operators).items():
            for operator in operators:
                value = _apply(before, operator, number)
                table[value] = table.get(value, 0) + count
    return table


_kept_table = lru_cache(maxsize=1024)(_table)  # some 20 kB each


@lru_cache(maxsize=1024)
def _solutions(numbers: Numbers, target: int, operators: str) -> tuple[str, ...]:
    return tuple(sorted(_expressions(numbers, target, operators)))


def _expressions(numbers: Numbers, value: int, operators: str) -> Iterator[str]:
    """Walks the tables backwards: below the first level, every step taken leads to an expression."""
    if len(numbers) == 1:
        if value == numbers[0]:
            yield str(value)
        return
    for number, rest in _last_numbers(numbers):
        table = _counts(rest, operators)
        for operator in operators:
            if operator == "*" and value % number:
                continue
            before = {"+": value - number, "-": value + number, "*": value // number}[operator]
            if before in table:
                for expression in _expressions(rest, before, operators):
                    yield f"{expression}{operator}{number}"
