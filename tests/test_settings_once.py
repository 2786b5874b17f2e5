"""A setting is declared once: classes that hold the same values inherit from one another or hold one another."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("envs", "learner", "actors", "orchestration")
TOO_MANY = 3  # field names that two classes share: one or two may be chance, three are a copy
# What every kind of actor has of its own, and what tells kinds apart.
EACH_ITS_OWN = {"count", "cpus", "gpus", "timeout_s", "kind"}
# Pairs that share more, and why.
ALLOWED = {
    frozenset({"SamplingParams", "SamplingSettings"}): (
        "a request's own values: max_tokens is cut to the room that is left, temperature may be an evaluation's"
    ),
    frozenset({"CoefficientRange", "Range"}): "a controller's are optional and replace the method's one by one",
}


@dataclass(frozen=True, slots=True)
class Declared:
    """Holds a dataclass or a pydantic model as its source declares it."""

    name: str
    bases: frozenset[str]
    fields: dict[str, str]  # declared in its own body: name -> annotation
    settings: bool  # a pydantic model


def classes(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    for node in ast.iter_child_nodes(tree):
        inner = f"{outer}{node.name}." if isinstance(node, ast.ClassDef) else outer
        if isinstance(node, ast.ClassDef):
            yield inner[:-1], node
        yield from classes(node, inner)


def declared(sources: list[str]) -> list[Declared]:
    """Returns every dataclass and pydantic model."""
    nodes = [pair for source in sources for pair in classes(ast.parse(source))]
    bases = {name: frozenset(ast.unparse(b).rpartition(".")[2] for b in node.bases) for name, node in nodes}
    models = {"BaseModel"}
    while grown := {name for name in bases if bases[name] & models} - models:
        models |= grown
    declarations = []
    for name, node in nodes:
        decorated = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        if decorated or name in models:
            fields = {
                line.target.id: ast.unparse(line.annotation)
                for line in node.body
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                if not ast.unparse(line.annotation).startswith("ClassVar")
            }
            declarations.append(Declared(name, bases[name], fields, name in models))
    return declarations


def declared_twice(declarations: list[Declared]) -> dict[frozenset[str], set[str]]:
    """Returns pairs of classes, one of them settings, that both declare TOO_MANY fields -> these fields.

    A field that holds another of the classes does not count: holding it is how a declaration is used again.
    """
    names = {one.name for one in declarations}

    def values(one: Declared) -> set[str]:
        return {
            field
            for field, annotation in one.fields.items()
            if field not in EACH_ITS_OWN and not names & set(re.findall(r"[\w.]+", annotation))
        }

    pairs = {}
    for one, other in combinations(declarations, 2):
        shared = values(one) & values(other)
        related = one.name in other.bases or other.name in one.bases
        if len(shared) >= TOO_MANY and (one.settings or other.settings) and not related:
            pairs[frozenset({one.name, other.name})] = shared
    return pairs


def sources(root: Path) -> list[str]:
    return [path.read_text("utf-8") for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def test_no_setting_is_declared_twice() -> None:
    declarations = declared(sources(ROOT))
    assert {"SamplingSettings", "RankSettings", "PI.Settings"} <= {one.name for one in declarations}
    pairs = declared_twice(declarations)
    twice = {" and ".join(sorted(pair)): sorted(fields) for pair, fields in pairs.items() if pair not in ALLOWED}
    assert not twice, f"declared twice: {twice}; let one inherit from the other or hold it"
    assert ALLOWED.keys() <= pairs.keys(), "what is allowed is there"


def test_a_copy_is_found_and_a_composition_is_none() -> None:
    base = "class Section(BaseModel):\n    low: float\n    high: float\n    cap: float\n    kind: str\n"
    copy = "@dataclass\nclass Copy:\n    low: float\n    high: float = 1.0\n    cap: float | None = None\n"
    assert declared_twice(declared([base, copy])) == {frozenset({"Section", "Copy"}): {"low", "high", "cap"}}
    child = "class Child(Section):\n    low: float = 1\n    high: float = 2\n    cap: float = 3\n"
    holder = "@dataclass\nclass Holder:\n    section: Section\n    low: float\n    high: float\n"
    assert declared_twice(declared([base, child, holder])) == {}
