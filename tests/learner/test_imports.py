"""No module of the learner imports one that imports it, those that only a type checker imports included."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "learner").rglob("*.py")
    if path.name != "__init__.py"
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & MODULES.keys()


def test_imports_make_no_circle() -> None:
    left = {name: imported(path) for name, path in MODULES.items()}
    assert left["learner.learner"] >= {"learner.objective", "learner.weights.protocol"}
    while leaves := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in leaves}
    assert left == {}, f"these import one another: {', '.join(sorted(left))}"
