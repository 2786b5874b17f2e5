"""check-env: what it says of a sound environment, and the fault that it finds in each of a user's broken ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs import catalog
from orchestration.commands.check_env import check
from orchestration.errors import ConfigError

SOUND = """
import random
from envs.tasks import OneReply, in_split, task_random
from envs.types import Message, Prompt, Verdict

class Doubles:
    def __init__(self, seed):
        self.seed, self.calls = seed, 0
    def size(self, split):
        return None
    def prompt(self, split, index):
        self.calls += 1
        rng = task_random(self.seed, split, index)
        while not in_split(text := str(rng.randrange(1000)), split):
            pass
        return Prompt("doubles", split, index, (Message("user", text),), {"answer": str(2 * int(text))})
    def open(self, prompt):
        answer = prompt.task["answer"]
        return OneReply(lambda text: Verdict(1.0, True, answer) if text == answer else Verdict(0.0))
    def demonstration(self, prompt, rng):
        return prompt.task["answer"]
    def alphabet(self):
        return "0123456789"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(catalog, "_folders", [str(tmp_path)])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("checked_")]:
        del sys.modules[name]


def checked(here: Path, name: str, code: str) -> list[str]:
    (here / f"checked_{name}.py").write_text(code)
    said: list[str] = []
    check(f"checked_{name}:Doubles", [], 0, said.append)
    return said


def test_a_sound_environment_passes(here: Path) -> None:
    said = checked(here, "sound", SOUND)
    assert said[0] == "loads: train has prompts without end, eval prompts without end"
    assert said[1].startswith("prompts: 100 tried") and said[2].startswith("scores: 24 odd responses")
    assert said[3].startswith("demonstrations: each earns") and said[4].startswith("form: none")


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        (
            "order",
            "rng = task_random(self.seed, split, index)",
            "rng = random.Random(self.calls > 60)",
            "another one after others",
        ),
        (
            "splits",
            "in_split(text := str(rng.randrange(1000)), split)",
            "(text := str(rng.randrange(9)))",
            "divide the tasks with",
        ),
        (
            "raises",
            "if text == answer else",
            "if int(text) == int(answer) else",
            "is not scored but ends with error: checked_raises.py",
        ),
        ("random", "if text == answer else", "if random.random() < .5 else", "two sessions score the response"),
        (
            "wrong",
            'return prompt.task["answer"]\n    def alphabet',
            'return "7"\n    def alphabet',
            "is not correct: '7'",
        ),
        ("letters", 'return "0123456789"', 'return "012345678"', "has '9', which its alphabet() lacks"),
        ("empty", 'Message("user", text)', 'Message("user", "")', "has an empty message"),
        ("later", "self.calls += 1", "1 / (index < 40)", "ZeroDivisionError"),
        ("size", "return None", "return 'many'", "size('train') is 'many'"),
    ],
)
def test_each_fault_is_one_sentence(name: str, old: str, new: str, words: str, here: Path) -> None:
    assert SOUND.count(old) == 1
    with pytest.raises(ConfigError) as raised:
        checked(here, name, SOUND.replace(old, new))
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["arithmetic", "bits", "toolbox"])
def test_built_in_environments_pass(name: str) -> None:
    said: list[str] = []
    check(name, [], 3, said.append)
    assert any(line.startswith("demonstrations: each earns") for line in said)


def test_a_name_that_is_none_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="did you mean 'countdown'"):
        check("cuontdown", [], 0, print)
    with pytest.raises(ConfigError, match="did you mean 'numbers'"):
        check("countdown", ["numbrs=3"], 0, print)
