"""Defines the functions that the environment python_program asks for.

A template has the question and several solutions as texts, with numbers a and b to be filled in. The first solution is the
reference that computes expected values; it is our own text, so it runs in this process. Templates are short on purpose: a
small character-level model can learn the first level.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Arguments = tuple[Any, ...]
_WORDS = ("a", "bee", "cat", "noon", "level", "apple", "zoo", "banana", "queue", "aa", "xyz", "kayak", "moon")


@dataclass(frozen=True, slots=True)
class Template:
    """Describes one kind of function.

    level  1 is easiest
    asks   the question, with {a} and {b}, both 2 to 9
    ways   solutions, with {a} and {b}
    draw   returns the arguments of one call
    """

    level: int
    asks: str
    ways: tuple[str, ...]
    draw: Callable[[random.Random], Arguments]

    def reference(self, numbers: dict[str, int]) -> Callable[..., Any]:
        """Returns the function that the first solution defines."""
        names: dict[str, Any] = {}
        exec(self.ways[0].format(**numbers), names)  # our own text, not a model's
        return names["f"]


def _number(rng: random.Random) -> Arguments:
    return (rng.randint(-9, 20),)


def _natural(rng: random.Random) -> Arguments:
    return (rng.randint(0, 200),)


def _two(rng: random.Random) -> Arguments:
    return rng.randint(-9, 20), rng.randint(-9, 20)


def _list(rng: random.Random) -> Arguments:
    return ([rng.randint(0, 12) for _ in range(rng.randint(0, 7))],)


def _word(rng: random.Random) -> Arguments:
    return (rng.choice(_WORDS) + rng.choice(_WORDS) * rng.randint(0, 1),)


def _line(*expressions: str, names: str = "x") -> tuple[str, ...]:
    return tuple(f"def f({names}): return {e}" for e in expressions)


TEMPLATES: tuple[Template, ...] = (
    Template(1, "x*{a}+{b}", _line("x*{a}+{b}", "{b}+x*{a}", "{a}*x+{b}", "{b}+{a}*x"), _number),
    Template(1, "x*{a}-{b}", _line("x*{a}-{b}", "{a}*x-{b}", "-{b}+x*{a}", "-{b}+{a}*x"), _number),
    Template(1, "{a}-x*{b}", _line("{a}-x*{b}", "{a}-{b}*x", "-x*{b}+{a}", "-{b}*x+{a}"), _number),
    Template(1, "(x+{a})*{b}", _line("(x+{a})*{b}", "({a}+x)*{b}", "{b}*(x+{a})", "{b}*({a}+x)"), _number),
    Template(1, "x*x+{a}*x+{b}", _line("x*x+{a}*x+{b}", "x*(x+{a})+{b}", "x**2+{a}*x+{b}"), _number),
    Template(
        2,
        "the larger of x*{a} and y*{b}",
        _line("max(x*{a},y*{b})", "x*{a} if x*{a}>y*{b} else y*{b}", "sorted([x*{a},y*{b}])[1]", names="x,y"),
        _two,
    ),
    Template(
        2,
        "x/{a} if {a} divides x, else x+{b}; an integer",
        _line("x//{a} if x%{a}==0 else x+{b}", "x+{b} if x%{a} else x//{a}"),
        _number,
    ),
    Template(
        2,
        "how far x*{a} is from y+{b}",
        _line("abs(x*{a}-y-{b})", "max(x*{a}-y-{b},y+{b}-x*{a})", names="x,y"),
        _two,
    ),
    Template(
        2,
        "x, but not below -{a} and not above {b}",
        _line("max(-{a},min({b},x))", "sorted([-{a},x,{b}])[1]", "min(max(x,-{a}),{b})"),
        _number,
    ),
    Template(
        3,
        "the sum of the numbers in list x above {a}, plus {b}",
        (
            "def f(x): return sum(i for i in x if i>{a})+{b}",
            "def f(x): return {b}+sum([i for i in x if i>{a}])",
            "def f(x):\n s={b}\n for i in x:\n  if i>{a}: s+=i\n return s",
        ),
        _list,
    ),
    Template(
        3,
        "how many numbers in list x are {a} or {b}",
        (
            "def f(x): return sum(i in({a},{b}) for i in x)",
            "def f(x): return len([i for i in x if i=={a} or i=={b}])",
            "def f(x):\n n=0\n for i in x:\n  if i in({a},{b}): n+=1\n return n",
        ),
        _list,
    ),
    Template(
        3,
        "list x backwards, each number times {a} plus {b}",
        _line("[i*{a}+{b} for i in x[::-1]]", "[{b}+{a}*i for i in reversed(x)]", "[i*{a}+{b} for i in x][::-1]"),
        _list,
    ),
    Template(
        3,
        "word x with every vowel replaced by {a}{b}",
        (
            "def f(x): return ''.join('{a}{b}' if c in 'aeiou' else c for c in x)",
            "def f(x):\n for c in 'aeiou': x=x.replace(c,'{a}{b}')\n return x",
            "def f(x):\n r=''\n for c in x: r+='{a}{b}' if c in 'aeiou' else c\n return r",
        ),
        _word,
    ),
    Template(
        4,
        "the sum of the digits of x*{a}+{b}",
        (
            "def f(x): return sum(map(int,str(x*{a}+{b})))",
            "def f(x): return sum(int(c) for c in str(x*{a}+{b}))",
            "def f(x):\n x=x*{a}+{b}\n s=0\n while x: s+=x%10; x//=10\n return s",
        ),
        _natural,
    ),
    Template(
        4,
        "how many steps x+1 takes to 1, a step being n/2 if n is even, else 3n+1; times {a} plus {b}",
        (
            "def f(x):\n n=x+1\n s=0\n while n>1: n=n*3+1 if n%2 else n//2; s+=1\n return s*{a}+{b}",
            "def f(x):\n x+=1\n s={b}\n while x!=1:\n  x=x//2 if x%2==0 else 3*x+1\n  s+={a}\n return s",
        ),
        _natural,
    ),
    Template(
        4,
        "runs of equal letters in word x as [letter, length times {a} plus {b}]",
        (
            "def f(x):\n r=[]\n for c in x:\n  if r and r[-1][0]==c: r[-1][1]+={a}\n  else: r.append([c,{a}+{b}])\n return r",
            "from itertools import groupby\ndef f(x): return [[c,len(list(g))*{a}+{b}] for c,g in groupby(x)]",
        ),
        _word,
    ),
)
LEVELS = max(template.level for template in TEMPLATES)
