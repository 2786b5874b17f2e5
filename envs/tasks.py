"""Provides what most environments share: a session of one response, the train/eval split and the random source of a prompt."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from envs.types import Split, Verdict

MAX_RESPONSE = 20_000  # characters; a longer response is wrong and is not parsed
EVAL_SHARE = 0.2  # of all tasks; see held_out


@dataclass(frozen=True, slots=True)
class OneReply:
    """Scores the first response and ends there: the session of an environment of one response.

    score  maps the response to its verdict; pure, and defined for any text
    limit  length in characters of the longest response that is scored. A longer one earns 0.0, so that scoring takes bounded time
    """

    score: Callable[[str], Verdict]
    limit: int = MAX_RESPONSE

    def reply(self, text: str) -> Verdict:
        """Returns the verdict on the response."""
        if len(text) > self.limit:
            return Verdict(0.0, detail=f"the response has {len(text)} characters, at most {self.limit} are scored")
        return self.score(text)


def stable_hash(text: str) -> int:
    """Returns a 64-bit hash of the text that is the same in every process, unlike `hash()`, which is salted."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def held_out(task: str) -> bool:
    """Returns whether the task belongs to the eval split, as 20 % of all tasks do.

    Only the text of the task decides, not the seed or a parameter of the environment: a task that one stage of a curriculum
    holds out is not trained on in any other stage.
    """
    return stable_hash(task) % 1000 < 1000 * EVAL_SHARE


def in_split(task: str, split: Split) -> bool:
    """Returns whether the task belongs to the given split, see `held_out`."""
    return held_out(task) == (split == "eval")


def task_random(seed: int, split: Split, index: int) -> random.Random:
    """Returns the random generator of one prompt: a pure function of the three arguments, the same on every machine."""
    return random.Random(f"{seed}/{split}/{index}")


def check_index(split: str, index: int) -> None:
    """Raises ValueError unless the split is "train" or "eval" and the index is 0 or more."""
    if split not in ("train", "eval"):
        raise ValueError(f"the split is {split!r}, it must be 'train' or 'eval'")
    if index < 0:
        raise ValueError(f"the prompt index is {index}, it must be 0 or more")
