"""Plays the toolbox without a model: texts in the place of responses, and single calls."""

from __future__ import annotations

from typing import Any

from envs.builtin.toolbox.environment import Toolbox
from envs.builtin.toolbox.world import CallError, World, parse, run
from envs.types import Observation, Prompt, Verdict


def responses(prompt: Prompt, *texts: str, **params: Any) -> Verdict:
    """Plays an episode of these texts and returns its verdict, which only the last of them may bring."""
    session = Toolbox(**params).open(prompt)
    answers = [session.reply(text) for text in texts]
    assert all(isinstance(answer, Observation) for answer in answers[:-1]), answers
    assert isinstance(answers[-1], Verdict), answers
    return answers[-1]


def outcome(world: World, text: str) -> str:
    """Returns what a call answers, or its error."""
    try:
        return run(world, parse(text))
    except CallError as error:
        return f"error: {error}"
