"""Tests the format term: environments' own formats, patterns of a recipe, and a pattern that takes exponential time."""

from __future__ import annotations

import random
import time

import pytest

from actors.verifier import EnvSpec, ScoreRequest, Verifier
from envs import catalog
from envs.base import HasForm, demonstrate
from envs.reward_terms.format_match import Form
from envs.types import Observation, Prompt, Status, Verdict

FORM = EnvSpec("envs.reward_terms.format_match:Form", {}, 0)


def asked(pattern: str, *responses: str) -> Prompt:
    return Prompt("any", "train", 3, (), {"pattern": pattern, "responses": len(responses)})


@pytest.mark.parametrize(
    ("pattern", "responses", "share"),
    [
        ("[0-9]+", ("12",), 1.0),
        ("[0-9]+", (" 12\n",), 1.0),  # white space around a response is not its form
        ("[0-9]+", ("12a",), 0.0),  # as a whole
        ("[0-9]+", ("a12",), 0.0),
        ("[0-9]+", ("12", "x", "3", ""), 0.5),
        ("(?s)<think>.*</think>.+", ("<think>\na\n</think> 7",), 1.0),
        ("<think>.*</think>.+", ("<think>\na\n</think> 7",), 0.0),
    ],
)
def test_the_verdict_is_the_share_of_responses_that_match(
    pattern: str, responses: tuple[str, ...], share: float
) -> None:
    session = Form().open(asked(pattern, *responses))
    *before, last = [session.reply(text) for text in responses]
    assert all(isinstance(answer, Observation) for answer in before)
    assert last == Verdict(share, correct=share == 1.0)


@pytest.mark.parametrize("name", ["countdown", "arithmetic"])
def test_what_an_environment_demonstrates_has_its_own_form(name: str) -> None:
    environment = catalog.load(name, {})
    assert isinstance(environment, HasForm)
    for index in range(50):
        prompt = environment.prompt("train", index)
        response = demonstrate(environment, prompt, random.Random(index)).responses[0]
        for text, share in ((response, 1.0), (f"{response} because", 0.0), ("", 0.0)):
            answer = Form().open(asked(environment.form, text)).reply(text)
            assert isinstance(answer, Verdict) and answer.reward == share, text


def test_a_pattern_that_never_ends_costs_its_own_response_and_seconds() -> None:
    verifier = Verifier([FORM], timeout_s=1.0)
    try:
        evil = ScoreRequest("a", asked("(x+x+)+y", "x"), ("x" * 60,))
        fine = ScoreRequest("b", asked("x+", "x"), ("xx",))
        began = time.monotonic()
        bad, good = verifier.score([evil, fine])
        assert isinstance(bad, Verdict) and bad.status is Status.TIMEOUT
        assert "within verifiers.timeout_s = 1 s" in bad.detail
        assert good == Verdict(1.0, True)
        assert time.monotonic() - began < 60
    finally:
        verifier.close()
