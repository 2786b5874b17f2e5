"""The table of tests/gpu/README.md: every function in which a GPU decides is in it, with a test that exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "tests" / "gpu" / "README.md"
# In code, not in docstrings: names and texts by which a function asks for a GPU or decides what it does there.
DECIDES = re.compile(
    r"cuda|nccl|pin_memory|tensor_parallel|device\.type|enforce_eager|enable_sleep|synchronise|\bSLOTS\b|num_gpus"
)
ROW = re.compile(r"^\| `(\S+\.py):(\S+)` \| `(\S+\.py):(\w+)` \| (.+) \|$")


@cache
def functions(path: Path) -> dict[str, str]:
    """Returns the code of every function of a file by its qualified name, without docstrings."""

    def found(node: ast.AST, before: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from found(child, f"{before}{child.name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                for inner in ast.walk(child):
                    if (
                        isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                        and ast.get_docstring(inner) is not None
                    ):
                        inner.body[0] = ast.Pass()
                yield before + child.name, ast.unparse(child)

    return dict(found(ast.parse(path.read_text("utf-8")), ""))


def rows() -> list[tuple[str, str, str, str, str]]:
    return [m.groups() for m in map(ROW.match, PAGE.read_text("utf-8").splitlines()) if m]  # type: ignore[misc]


def test_every_line_of_the_tables_is_a_row() -> None:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) == len(rows()) == len({row[:2] for row in rows()}) > 50


def test_every_function_in_which_a_gpu_decides_is_in_the_table() -> None:
    deciding = {
        (path.relative_to(ROOT).as_posix(), name)
        for package in ("actors", "learner", "orchestration")
        for path in (ROOT / package).rglob("*.py")
        for name, code in functions(path).items()
        if DECIDES.search(code)
    }
    assert len(deciding) > 40
    assert not deciding - {row[:2] for row in rows()}, "name it in tests/gpu/README.md, with a test"


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]}-{row[1]}")
def test_what_a_row_names_exists(row: tuple[str, str, str, str, str]) -> None:
    file, name, test_file, test, _ = row
    assert name in functions(ROOT / file)
    assert test in functions(ROOT / test_file)


def test_every_part_that_a_row_names_is_a_part_of_the_script() -> None:
    from gpu import check, multi

    named = {(bold, part) for *_, card in rows() for bold, part in re.findall(r"(\*\*|`)([\w-]+)(?:\*\*|`)", card)}
    assert len(named) > 8
    assert {part for bold, part in named if bold == "`"} <= check.PARTS.keys()
    assert {part for bold, part in named if bold == "**"} <= multi.PARTS.keys()
