"""Provides one-digit sums as raw completions after two examples, for a pretrained model: the first line of a response counts."""

from __future__ import annotations

from dataclasses import replace

from envs.builtin.arithmetic import Arithmetic
from envs.tasks import OneReply
from envs.types import Message, Prompt, Split, Verdict

EXAMPLES = "5+2=7\n4+4=8\n"


class Sums(Arithmetic):
    """Asks for the result of sums such as "3+4=", after two that are solved."""

    def prompt(self, split: Split, index: int) -> Prompt:
        prompt = super().prompt(split, index)
        return replace(prompt, messages=(Message("user", EXAMPLES + prompt.messages[0].content),))

    def open(self, prompt: Prompt) -> OneReply:
        answer = prompt.task["answer"]

        def grade(text: str) -> Verdict:
            line = text.strip().partition("\n")[0].strip()
            return Verdict(1.0, True, answer) if line == answer else Verdict(0.0, detail=f"not {answer}")

        return OneReply(grade, limit=100)
