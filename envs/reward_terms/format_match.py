"""Scores the format of responses against a regular expression, as an environment of its own.

A regular expression can take exponential time on a response crafted for it. As an environment it runs where everything runs
that a response can stall: in a verifier's killable subprocess, with the verifier's time limit.
"""

from __future__ import annotations

import re

from envs.types import Observation, Prompt, Split, Verdict


class Form:
    """Scores responses of other environments' prompts by the share that match a regular expression.

    The task of a prompt is {"pattern": str, "responses": n}. The n-th response gets the verdict, whose reward is the share of
    the n responses that match as a whole, surrounding white space aside.
    """

    def __init__(self, seed: int = 0) -> None:
        del seed  # nothing is random here

    def size(self, split: Split) -> int | None:
        """Returns 0: this environment has no prompts of its own."""
        return 0

    def prompt(self, split: Split, index: int) -> Prompt:
        raise ValueError("Form scores responses to other environments' prompts and has no prompts of its own")

    def open(self, prompt: Prompt) -> FormSession:
        return FormSession(prompt.task["pattern"], int(prompt.task["responses"]))


class FormSession:
    """Collects `responses` responses of one trajectory, then returns the share that match."""

    def __init__(self, pattern: str, responses: int) -> None:
        self._pattern, self._responses = re.compile(pattern), responses
        self._matched: list[bool] = []

    def reply(self, text: str) -> Observation | Verdict:
        self._matched.append(self._pattern.fullmatch(text.strip()) is not None)
        if len(self._matched) < self._responses:
            return Observation(())
        share = sum(self._matched) / len(self._matched)
        return Verdict(share, correct=share == 1.0)
