"""Holds the import paths and names that environments outside this repository use."""

from __future__ import annotations

import importlib
import inspect
import random

import pytest

from envs import catalog
from envs.base import Demonstrates, Environment, HasForm, Session, demonstrate
from envs.tasks import OneReply, check_index, in_split, task_random
from envs.types import Message, Prompt, Split, Verdict

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
    "envs.tasks:OneReply": ["judge", "limit"],
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


class Echo:
    """Asks for the prompt's own text: an environment as a user writes one, from public names alone."""

    form = "[a-z]+"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        check_index(split, index)
        rng = task_random(self._seed, split, index)
        while not in_split(word := "".join(rng.choices("abcdefgh", k=6)), split):
            pass
        return Prompt("echo", split, index, (Message("user", word),), {"answer": word})

    def open(self, prompt: Prompt) -> Session:
        return OneReply(lambda text: Verdict(float(text == prompt.task["answer"]), text == prompt.task["answer"]))

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        return prompt.task["answer"]

    def alphabet(self) -> list[str]:
        return list("abcdefgh")


def test_an_environment_from_public_names_keeps_the_protocols() -> None:
    echo: Environment = Echo()
    catalog.try_out("echo", echo)
    assert isinstance(echo, HasForm) and isinstance(echo, Demonstrates)
    prompt = echo.prompt("eval", 3)
    response = demonstrate(echo, prompt, random.Random(0)).responses[0]
    assert echo.open(prompt).reply(response) == Verdict(1.0, True)
    assert echo.open(prompt).reply(f"{response}!") == Verdict(0.0)
