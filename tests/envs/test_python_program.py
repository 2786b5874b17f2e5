"""Programs as replies: experts win in every level, a program that forges its result does not, odd replies get an answer."""

from __future__ import annotations

import random

import pytest

from envs import catalog
from envs.base import demonstrate, play
from envs.types import Observation, Verdict

FORGERIES = (
    "import os\nos._exit(0)",
    "raise SystemExit(0)",
    "import sys\nsys.exit()",
    "print('ok')\nprint('passed')\nprint('1.0')",
    "class Same:\n    def __eq__(self, other):\n        return True\ndef f(*a, **k):\n    return Same()",
)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_an_expert_earns_full_reward(level: int) -> None:
    environment = catalog.load("python_program", {"level": level}, seed=5)
    for index in range(6):
        prompt = environment.prompt("train" if index % 2 else "eval", index)
        assert prompt == catalog.load("python_program", {"level": level}, seed=5).prompt(prompt.split, index)
        verdict = demonstrate(environment, prompt, random.Random(index)).verdict
        assert verdict is not None
        assert (verdict.reward, verdict.correct) == (1.0, True), prompt
        assert verdict.solution


@pytest.mark.parametrize("program", FORGERIES)
def test_a_forged_result_earns_nothing(program: str) -> None:
    environment = catalog.load("python_program", {}, seed=5)
    played = play(environment.open(environment.prompt("train", 0)), lambda _: f"```python\n{program}\n```")
    assert played.verdict is not None
    assert (played.verdict.reward, played.verdict.correct) == (0.0, False)


@pytest.mark.parametrize("reply", ["", "\x00", "\ud800", "((((", "```python\n```", "é" * 100_000, "'" * 500])
def test_an_odd_reply_gets_an_answer(reply: str) -> None:
    environment = catalog.load("python_program", {}, seed=5)
    answer = environment.open(environment.prompt("train", 1)).reply(reply)
    assert isinstance(answer, Observation) or (isinstance(answer, Verdict) and answer.reward == 0.0)
