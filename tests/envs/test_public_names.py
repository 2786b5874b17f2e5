"""Tests the import paths, names and signatures that environments outside this repository use."""

from __future__ import annotations

import importlib
import inspect
import random
import textwrap

import pytest

from envs import base, catalog, tasks, types

PUBLIC = {
    "envs.types": [
        "Split",
        "Role",
        "Status",
        "Message",
        "Prompt",
        "Observation",
        "Verdict",
        "Turn",
        "Trajectory",
        "Group",
    ],
    "envs.base": [
        "Session",
        "Environment",
        "HasForm",
        "Demonstrates",
        "Expert",
        "DemonstratesTurns",
        "Played",
        "play",
        "demonstrates",
        "demonstrate",
    ],
    "envs.tasks": [
        "MAX_RESPONSE",
        "EVAL_SHARE",
        "OneReply",
        "stable_hash",
        "held_out",
        "in_split",
        "task_random",
        "check_index",
    ],
    "envs.catalog": [
        "BUILTIN",
        "UnknownEnvironment",
        "EnvironmentParameterError",
        "BrokenEnvironment",
        "load",
        "describe",
    ],
    "envs.answers.extract": ["extract", "program", "tagged", "boxed"],
    "envs.answers.grading": ["Grade", "grade", "normalise", "number"],
}
# Parameters and fields that environments pass by name or position, in their order.
SIGNATURES = {
    "envs.types:Message": ["role", "content"],
    "envs.types:Prompt": ["env", "split", "index", "messages", "task"],
    "envs.types:Observation": ["messages", "reward"],
    "envs.types:Verdict": ["reward", "correct", "solution", "status", "detail", "terms"],
    "envs.tasks:OneReply": ["score", "limit"],
    "envs.tasks:task_random": ["seed", "split", "index"],
    "envs.base:play": ["session", "act", "max_turns"],
    "envs.base:Session.reply": ["self", "text"],
    "envs.base:Environment.prompt": ["self", "split", "index"],
    "envs.base:Demonstrates.demonstration": ["self", "prompt", "rng"],
    "envs.base:DemonstratesTurns.expert": ["self", "prompt", "rng"],
    "envs.base:Expert.act": ["self", "observation"],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_can_be_imported(module: str) -> None:
    assert [name for name in PUBLIC[module] if not hasattr(importlib.import_module(module), name)] == []


@pytest.mark.parametrize("path", SIGNATURES)
def test_public_signatures_begin_as_they_always_did(path: str) -> None:
    module, _, name = path.partition(":")
    target = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    assert callable(target)
    assert list(inspect.signature(target).parameters)[: len(SIGNATURES[path])] == SIGNATURES[path]


@pytest.mark.parametrize("name", catalog.BUILTIN)
def test_every_built_in_environment_is_where_the_catalog_says(name: str) -> None:
    environment = catalog.find(name)
    assert inspect.isclass(environment)
    assert all(callable(getattr(environment, method)) for method in ("size", "prompt", "open"))
    assert catalog.find(catalog.BUILTIN[name]) is environment


def test_the_example_for_authors_of_environments_works() -> None:
    lines = str(base.__doc__).split("\n")
    code = "\n".join(line for line in lines if line.startswith("    ") or not line)
    names = {**vars(types), **vars(tasks)}
    exec(textwrap.dedent(code), names)
    sums = names["Sums"](seed=0, high=9)
    catalog.try_out("my_module:Sums", sums)
    prompt = sums.prompt("eval", 3)
    assert sums.open(prompt).reply(f" {prompt.task['answer']}\n") == types.Verdict(1.0, correct=True)
    assert sums.open(prompt).reply("none") == types.Verdict(0.0)


def test_optional_protocols_are_recognised_by_their_methods() -> None:
    class OneTurn:
        form = "[0-9]+"

        def demonstration(self, prompt: types.Prompt, rng: random.Random) -> str:
            return "4"

        def alphabet(self) -> str:
            return "0123456789"

    environment = OneTurn()
    assert isinstance(environment, base.HasForm) and isinstance(environment, base.Demonstrates)
    assert base.demonstrates(environment) and not base.demonstrates(object())
    prompt = types.Prompt("sums", "train", 0, (types.Message("user", "2+2="),))
    assert base.demonstrate(environment, prompt, random.Random(0)) == base.Played(("4",), (), None)
