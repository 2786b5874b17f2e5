"""The two protocols an environment is made of.

An environment is a pure function of its parameters: prompt(split, index) never depends on what was asked before, so a run
can be resumed at any position and every process can build its own copy. A session judges one trajectory and is then thrown
away: there is no reset, hence no state to leak.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from envs.types import Observation, Prompt, Split, Verdict


class Session(Protocol):
    """One trajectory. Deterministic given its replies: a verifier that was restarted replays them."""

    def reply(self, text: str) -> Observation | Verdict:
        """Take the model's reply; answer with an observation (the trajectory goes on) or a verdict (it is over)."""
        ...


class Environment(Protocol):
    def size(self, split: Split) -> int | None:
        """How many prompts the split has; None: generated without end."""
        ...

    def prompt(self, split: Split, index: int) -> Prompt:
        """The index-th prompt of a split, index >= 0 (a finite split wraps around). The splits share no task."""
        ...

    def open(self, prompt: Prompt) -> Session: ...


@runtime_checkable
class Demonstrates(Protocol):
    """What the warm start asks of an environment, beside the protocol above."""

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """A reply that earns full reward, drawn uniformly from ALL correct ones where they can be listed."""
        ...

    def alphabet(self) -> Iterable[str]:
        """Every character that a prompt or a demonstration can contain: the character-level tokenizer's vocabulary."""
        ...
