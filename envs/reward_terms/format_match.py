"""The form of responses, scored as if it were a task: whoever has verifiers has the form term of a reward.

A regular expression can take for ever on a response that was written for it. Here it runs where everything else that a response can
stall runs: in a verifier's killable subprocess, with its time limit.
"""

from __future__ import annotations

import re

from envs.types import Observation, Prompt, Split, Verdict


class Form:
    """The task of a prompt is {"pattern": str, "responses": n}. The n-th response is answered with a verdict whose reward is
    the share of the responses that match as a whole, white space around them aside."""

    def __init__(self, seed: int = 0) -> None:
        del seed  # there is nothing to draw

    def size(self, split: Split) -> int | None:
        return 0

    def prompt(self, split: Split, index: int) -> Prompt:
        raise ValueError("Form judges the responses to other environments' prompts and has none of its own")

    def open(self, prompt: Prompt) -> FormSession:
        return FormSession(prompt.task["pattern"], int(prompt.task["responses"]))


class FormSession:
    def __init__(self, pattern: str, responses: int) -> None:
        self._pattern, self._responses = re.compile(pattern), responses
        self._matched: list[bool] = []

    def reply(self, text: str) -> Observation | Verdict:
        self._matched.append(self._pattern.fullmatch(text.strip()) is not None)
        if len(self._matched) < self._responses:
            return Observation(())
        share = sum(self._matched) / len(self._matched)
        return Verdict(share, correct=share == 1.0)
