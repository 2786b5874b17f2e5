"""The form of replies: the environments' own, patterns of a recipe, and a pattern that never ends."""

from __future__ import annotations

import random
import time

import pytest

from actors.verifier import EnvSpec, JudgeRequest, Verifier
from envs import catalog
from envs.base import HasForm, demonstrate
from envs.reward_terms.format_match import Form
from envs.types import Observation, Prompt, Status, Verdict

FORM = EnvSpec("envs.reward_terms.format_match:Form", {}, 0)


def asked(pattern: str, *replies: str) -> Prompt:
    return Prompt("any", "train", 3, (), {"pattern": pattern, "replies": len(replies)})


@pytest.mark.parametrize(
    ("pattern", "replies", "share"),
    [
        ("[0-9]+", ("12",), 1.0),
        ("[0-9]+", (" 12\n",), 1.0),  # white space around a reply is not its form
        ("[0-9]+", ("12a",), 0.0),  # as a whole
        ("[0-9]+", ("a12",), 0.0),
        ("[0-9]+", ("12", "x", "3", ""), 0.5),
        ("(?s)<think>.*</think>.+", ("<think>\na\n</think> 7",), 1.0),
        ("<think>.*</think>.+", ("<think>\na\n</think> 7",), 0.0),
    ],
)
def test_the_verdict_is_the_share_of_replies_that_match(pattern: str, replies: tuple[str, ...], share: float) -> None:
    session = Form().open(asked(pattern, *replies))
    *before, last = [session.reply(text) for text in replies]
    assert all(isinstance(answer, Observation) for answer in before)
    assert last == Verdict(share, correct=share == 1.0)


@pytest.mark.parametrize("name", ["countdown", "arithmetic"])
def test_what_an_environment_demonstrates_has_its_own_form(name: str) -> None:
    environment = catalog.load(name, {})
    assert isinstance(environment, HasForm)
    for index in range(50):
        prompt = environment.prompt("train", index)
        reply = demonstrate(environment, prompt, random.Random(index)).replies[0]
        for text, share in ((reply, 1.0), (f"{reply} because", 0.0), ("", 0.0)):
            answer = Form().open(asked(environment.form, text)).reply(text)
            assert isinstance(answer, Verdict) and answer.reward == share, text


def test_a_pattern_that_never_ends_costs_its_own_reply_and_seconds() -> None:
    verifier = Verifier([FORM], timeout_s=1.0)
    try:
        evil = JudgeRequest("a", 0, asked("(x+x+)+y", "x"), ("x" * 60,))
        fine = JudgeRequest("b", 0, asked("x+", "x"), ("xx",))
        began = time.monotonic()
        bad, good = verifier.judge([evil, fine])
        assert isinstance(bad, Verdict) and bad.status is Status.TIMEOUT
        assert "within verifiers.timeout_s = 1 s" in bad.detail
        assert good == Verdict(1.0, True)
        assert time.monotonic() - began < 60
    finally:
        verifier.close()
