"""Provides ReplyLengths: replies whose length is drawn from a mixture, for benchmarks of throughput.

A reply is a run of letters of one class, and every class ends a reply with a probability of its own after each letter. A class is
therefore a geometric distribution of lengths and the whole a hyperexponential one: heavy-tailed where the means of the classes
differ much. What ends a reply follows from the letter before it alone, so that a tiny model learns it in a minute, and samples it
at temperature 1 with any engine. The reward is the share of letters that are the first of their class: cheap, and never constant.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from envs.tasks import OneReply, check_index, in_split, task_random
from envs.types import Message, Prompt, Split, Verdict

LETTERS = 4  # of each class
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class ReplyLengths:
    """Asks for nothing in particular; a reply's length is what a model learnt from the demonstrations.

    shares  how often each class is drawn; they add up to 1
    means   letters in a reply of each class, on average and before the limit
    limit   letters in the longest demonstration
    """

    def __init__(self, seed: int = 0, *, shares: Sequence[float], means: Sequence[float], limit: int) -> None:
        self._seed, self._shares, self._means, self._limit = seed, tuple(shares), tuple(means), limit

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        check_index(split, index)
        rng = task_random(self._seed, split, index)
        while True:
            text = f"{rng.randrange(10**6):06d}"
            if in_split(text, split):
                return Prompt("reply_lengths", split, index, (Message("user", text),), {})

    def open(self, prompt: Prompt) -> OneReply:
        return OneReply(score)

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns a reply of one class, cut at the limit."""
        (drawn,) = rng.choices(range(len(self._shares)), self._shares)
        own = ALPHABET[LETTERS * drawn : LETTERS * (drawn + 1)]
        letters = [rng.choice(own)]
        while len(letters) < self._limit and rng.random() > 1 / self._means[drawn]:
            letters.append(rng.choice(own))
        return "".join(letters)

    def alphabet(self) -> Iterable[str]:
        return sorted("0123456789" + ALPHABET[: LETTERS * len(self._shares)])


def score(text: str) -> Verdict:
    """Returns the share of letters that are the first of their class as the reward."""
    first = sum(text.count(ALPHABET[i]) for i in range(0, len(ALPHABET), LETTERS))
    return Verdict(first / len(text) if text else 0.0, detail="share of first letters")
