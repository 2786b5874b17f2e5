"""Softmax tables in float64: S positions of V logits each.

The batch has every action of every position once, weighted by its probability, so that expectations are exact sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from learner.entropy import build
from learner.objective import token_loss
from learner.settings import ObjectiveSettings
from learner.types import LossData, Shaping, TokenStats

# Every method in the forms it has.
METHODS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in build.METHODS},
    "repo_r, raw": {"kind": "repo_r", "centred": False},
    "repo_r, positive": {"kind": "repo_r", "part": "positive"},
    "repo, raw": {"kind": "repo", "centred": False},
    "clip_cov, wide": {"kind": "clip_cov", "low": -1.0, "high": 9.0},
    "kl_cov, wide": {"kind": "kl_cov", "share": 0.4},
    "kl_cov, kl": {"kind": "kl_cov", "share": 0.4, "form": "kl", "clipped": True},
}
SURROGATES = ("policy_gradient", "ppo", "cispo", "gspo")


def make_method(name: str, **more: Any) -> Any:
    value = {**METHODS[name], **more}
    return build.METHODS[value["kind"]](build.parse(build.METHODS, value, "method"))


@dataclass(frozen=True, slots=True)
class Table:
    """Holds one table. All tensors but `share` are [S, V] float64."""

    logits: Tensor
    old: Tensor  # log-probs of the policy that sampled
    advantages: Tensor
    share: Tensor  # [S] how often a position comes up
    uniform: Tensor

    @classmethod
    def random(cls, seed: int, moved: float = 0.0) -> Table:
        """Returns a random table; `moved` is how far its logits are from those of the policy that sampled."""
        generator = torch.Generator().manual_seed(seed)
        s, v = (int(torch.randint(2, 6, (1,), generator=generator)) for _ in range(2))
        logits, direction, advantages = 1.5 * torch.randn(3, s, v, generator=generator, dtype=torch.float64)
        share = torch.rand(s, generator=generator, dtype=torch.float64) + 0.1
        uniform = torch.rand(s, v, generator=generator, dtype=torch.float64)
        old = (logits + moved * direction).log_softmax(-1)
        return cls(logits, old, advantages, share / share.sum(), uniform)

    @property
    def weight(self) -> Tensor:
        """Returns the probability that each action was sampled. [S V]"""
        return (self.share[:, None] * self.old.exp()).flatten()

    def stats(self) -> TokenStats:
        """Returns the statistics the learner would measure, computed from their definitions. [S V]"""
        log_p = self.logits.log_softmax(-1)
        p, entropy = log_p.exp(), entropies(self.logits)
        pull = p * (log_p + entropy[:, None])
        rows = (x[:, None].expand_as(p) for x in (entropy, (p * pull).sum(-1), pull.square().sum(-1)))
        step = self.share[:, None] * p  # of a surrogate without a clip: how often it comes up times its ratio
        columns = (log_p, *rows, self.old, self.advantages, self.uniform, torch.zeros_like(p).long(), step)
        return TokenStats(*(x.flatten() for x in columns))

    def data(self, **more: Tensor) -> LossData:
        """Returns the loss data, with every action as a trajectory of its own."""
        n = self.logits.numel()
        return LossData(self.old.flatten(), self.advantages.flatten(), self.weight, torch.arange(n), **more)

    def loss(self, logits: Tensor, shaping: Shaping, objective: ObjectiveSettings, **more: Tensor) -> Any:
        """Returns the LossTerms of the table at these logits."""
        logp = logits.log_softmax(-1)
        entropy = entropies(logits)[:, None].expand_as(logp).flatten()
        return token_loss(logp.flatten(), entropy, self.data(**more), shaping, objective)

    def descent(self, shaping: Shaping, objective: ObjectiveSettings, **more: Tensor) -> Tensor:
        """Returns minus the gradient of the loss with respect to the logits. [S, V]"""
        z = self.logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(z, shaping, objective, **more).loss, z)
        return -gradient


def entropies(logits: Tensor) -> Tensor:
    """Returns the entropy of every position. [S, V] -> [S]"""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def change_of_entropy(logits: Tensor, direction: Tensor) -> Tensor:
    """Returns the derivative of every position's entropy along a direction in the logits. [S]"""
    z = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entropies(z).sum(), z)
    return (gradient * direction).sum(-1)


TABLES = st.integers(0, 10_000).map(Table.random)
MOVED = st.integers(0, 10_000).map(lambda seed: Table.random(seed, 0.4))
