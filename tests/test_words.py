"""Checks the style of docstrings and comments: sentences, the field's words, no call and no attribute by its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.import_graph import FILES, ROOT

# "Returns", "Holds", "Reserves": a verb in the third person. These words only look like one.
VERB = re.compile(r"[A-Z][a-z]+s\b")
NO_VERBS = {"This", "Its", "As", "Less", "Those", "Thus", "Always", "Perhaps", "Replies", "Whereas"}
# Words that this project once had for what the field has a word for, and turns of phrase that make a reader stop.
OLD_WORDS = re.compile(
    r"\bknobs?\b|\b(is|are|was) no\b|\blets? it go\b|\bis said so\b|\bmend(s|ed)?\b|\bseats?\b|credit by the turn|\bto_go\b"
    r"|\bauthority\b|\bspent\b|\bwhoever\b",
    re.I,
)
# What reads metrics, results and alarms under the names they had before.
READS_OLD_NAMES = (
    "orchestration/telemetry/keys.py",
    "orchestration/telemetry/alarms.py",
    "orchestration/lab/results.py",
)
# Objects of other libraries, and environments of a user's own, may or may not have an attribute: these files ask.
FOREIGN = {
    "actors/rewards/reward_model.py": "configurations of Hugging Face models",
    "actors/vllm_models/adapter.py": "models in vLLM",
    "actors/vllm_worker.py": "the layers of a model in vLLM",
    "envs/adapters/reasoning_gym/worker.py": "reasoning-gym's configurations",
    "envs/catalog.py": "a user's environment",
    "learner/deepspeed_engine.py": "DeepSpeed's optimisers and parameters",
    "learner/training_state/fragments.py": "DeepSpeed's optimisers and parameters",
    "learner/training_state/other_weights.py": "DeepSpeed's parameters",
    "learner/policy.py": "configurations of Hugging Face models",
    "orchestration/commands/precision.py": "configurations of Hugging Face models",
}


def docstrings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields (line, name, docstring) of a file and of everything public in it; what has none is passed over."""

    def inside(node: ast.AST) -> Iterator[tuple[int, str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name[0] != "_":
                if text := ast.get_docstring(child):
                    yield child.lineno, child.name, text
                if isinstance(child, ast.ClassDef):
                    yield from inside(child)
            elif isinstance(child, ast.If | ast.Try):
                yield from inside(child)

    module = ast.parse((ROOT / path).read_text("utf-8"))
    yield 1, path.stem, ast.get_docstring(module) or ""
    yield from inside(module)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_docstring_begins_with_a_sentence_that_has_a_verb(path: Path) -> None:
    wrong = [
        f"{path}:{line} {name}: {text.splitlines()[0] if text else 'no docstring'}"
        for line, name, text in docstrings(path)
        if not VERB.match(text) or text.split()[0] in NO_VERBS
    ]
    assert not wrong, "\n".join(["begin with what it does, Returns ... or Holds ...:", *wrong])


@pytest.mark.parametrize("path", FILES, ids=str)
def test_words_are_the_fields(path: Path) -> None:
    lines = (ROOT / path).read_text("utf-8").splitlines()
    wrong = [f"{path}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if OLD_WORDS.search(line)]
    assert not wrong or path.as_posix() in READS_OLD_NAMES, "\n".join(wrong)


def by_name(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields (line, code) of calls that name what they want as text: an attribute, or the method of a remote object."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        texts = [a for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr") and texts:
            yield node.lineno, ast.unparse(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "remote" and texts:
            of = node.func.value
            if isinstance(of, ast.Attribute) and of.attr == "call":
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_of_ours_is_called_or_read_by_its_name(path: Path) -> None:
    calls = [f"{path}:{line} {code}" for line, code in by_name(ast.parse((ROOT / path).read_text("utf-8")))]
    if path.as_posix() in FOREIGN:
        assert calls, f"{path} no longer asks {FOREIGN[path.as_posix()]} for anything: take it out of FOREIGN"
    else:
        assert not calls, "\n".join(["write the attribute or the method itself:", *calls])


def test_every_exception_is_a_file() -> None:
    assert {*FOREIGN, *READS_OLD_NAMES} <= {path.as_posix() for path in FILES}


def test_the_rules_find_what_they_are_for() -> None:
    text = "getattr(x, 'kind')\nactor.call.remote('train', batch)\ngetattr(x, name)\nactor.train.remote(batch)"
    assert [line for line, _ in by_name(ast.parse(text))] == [1, 2]
    assert not VERB.match("What the knob does.") and VERB.match("Returns the row.")
    assert OLD_WORDS.search("that is no environment") and not OLD_WORDS.search("there is nothing to resume")
