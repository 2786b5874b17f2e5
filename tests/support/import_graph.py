"""Reads the imports between the layers of the code and draws them into CONTRIBUTING.md.

`python tests/support/import_graph.py` prints the drawing; with --write it replaces the one in CONTRIBUTING.md. A layer is a
folder, or the files of a folder that stand before (or behind) its subfolders. Imports inside functions and under TYPE_CHECKING
count too."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("envs", "learner", "actors", "orchestration")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BEGIN, END = "<!-- import graph: begin -->", "<!-- import graph: end -->"

# The layers in the order of the flow, each with what it holds (a pattern of paths; the first that fits counts) and the layers whose
# files it may import beside its own. What those may import, it may too.
LAYERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "envs": (r"envs/\w+\.py", ()),
    "envs/isolation": (r"envs/isolation/", ("envs",)),
    "envs/answers": (r"envs/answers/", ("envs/isolation",)),
    "envs/reward_terms": (r"envs/reward_terms/", ("envs",)),
    "envs/builtin": (r"envs/builtin/", ("envs/answers",)),
    "envs/adapters": (r"envs/adapters/", ("envs/builtin",)),
    "learner: types, settings": (r"learner/(types|settings|draws|schedule|checkpoint)\.py", ("envs",)),
    "learner/optimiser": (r"learner/optimiser/", ("learner: types, settings",)),
    "learner/training_state": (r"learner/training_state/", ("learner/optimiser",)),
    "learner/ledger": (r"learner/ledger/", ("learner: types, settings",)),
    "learner/entropy": (r"learner/entropy/", ("learner/ledger",)),
    "learner/diversity": (r"learner/diversity/", ("envs", "learner/entropy")),
    "learner/adapters": (r"learner/adapters/", ("learner: types, settings",)),
    "learner/tracing": (r"learner/tracing/", ()),
    "learner/weights": (r"learner/weights/", ()),
    "learner/families": (r"learner/families/", ()),
    "learner/head": (r"learner/head/", ()),
    "learner/microbatches": (r"learner/microbatches/", ()),
    "learner": (
        r"learner/\w+\.py",
        (
            "learner/adapters",
            "learner/diversity",
            "learner/weights",
            "learner/families",
            "learner/head",
            "learner/microbatches",
            "learner/training_state",
            "learner/tracing",
        ),
    ),
    "learner/warmstart": (r"learner/warmstart/", ("learner",)),
    "actors: settings, requests, verifier": (
        r"actors/(settings|inference|verifier|verifier_worker)\.py",
        ("envs/isolation", "learner: types, settings", "learner/weights"),
    ),
    "actors/rewards": (r"actors/rewards/", ("actors: settings, requests, verifier", "envs/reward_terms", "learner")),
    "actors": (r"actors/", ("actors/rewards",)),
    "orchestration: errors, text, stats": (
        r"orchestration/(errors|defects|plain_yaml|text|stats|thresholds|group_stats)\.py",
        ("envs",),
    ),
    "config": (
        r"orchestration/config/",
        ("orchestration: errors, text, stats", "actors: settings, requests, verifier", "learner", "envs/reward_terms"),
    ),
    "memory": (r"orchestration/memory/", ("config",)),
    "cluster": (r"orchestration/cluster/", ("config", "actors")),
    "sampling": (r"orchestration/sampling/", ("config", "actors")),
    "telemetry": (r"orchestration/telemetry/", ("orchestration: errors, text, stats", "learner")),
    "analysis": (r"orchestration/analysis/", ("telemetry",)),
    "report": (r"orchestration/report/", ("analysis",)),
    "run": (r"orchestration/run/", ("memory", "cluster", "sampling", "report", "learner/warmstart")),
    "lab": (r"orchestration/lab/", ("run",)),
    "jobs": (r"orchestration/jobs/", ("config",)),
    "commands": (r"orchestration/commands/", ("run", "learner/warmstart")),
    "cli": (r"orchestration/(cli|cli_models|__main__|__init__)\.py", ("commands", "jobs", "lab")),
}


def modules() -> dict[str, Path]:
    """Returns every module of the four packages by its dotted name."""
    return {".".join(p.with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


@cache
def imported(path: Path) -> tuple[tuple[int, str], ...]:
    """Returns (line, dotted name) of every import in a file; of `from a import b` both a and a.b, whichever is a module."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    known = modules()
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in known else str(node.module)


def layer_of(path: Path) -> str:
    """Returns the layer a file is in. Raises StopIteration where there is none."""
    return next(name for name, (pattern, _) in LAYERS.items() if re.match(pattern, path.as_posix()))


def edges() -> dict[str, set[str]]:
    """Returns for every layer the other layers it imports from."""
    known, found = modules(), {name: set() for name in LAYERS}
    for path in FILES:
        for _, name in imported(path):
            if name in known and (other := layer_of(known[name])) != layer_of(path):
                found[layer_of(path)].add(other)
    return found


def allowed(layer: str) -> set[str]:
    """Returns the layers that a layer's files may import, its own included."""
    return {layer}.union(*(allowed(other) for other in LAYERS[layer][1]))


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Returns the nodes of one circle in order, or an empty list."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for other in sorted(graph[node]):
            if found := walk(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in graph if (found := walk(node, []))), [])


def file_graph() -> dict[str, set[str]]:
    """Returns for every module the other modules of ours that it imports."""
    known = modules()
    return {name: {other for _, other in imported(path) if other in known} - {name} for name, path in known.items()}


def drawing() -> str:
    """Returns the graph as Mermaid text. An arrow that others imply is left out: it would only be another line to follow.

    Raises ValueError where the layers import in a circle.
    """
    graph = edges()
    if found := circle(graph):
        raise ValueError(f"these layers import in a circle: {' <- '.join(found)}")

    def reaches(start: str) -> set[str]:
        return graph[start].union(*(reaches(other) for other in graph[start]))

    names = {layer: f"r{i}" for i, layer in enumerate(LAYERS)}
    lines = ["```mermaid", "flowchart LR"]
    for package in PACKAGES:
        lines.append(f"  subgraph {package}")
        layers = [layer for layer, (pattern, _) in LAYERS.items() if pattern.startswith(package)]
        lines += [f'    {names[layer]}["{layer}"]' for layer in layers]
        lines.append("  end")
    for layer, others in graph.items():
        implied = set[str]().union(*(reaches(other) for other in others))
        lines += [f"  {names[other]} --> {names[layer]}" for other in LAYERS if other in others - implied]
    return "\n".join([*lines, "```"])


def drawn(text: str) -> str:
    """Returns the text with the present drawing between its marks. Raises ValueError where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"CONTRIBUTING.md lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{drawing()}\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        page = ROOT / "CONTRIBUTING.md"
        page.write_text(drawn(page.read_text("utf-8")), "utf-8")
    else:
        print(drawing())
