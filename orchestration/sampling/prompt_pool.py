"""Adaptive difficulty: which prompts come again. One environment's prompts that were tried, and how often they are solved. Pure.

The probability p of solving a prompt is estimated by the mean of a Beta distribution: (right + 1) / (right + wrong + 2), over its
responses so far. Counts decay by the iteration, since the policy they were of is gone: what was solved or hopeless long ago drifts
back to 1/2 and is tried again. A prompt comes again in proportion to p(1 - p) + floor: p(1 - p) is the variance of its reward and
the mean square of its centred advantages ("learnability", arXiv 2408.15099 and 2502.12272).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from orchestration.config.sections import AdaptiveSection


class Tried:
    """`known`: task -> [right, wrong], decayed counts of its scored responses, in the order they were first tried."""

    def __init__(self, settings: AdaptiveSection) -> None:
        self.settings = settings
        self.known: dict[int, list[float]] = {}

    def solved(self, task: int) -> float:
        """The estimated probability that a response is right."""
        right, wrong = self.known[task]
        return (right + 1.0) / (right + wrong + 2.0)

    def weight(self, task: int) -> float:
        """p(1 - p) + floor, so written that solved and hopeless prompts have the same, to the bit."""
        right, wrong = self.known[task]
        return (right + 1.0) * (wrong + 1.0) / (right + wrong + 2.0) ** 2 + self.settings.floor

    def again(self, rng: random.Random, drawn: Collection[int]) -> int | None:
        """A task to try again, or None for one that is new. drawn: what the iteration has already."""
        if rng.random() >= self.settings.revisit:
            return None
        open_ = [task for task in self.known if task not in drawn]
        return rng.choices(open_, [self.weight(task) for task in open_])[0] if open_ else None

    def age(self) -> None:
        """An iteration has passed."""
        for counts in self.known.values():
            counts[:] = [self.settings.decay * n for n in counts]

    def learn(self, task: int, right: int, wrong: int) -> None:
        """Responses were scored. Beyond the size of the pool what is least likely to come again is forgotten, of several the
        oldest."""
        if not right + wrong:
            return
        counts = self.known.setdefault(task, [0.0, 0.0])
        counts[0] += right
        counts[1] += wrong
        if len(self.known) > self.settings.pool:
            del self.known[min(self.known, key=self.weight)]

    def state(self) -> list[list[float]]:
        return [[task, *counts] for task, counts in self.known.items()]

    def load(self, state: Sequence[Sequence[float]]) -> None:
        self.known = {int(task): [float(right), float(wrong)] for task, right, wrong in state}
