"""Tests nearest names, and the sentences with which constructors refuse values."""

from __future__ import annotations

import pytest

from envs.checks import check_choice, check_operators, check_positive, check_range
from envs.suggest import did_you_mean, nearest


def test_the_nearest_name_or_none() -> None:
    assert nearest("cuontdown", ["bits", "countdown", "guess"]) == "countdown"
    assert nearest("zzz", ["bits", "countdown"]) is None
    assert nearest("bit", ["bits"], cutoff=0.99) is None
    assert did_you_mean("cuontdown", {"countdown": 1}) == "did you mean 'countdown'? "
    assert did_you_mean("zzz", ["countdown"]) == ""


def test_accepted_values_pass() -> None:
    check_range("env", "n", 1, 1, 3)
    check_range("env", "n", 3, 1, 3)
    check_range("env", "n", 10**9, 1)
    check_positive("env", seconds=0.1, turns=None)
    check_choice("env", "mode", "a", ("a", "b"))
    check_operators("env", "+-*")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: check_range("env", "n", 4, 1, 3), "env: n is 4, it must be 1 to 3"),
        (lambda: check_range("env", "n", 0, 1), "env: n is 0, it must be 1 or more"),
        (lambda: check_range("env", "n", float("nan"), 1), "env: n is nan, it must be 1 or more"),
        (lambda: check_positive("env", turns=2, seconds=0), "env: seconds is 0, it must be above 0"),
        (lambda: check_positive("env", seconds=float("nan")), "env: seconds is nan, it must be above 0"),
        (lambda: check_choice("env", "mode", "c", ("a", "b")), "env: mode is 'c', it must be a or b"),
        (lambda: check_choice("env", "mode", "d", ("a", "b", "c")), "env: mode is 'd', it must be one of a, b, c"),
        (lambda: check_operators("env", "++"), "env: operators is '++', it must be one or more of + - *, each once"),
        (lambda: check_operators("env", ""), "env: operators is '', it must be one or more of + - *, each once"),
        (lambda: check_operators("env", "/"), "env: operators is '/', it must be one or more of + - *, each once"),
    ],
)
def test_refused_values_are_one_sentence(call: object, sentence: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == sentence
