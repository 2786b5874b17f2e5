"""Reward functions with TRL's and verl's signatures: what they are called with, what they may return, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.verifier import EnvSpec, ScoreRequest, Verifier
from envs import catalog
from envs.reward_terms.own_function import OwnFunction, find_function
from envs.types import Message, Prompt, Status, Verdict

FUNCTIONS = """
import numpy

def brevity(completions, **kwargs):
    return [-float(len(text)) for text in completions]

def everything(prompts, completions, answer, **kwargs):
    assert prompts == ["2+3="] and completions == ["5"] and answer == ["5"] and kwargs == {"level": [2]}, (prompts, kwargs)
    return [7.0]

def one_column(completions, level):
    return numpy.array(level) * 1.5

def chatty(prompts, completions, **kwargs):
    assert prompts[0][-1] == {"role": "user", "content": "2+3="}
    return [0.5 if completions[0][0]["content"] == "5" else 0.0]

def silent(completions, **kwargs):
    return [None]

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert (data_source, extra_info) == ("sums", {"answer": "5", "level": 2})
    return float(solution_str == ground_truth)

def scored(solution_str, ground_truth):
    return {"score": 0.25, "acc": 1}

def two(completions, **kwargs):
    return [1.0, 2.0]

def text(completions, **kwargs):
    return "1"

def unnamed(solution_str, ground_truth):
    return {"acc": 1}

def broken(completions, **kwargs):
    return [1 / 0]

def neither(response):
    return 1.0

def needs_more(solution_str, weight):
    return 1.0

async def later(completions, **kwargs):
    return [1.0]

CONSTANT = 3
"""
TASK = {"answer": "5", "level": 2}


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_rewards.py").write_text(FUNCTIONS)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(catalog, "_folders", [str(tmp_path)])
    yield tmp_path
    sys.modules.pop("own_rewards", None)


def asked(function: str, chat: bool = False, reference: str = "answer") -> Prompt:
    task: dict[str, Any] = {
        "function": f"own_rewards.py:{function}",
        "reference": reference,
        "chat": chat,
        "task": TASK,
    }
    return Prompt("sums", "train", 0, (Message("user", "2+3="),), task)


def score(function: str, response: str = "5", **settings: Any) -> float:
    verdict = OwnFunction().open(asked(function, **settings)).reply(response)
    assert isinstance(verdict, Verdict)
    return verdict.reward


@pytest.mark.parametrize(
    ("function", "reward"),
    [
        ("brevity", -1.0),
        ("everything", 7.0),
        ("one_column", 3.0),
        ("silent", 0.0),
        ("compute_score", 1.0),
        ("scored", 0.25),
    ],
)
def test_each_signature_is_found_and_called(function: str, reward: float) -> None:
    assert score(function) == reward


def test_conversations_and_other_references() -> None:
    assert (score("chatty", chat=True), score("chatty", "6", chat=True)) == (0.5, 0.0)
    assert score("compute_score", "2", reference="level") == 0.0  # "2" is not 2: it is given as the data has it
    assert score("compute_score", "six") == 0.0
    assert score("brevity", "x" * 30_000) == -30_000.0


@pytest.mark.parametrize(
    ("function", "words"),
    [("two", "a list of one number"), ("text", "a list of numbers"), ("unnamed", "it should have 'score'")],
)
def test_what_it_returns_has_to_be_a_reward(function: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score(function)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_rewards.py:neither", "takes response: it should have TRL's parameters"),
        ("own_rewards.py:needs_more", "needs the parameter 'weight'"),
        ("own_rewards.py:later", "is a coroutine"),
        ("own_rewards.py:CONSTANT", "no class 'CONSTANT'"),
        ("no_such_file.py:score", "no module 'no_such_file'"),
        ("own_rewards.py", "write my.py:score"),
        ("/tmp/own_rewards.py:score", "write my.py:score"),
    ],
)
def test_what_is_no_reward_function_is_a_sentence(name: str, words: str) -> None:
    with pytest.raises(ValueError) as raised:
        find_function(name)
    assert words in str(raised.value) and "environment" not in str(raised.value)


def test_it_runs_in_a_verifier_and_its_error_costs_its_own_response_alone(mine: Path) -> None:
    spec = EnvSpec("arithmetic", {}, 0, (str(mine),))
    verifier = Verifier([spec], timeout_s=30)
    try:
        requests = [
            ScoreRequest(f"r{name}", asked(name), ("5",), scorer="function") for name in ("broken", "compute_score")
        ]
        broken, right = verifier.score(requests)
    finally:
        verifier.close()
    assert isinstance(broken, Verdict) and isinstance(right, Verdict)
    assert (
        broken.status is Status.ERROR
        and "own_rewards.py, line" in broken.detail
        and "ZeroDivisionError" in broken.detail
    )
    assert right.reward == 1.0
