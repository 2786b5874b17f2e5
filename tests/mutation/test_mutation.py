"""The table of mutations still fits the sources: CI keeps it true without running it (`make mutation` does)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mutation.entries import Mutation
from mutation.generated import EQUIVALENT, EVERY, EXCLUDED, GENERATED, TESTS
from mutation.table import CURATED, MUTATIONS

ROOT = Path(__file__).parents[2]


def tree(source: str) -> str:
    return ast.dump(ast.parse(source))


def test_names_are_told_apart_and_there_are_enough() -> None:
    assert max(Counter(m.name for m in MUTATIONS).values()) == 1
    assert len(CURATED) >= 60


@pytest.mark.parametrize("mutation", CURATED, ids=lambda m: m.name)
def test_a_text_occurs_exactly_once_and_its_change_is_one(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text("utf-8")
    assert source.count(mutation.text) == 1
    assert tree(mutation.apply(source)) != tree(source)  # a program still, and another one


def test_no_mutation_is_killed_by_a_name_that_does_not_exist(tmp_path: Path) -> None:
    """A NameError says nothing of the tests: any of them that runs the line would see it."""
    for i, mutation in enumerate(CURATED):
        mutated = mutation.apply((ROOT / mutation.file).read_text("utf-8"))
        (tmp_path / f"m{i}.py").write_text(mutated, "utf-8")
    command = ["-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821", "--output-format", "concise"]
    done = subprocess.run([sys.executable, *command, str(tmp_path)], capture_output=True, text=True, check=False)
    undefined = {int(i) for i in re.findall(r"m(\d+)\.py", done.stdout)}
    assert done.returncode == 0, [CURATED[i].name for i in sorted(undefined)] or done.stderr


@pytest.mark.parametrize("file", TESTS)
def test_generated_mutations_are_different_programs_and_no_curated_entry_repeats_one(file: str) -> None:
    source = (ROOT / file).read_text("utf-8")
    generated = {tree(m.apply(source)): m.name for m in GENERATED if m.file == file}
    assert len(generated) == sum(m.file == file for m in GENERATED)
    assert tree(source) not in generated
    repeated = {m.name: generated.get(tree(m.apply(source))) for m in CURATED if m.file == file}
    assert {name: twin for name, twin in repeated.items() if twin} == {}


def test_generated_mutations_stay_few_and_their_exceptions_exist() -> None:
    assert 100 <= len(GENERATED) <= 220
    assert EQUIVALENT.keys() <= {m.name for m in EVERY}
    functions = {
        f"{file}:{getattr(outer, 'name', '')}{'.' if isinstance(outer, ast.ClassDef) else ''}{node.name}"
        for file in TESTS
        for outer in ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
        for node in ast.iter_child_nodes(outer)
        if isinstance(node, ast.FunctionDef)
    }
    assert functions >= EXCLUDED


@pytest.mark.parametrize("tests", sorted({m.tests for m in MUTATIONS}))
def test_the_tests_it_names_are_there(tests: str) -> None:
    for file in tests.partition(" -k ")[0].split():
        assert (ROOT / file).is_file()
