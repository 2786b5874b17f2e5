"""Adds up what log-softmax, entropy and the ledger's statistics need of each row, one block of the vocabulary after the other.

With q = z - r for a reference r of the row, p = softmax(z) and m = E_p[q], the sums over the vocabulary

    S0 = sum e^q     S1 = sum e^q q     T0 = sum e^2q     T1 = sum e^2q q     T2 = sum e^2q q^2

are all that is needed, since log p + H = q - m whatever r is:

    log p_a = q_a - log S0         H = log S0 - m,  m = S1 / S0
    kappa = sum p^2 (log p + H) = (T1 - m T0) / S0^2
    entropy_grad_sq = sum p^2 (log p + H)^2 = (T2 - 2 m T1 + m^2 T0) / S0^2

The reference follows the mean of what has been added: there the differences above lose nothing, however flat a row is. While a
block has a logit more than FAR above that mean, the logit is the reference, which loses nothing where a row is peaked, and keeps
e^q from overflowing. Sums within a block are float32, those over blocks float64.
"""

# pyright: reportUnknownMemberType=false
# torch leaves vecdot untyped.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FAR = 1.0  # nats above the mean from where on a block's largest logit is the reference


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Holds a row's statistics and what its probabilities are made of anew: p = e^(z - reference) / total.

    All [N] and float32. mean: E_p[z - reference], so that log p + H = z - reference - mean. kappa and entropy_grad_sq are [0]
    where they were not asked for.
    """

    logp: Tensor
    entropy: Tensor
    kappa: Tensor
    entropy_grad_sq: Tensor
    reference: Tensor
    total: Tensor
    mean: Tensor


class Moments:
    """Accumulates the sums of `rows` rows; with `squares` T0, T1 and T2 as well."""

    def __init__(self, squares: bool) -> None:
        self.squares = squares
        self._sums = self._reference = self._target = torch.empty(0)

    def add(self, z: Tensor, targets: Tensor, start: int, spare: tuple[Tensor, Tensor]) -> None:
        """Adds the logits z [rows, C] of the columns from `start` on.

        targets [rows]: columns of the whole vocabulary. spare: two buffers like z, the first of which may be z itself.
        """
        first, local = not len(self._sums), targets - start
        chosen = z.gather(1, local.clamp(0, z.shape[1] - 1)[:, None])[:, 0]
        self._target = chosen if first else torch.where((local >= 0) & (local < z.shape[1]), chosen, self._target)
        top = z.amax(1)
        if first:
            self._reference = top
        else:
            mean = (self._reference + self._sums[1] / self._sums[0]).float()
            self._refer_to(torch.where(top > mean + FAR, top, mean))
        q = torch.sub(z, self._reference[:, None], out=spare[0])
        e = torch.exp(q, out=spare[1])
        eq = q.mul_(e)
        parts = [e.sum(1), eq.sum(1)]
        if self.squares:
            parts += [torch.linalg.vecdot(e, e), torch.linalg.vecdot(e, eq), torch.linalg.vecdot(eq, eq)]
        sums = torch.stack(parts).double()
        self._sums = sums if first else self._sums + sums

    def _refer_to(self, reference: Tensor) -> None:
        """Moves the reference: the sums become those about the new one."""
        by = (reference.double() - self._reference).clamp(
            min=-300.0, max=300.0
        )  # beyond, nothing stays of one of the two
        self._reference = reference
        s0, s1, *t = self._sums
        moved = [s0, s1 - by * s0]
        if t:
            moved += [t[0], t[1] - by * t[0], t[2] - 2 * by * t[1] + by * by * t[0]]
        self._sums = torch.stack(moved)
        once = torch.exp(-by)
        self._sums[:2] *= once
        self._sums[2:] *= once * once

    def statistics(self) -> RowStatistics:
        s0, s1, *t = self._sums
        mean, log_total = s1 / s0, s0.log()
        kappa = entropy_grad_sq = self._reference.new_zeros(0)
        if t:
            t0, t1, t2 = self._sums[2:] / (s0 * s0)
            exact = t1 - mean * t0
            kappa, entropy_grad_sq = exact.float(), (t2 - mean * (t1 + exact)).clamp(min=0.0).float()
        return RowStatistics(
            logp=(self._target - self._reference - log_total).float(),
            entropy=(log_total - mean).clamp(min=0.0).float(),
            kappa=kappa,
            entropy_grad_sq=entropy_grad_sq,
            reference=self._reference,
            total=s0.float(),
            mean=mean.float(),
        )
