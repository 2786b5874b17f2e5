"""What tasks of one response share: the session, the split and the random source."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from envs.types import Split, Verdict

MAX_RESPONSE = 20_000  # characters; a longer response is wrong without being read
EVAL_SHARE = 0.2  # of all tasks; see held_out


@dataclass(frozen=True, slots=True)
class OneReply:
    """A session that ends with the first response. `judge` must be pure and must give a verdict for any text.

    limit: the longest response scored, in characters. A longer one earns 0.0: no response costs more than a bounded time.
    """

    judge: Callable[[str], Verdict]
    limit: int = MAX_RESPONSE

    def reply(self, text: str) -> Verdict:
        if len(text) > self.limit:
            return Verdict(0.0, detail=f"the response has {len(text)} characters, at most {self.limit} are scored")
        return self.judge(text)


def stable_hash(text: str) -> int:
    """64 bits, the same in every process (`hash()` is salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def held_out(task: str) -> bool:
    """Whether the task belongs to the eval split: 20 % of all tasks.

    The text of the task alone decides, neither the seed nor a range: what one stage of a curriculum holds out, no other
    stage trains on.
    """
    return stable_hash(task) % 1000 < 1000 * EVAL_SHARE


def in_split(task: str, split: Split) -> bool:
    return held_out(task) == (split == "eval")


def task_random(seed: int, split: Split, index: int) -> random.Random:
    """The random source of one prompt: a pure function of its three arguments, the same on every machine."""
    return random.Random(f"{seed}/{split}/{index}")


def check_index(split: str, index: int) -> None:
    """ValueError unless (split, index) can name a prompt."""
    if split not in ("train", "eval"):
        raise ValueError(f"the split is {split!r}, it must be 'train' or 'eval'")
    if index < 0:
        raise ValueError(f"the prompt index is {index}, it must be 0 or more")
