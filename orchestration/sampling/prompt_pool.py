"""Keeps the prompts of one environment that were tried, and how often they are solved, for adaptive difficulty. Pure.

The probability p of solving a prompt is estimated by the mean of a Beta distribution: (right + 1) / (right + wrong + 2), over its
responses so far. Counts decay by the iteration, since the policy that gave them is gone: a prompt that was always or never solved
long ago returns to 1/2 and is tried again. A prompt comes again in proportion to p(1 - p) + floor: p(1 - p) is the variance of its
reward and the mean square of its centred advantages ("learnability", arXiv 2408.15099 and 2502.12272).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from orchestration.config.sections import AdaptiveSection


class PromptPool:
    """Holds `counts`: task -> [right, wrong], decayed counts of its scored responses, in the order the tasks were first tried."""

    def __init__(self, settings: AdaptiveSection) -> None:
        self.settings = settings
        self.counts: dict[int, list[float]] = {}

    def solve_rate(self, task: int) -> float:
        """Estimates the probability that a response is right."""
        right, wrong = self.counts[task]
        return (right + 1.0) / (right + wrong + 2.0)

    def weight(self, task: int) -> float:
        """Returns p(1 - p) + floor, written so that always and never solved prompts have the same weight to the bit."""
        right, wrong = self.counts[task]
        return (right + 1.0) * (wrong + 1.0) / (right + wrong + 2.0) ** 2 + self.settings.floor

    def draw(self, rng: random.Random, exclude: Collection[int]) -> int | None:
        """Draws a task to try again, or None for one that is new. exclude: the tasks that the iteration has already."""
        if rng.random() >= self.settings.revisit:
            return None
        open_ = [task for task in self.counts if task not in exclude]
        return rng.choices(open_, [self.weight(task) for task in open_])[0] if open_ else None

    def decay(self) -> None:
        """Ages all counts by one iteration."""
        for counts in self.counts.values():
            counts[:] = [self.settings.decay * n for n in counts]

    def learn(self, task: int, right: int, wrong: int) -> None:
        """Counts scored responses of a task.

        Beyond the size of the pool, the task least likely to come again is removed, of several the oldest.
        """
        if not right + wrong:
            return
        counts = self.counts.setdefault(task, [0.0, 0.0])
        counts[0] += right
        counts[1] += wrong
        if len(self.counts) > self.settings.pool:
            del self.counts[min(self.counts, key=self.weight)]

    def state(self) -> list[list[float]]:
        """Returns [task, right, wrong] of every task, in order."""
        return [[task, *counts] for task, counts in self.counts.items()]

    def load(self, state: Sequence[Sequence[float]]) -> None:
        """Restores what `state` returned."""
        self.counts = {int(task): [float(right), float(wrong)] for task, right, wrong in state}
