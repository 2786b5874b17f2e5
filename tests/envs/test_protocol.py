"""Tests that correct responses earn 1.0, any response gets a verdict, and prompts are reproducible JSON."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from envs import catalog
from envs.base import Demonstrates, Environment
from envs.types import Split, Verdict

ROWS = [{"prompt": f"What is {i} + 1?", "answer": i + 1} for i in range(30)] + [
    {"prompt": "Factor x^2-1", "answer": "(x-1)(x+1)"}
]
SPLITS: tuple[Split, ...] = ("train", "eval")


@pytest.fixture(scope="module", params=["arithmetic", "countdown", "python_program", "questions", "reasoning_gym"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    path: Path = tmp_path_factory.mktemp("questions") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    params: dict[str, dict[str, Any]] = {
        "python_program": {"level": 4, "mixed": True, "turns": 1},
        "questions": {"path": str(path), "timeout_s": 2.0},
        "reasoning_gym": {"families": ["chain_sum", "countdown", "n_queens"], "timeout_s": 2.0},
    }
    return catalog.load(request.param, params.get(request.param, {}), seed=3)


def test_a_demonstration_earns_full_reward(environment: Environment) -> None:
    assert isinstance(environment, Demonstrates)
    alphabet = set(environment.alphabet())
    assert all(len(character) == 1 for character in alphabet)
    for split in SPLITS:
        for index in range(20):
            prompt = environment.prompt(split, index)
            response = environment.demonstration(prompt, random.Random(index))
            verdict = environment.open(prompt).reply(response)
            assert isinstance(verdict, Verdict)
            assert (verdict.reward, verdict.correct) == (1.0, True), (prompt, response, verdict)
            assert verdict.solution
            assert alphabet.issuperset(response.join(message.content for message in prompt.messages))


def test_prompts_are_reproducible_json_and_pickle(environment: Environment) -> None:
    for split in SPLITS:
        for index in (0, 1, 17, 100_000):
            prompt = environment.prompt(split, index)
            assert (prompt.split, prompt.index) == (split, index)
            assert environment.prompt(split, index) == prompt
            assert json.loads(json.dumps(prompt.task)) == prompt.task
            assert pickle.loads(pickle.dumps(prompt)) == prompt


def test_splits_are_disjoint(environment: Environment) -> None:
    train, held = ({environment.prompt(split, i).messages for i in range(150)} for split in SPLITS)
    assert train and held and not train & held


@pytest.mark.parametrize(("split", "index"), [("test", 0), ("train", -1)])
def test_a_prompt_that_cannot_be_is_refused(environment: Environment, split: Any, index: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        environment.prompt(split, index)


NASTY = st.one_of(
    st.text(max_size=80),
    st.text(alphabet="0123456789+-*/=.,%^()[]{}\\$ \nxe", max_size=60),
    st.sampled_from(
        ["\\boxed{", "{" * 5000, "\\boxed{" * 2000, "9" * 19_000, "1" * 10**6, "\ud800", "\0", "٣+٤", "1e999", "1/0"]
    ),
    st.sampled_from(
        ["<answer>" * 2000, "#### ", "answer is", "Answer: $$", "[" * 9000, "None", "nan", "__import__('os')"]
    ),
)


@given(response=NASTY, index=st.integers(0, 50), split=st.sampled_from(SPLITS))
@example(response="", index=0, split="train")
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_response_gets_a_verdict(environment: Environment, response: str, index: int, split: Split) -> None:
    verdict = environment.open(environment.prompt(split, index)).reply(response)
    assert isinstance(verdict, Verdict)
    assert verdict.reward == float(verdict.correct)
    assert (verdict.solution is not None) == verdict.correct
    json.dumps([verdict.solution, verdict.detail], ensure_ascii=False).encode("utf-8")
    assert len(verdict.detail) < 1000


def test_a_response_beyond_the_limit_is_wrong_though_it_ends_correctly(environment: Environment) -> None:
    assert isinstance(environment, Demonstrates)
    prompt = environment.prompt("train", 0)
    response = environment.demonstration(prompt, random.Random(0))
    verdicts = [environment.open(prompt).reply(" " * spaces + response) for spaces in (10, 30_000)]
    assert [isinstance(verdict, Verdict) and verdict.correct for verdict in verdicts] == [True, False]
