"""Which prompt comes next. A mixture of environments by weight; no torch.

Deterministic and resumable: the state is how many prompts each environment has given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from envs.base import Environment
from envs.types import Prompt, Split


class Mixture:
    """Prompts in the proportion of the weights, as even as whole numbers allow (the environment furthest behind its share
    is next). A finite training split is walked in a new order every pass; a prompt's index goes on counting over the passes
    (splits wrap around), so that prompt keys, and with them request ids and seeds, are unique over a run."""

    def __init__(self, environments: Sequence[Environment], weights: Sequence[float], seed: int) -> None:
        self.environments, self.seed = list(environments), seed
        total = sum(weights)
        self.shares = [w / total for w in weights]
        self.given = [0] * len(self.environments)
        self._orders: dict[tuple[int, int], list[int]] = {}

    def next(self, count: int) -> list[tuple[int, Prompt]]:
        """(environment index, prompt) of the next `count` training prompts."""
        return [self._next() for _ in range(count)]

    def _next(self) -> tuple[int, Prompt]:
        total = sum(self.given) + 1
        i = max(range(len(self.given)), key=lambda k: (self.shares[k] * total - self.given[k], -k))
        position = self.given[i]
        self.given[i] += 1
        return i, self.environments[i].prompt("train", self._index(i, position))

    def _index(self, i: int, position: int) -> int:
        size = self.environments[i].size("train")
        if size is None:
            return position
        epoch, offset = divmod(position, size)
        if (i, epoch) not in self._orders:
            order = list(range(size))
            random.Random(f"{self.seed}/{i}/{epoch}").shuffle(order)
            self._orders = {key: v for key, v in self._orders.items() if key[0] != i} | {(i, epoch): order}
        return epoch * size + self._orders[i, epoch][offset]

    def held_out(self, split: Split, count: int) -> list[tuple[int, Prompt]]:
        """The first `count` prompts of a split, of every environment; the same at every evaluation."""
        out = []
        for i, env in enumerate(self.environments):
            size = env.size(split)
            out += [(i, env.prompt(split, k)) for k in range(count if size is None else min(count, size))]
        return out

    def state_dict(self) -> dict[str, list[int]]:
        return {"given": list(self.given)}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self.given = list(state["given"])
