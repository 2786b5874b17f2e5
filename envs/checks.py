"""Checks constructor arguments of environments; each failure is a ValueError of one sentence with the value in it.

Plain functions instead of a pydantic model: importing pydantic takes longer than importing all built-in environments, every
verifier process would pay for it, and its messages would have to be rewritten into these sentences anyway. That each
argument has its annotated type is checked in one place, `envs.catalog.load`.
"""

from __future__ import annotations

import math
from collections.abc import Collection


def check_range(environment: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises ValueError unless low <= value <= high; without an upper limit the sentence says "low or more"."""
    if not low <= value <= high:
        limits = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise ValueError(f"{environment}: {name} is {value}, it must be {limits}")


def check_positive(environment: str, **values: float | None) -> None:
    """Raises ValueError for the first value that is not above 0; None stands for "not given" and passes."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{environment}: {name} is {value}, it must be above 0")


def check_choice(environment: str, name: str, value: str, choices: Collection[str]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        listed = " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
        raise ValueError(f"{environment}: {name} is {value!r}, it must be {listed}")


def check_operators(environment: str, value: str) -> None:
    """Raises ValueError unless the value is one or more of the characters + - *, each at most once."""
    if not value or set(value) - set("+-*") or len(set(value)) != len(value):
        raise ValueError(f"{environment}: operators is {value!r}, it must be one or more of + - *, each once")
