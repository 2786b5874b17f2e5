"""The table of mutations still fits the sources: CI keeps it true without running it (`make mutation` does)."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from mutation.entries import Mutation
from mutation.table import MUTATIONS

ROOT = Path(__file__).parents[2]


def test_names_are_told_apart_and_there_are_enough() -> None:
    assert max(Counter(m.name for m in MUTATIONS).values()) == 1
    assert len(MUTATIONS) >= 60


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_text_occurs_exactly_once_and_its_change_is_one(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text("utf-8")
    assert source.count(mutation.text) == 1
    broken = source.replace(mutation.text, mutation.replacement)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(source))  # a program still, and another one


@pytest.mark.parametrize("tests", sorted({m.tests for m in MUTATIONS}))
def test_the_tests_it_names_are_there(tests: str) -> None:
    for file in tests.partition(" -k ")[0].split():
        assert (ROOT / file).is_file()
