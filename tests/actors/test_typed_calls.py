"""Remote calls are typed: none goes by a string, and pyright knows every method of every actor."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import handles, remote

ROOT = Path(__file__).parents[2]
FILES = sorted(p for package in ("actors", "orchestration") for p in (ROOT / package).rglob("*.py"))
ACTORS = [remote.GeneratorActor, remote.VerifierActor, remote.RewardModelActor, remote.LearnerActor]
HANDLES = [handles.RemoteGenerator, handles.RemoteVerifier, handles.RemoteRewardModel, handles.RemoteLearner]


def calls_by_string(source: str) -> Iterator[str]:
    """Yields the calls that choose a method by a string: `x.call.remote("name")`, or getattr with an argument of a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            method = ast.unparse(node.func)
            first = node.args[0] if node.args else None
            if method.endswith(".remote") and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [a for a in node.args.args if a.arg not in ("self", "cls")]
            if arguments and arguments[0].arg in ("method", "function"):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Call) and ast.unparse(inner.func) == "getattr":
                        yield f"line {inner.lineno}: {ast.unparse(inner)}"


@pytest.mark.parametrize(
    "source",
    [
        'answer(actor.call.remote("forget"))',
        'self.actors[0].call.remote("train", batch)',
        "class A:\n def call(self, method: str, *args):\n  return getattr(self._learner, method)(*args)",
        "class A:\n async def call(self, method, *args):\n  return getattr(self._learner, method)(*args)",
    ],
)
def test_a_call_by_string_is_found(source: str) -> None:
    assert len(list(calls_by_string(source))) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_remote_method_is_chosen_by_a_string(path: Path) -> None:
    assert list(calls_by_string(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("cls", ACTORS, ids=lambda c: c.__name__)
def test_every_actor_answers_ready_and_close(cls: type) -> None:
    assert issubclass(cls, remote.BaseActor)
    assert {"ready", "close"} <= {name for name in dir(cls) if not name.startswith("_")}


@pytest.mark.parametrize("cls", ACTORS, ids=lambda c: c.__name__)
def test_every_public_method_of_an_actor_is_typed_by_ray(cls: type) -> None:
    """Without `@ray.method` a handle has the plain method, whose `remote` pyright does not know."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            decorators = [ast.unparse(d) for d in node.decorator_list]
            assert any(d.startswith("ray.method") for d in decorators), f"{cls.__name__}.{node.name}"


def test_handles_call_only_methods_that_their_actors_have() -> None:
    """Finds what pyright finds, where pyright is not run."""
    for handle, actor in zip(HANDLES, (ACTORS[0], ACTORS[1], ACTORS[2], ACTORS[3]), strict=True):
        called = {
            node.func.value.attr
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(handle))))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "remote"
            and isinstance(node.func.value, ast.Attribute)
        }
        assert called
        assert called <= set(dir(actor)), handle.__name__
