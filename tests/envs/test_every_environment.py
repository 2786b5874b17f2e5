"""Tests every built-in environment, of one turn or several: experts win, noise does not, nothing ever raises."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz.responses import assert_plain, fuzzed

import envs
from envs import catalog
from envs.base import Environment, demonstrate, demonstrates, play
from envs.types import Split, Verdict

SPLITS: tuple[Split, ...] = ("train", "eval")
FUZZED = 10_000  # responses to each
QUESTIONS = "\n".join(json.dumps({"prompt": f"What is {i} + 1?", "answer": i + 1}) for i in range(60))

# Not here: python_program, whose every verdict starts processes; gym and appworld, adapters to what others make, who have no
# demonstrations. test_python_program.py asks the same of it, test_gym.py and test_appworld.py of theirs, and less of it.
ELSEWHERE = {"python_program", "gym", "appworld"}

# name of a case -> (environment, parameters)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "arithmetic": ("arithmetic", {}),
    "arithmetic in steps": ("arithmetic", {"steps": True, "terms": 4, "operators": "+-"}),
    "bits": ("bits", {}),
    "countdown": ("countdown", {}),
    "guess": ("guess", {}),
    "questions": ("questions", {"symbolic": False}),  # math-verify on noise is test_protocol.py's
    "reasoning_gym": ("reasoning_gym", {"families": ["chain_sum", "countdown"]}),
    "toolbox 1": ("toolbox", {"level": 1}),
    "toolbox 2": ("toolbox", {"level": 2}),
    "toolbox 3": ("toolbox", {"level": 3}),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "rows.jsonl"
    path.write_text(QUESTIONS)
    return path


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, file: Path) -> tuple[str, dict[str, Any]]:
    name, params = CASES[request.param]
    return name, {**params, **({"path": str(file)} if name == "questions" else {})}


@pytest.fixture(scope="module")
def environment(case: tuple[str, dict[str, Any]]) -> Environment:
    return catalog.load(*case, seed=5)


def test_every_name_of_the_catalog_is_here() -> None:
    assert {name for name, _ in CASES.values()} == set(catalog.BUILTIN) - ELSEWHERE


def test_an_expert_earns_full_reward(environment: Environment) -> None:
    assert demonstrates(environment)
    alphabet = set(environment.alphabet())  # type: ignore[attr-defined]
    for index in range(200):
        prompt = environment.prompt(SPLITS[index % 2], index)
        demonstration = demonstrate(environment, prompt, random.Random(index))
        responses = iter(demonstration.responses)
        played = play(environment.open(prompt), lambda _, responses=responses: next(responses))
        assert played.responses == demonstration.responses and played.observations == demonstration.observations
        verdict = played.verdict
        assert verdict is not None and (verdict.reward, verdict.correct) == (1.0, True), (prompt, played)
        assert verdict.solution
        messages = (*prompt.messages, *(m for o in played.observations for m in o.messages))
        assert alphabet.issuperset("".join((*played.responses, *(m.content for m in messages))))


def test_responses_to_other_prompts_earn_next_to_nothing(environment: Environment) -> None:
    """Well-formed noise: what an expert said to another prompt of the same environment."""
    won = 0
    for index in range(100):
        others = demonstrate(environment, environment.prompt("train", 1000 + index), random.Random(index)).responses
        rng = random.Random(index)
        played = play(environment.open(environment.prompt("train", index)), lambda _, o=others, r=rng: r.choice(o))
        won += played.verdict is not None and played.verdict.correct
    assert won <= 10, won


def test_prompts_are_the_same_in_every_process(case: tuple[str, dict[str, Any]], environment: Environment) -> None:
    indices = (0, 1, 17, 1000)
    code = (
        "import json, sys; from envs import catalog; name, params = json.loads(sys.argv[1]);"
        "e = catalog.load(name, params, seed=5);"
        f"print(json.dumps([repr(e.prompt(s, i)) for s in {SPLITS!r} for i in {indices!r}]))"
    )
    command = [sys.executable, "-c", code, json.dumps(case)]
    root = Path(envs.__file__).parent.parent
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    expected = [repr(environment.prompt(s, i)) for s in SPLITS for i in indices]
    assert json.loads(output) == expected
    assert [repr(environment.prompt(s, i)) for s in SPLITS for i in indices] == expected


def test_splits_share_no_task(environment: Environment) -> None:
    train, held = ({environment.prompt(split, i).messages for i in range(300)} for split in SPLITS)
    assert train and held and not train & held


def test_no_response_makes_an_environment_raise(environment: Environment) -> None:
    rng = random.Random(7)
    for episode in range(FUZZED // 4):
        prompt = environment.prompt(SPLITS[episode % 2], episode % 40)
        correct = demonstrate(environment, prompt, rng).responses
        session = environment.open(prompt)
        for _ in range(4):
            answer = session.reply(fuzzed(rng, correct))
            assert_plain(answer)
            if isinstance(answer, Verdict):
                session = environment.open(prompt)
