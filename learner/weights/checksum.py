"""Computes the checksum that proves a transfer: byte for byte where bytes travel, page by page where memory is shared."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# torch leaves the type of Tensor.tolist open.

from __future__ import annotations

import numpy as np
import torch

_STRIPE = (
    2**14
)  # 8-byte words weighted by one multiplier vector: 128 KiB, in cache and below torch's threading threshold
_PAGE, _LINE = 2**9, 2**3  # 8-byte words of a page of memory, and of the part of it that is looked at
_MASK = 2**64 - 1


def _mix(x: int) -> int:
    """splitmix64's finaliser: a bijection on 64-bit integers whose every output bit depends on every input bit."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class Checksum:
    """Computes an order-dependent 64-bit checksum of byte buffers, equal on CPU and GPU (arithmetic modulo 2^64).

    A stripe of 8-byte words w becomes sum(w[i] * m[i]); every m[i] is odd, hence invertible modulo 2^64, so a change
    to a single word always changes the sum. Stripe sums are chained through a bijection, so their order counts too.
    It guards against corruption and mix-ups, not against an adversary.

    pages: of every page of 4 KiB only a cache line is added. Where an engine reads the learner's own memory nothing can be
    corrupted on the way; what can be wrong is which memory it looks at, and when, and either shows in every page. To add up all of
    it took longer than to write it.
    """

    def __init__(self, device: torch.device | str = "cpu", pages: bool = False) -> None:
        self._pages = pages
        index = torch.arange(_STRIPE, dtype=torch.int64, device=device)
        multipliers = index * -7046029254386353131  # 2^64 / golden ratio, as a signed integer: spreads over 64 bits
        self._multipliers = (multipliers ^ (multipliers >> 29)) | 1
        self.value = 0

    def update(self, data: torch.Tensor) -> None:
        """Adds a 1-d uint8 tensor whose length is a multiple of 16."""
        words = data.view(torch.int64)
        if self._pages:
            whole = len(words) - len(words) % _PAGE
            words = torch.cat([words[:whole].view(-1, _PAGE)[:, :_LINE].flatten(), words[whole:]])
        full = len(words) - len(words) % _STRIPE
        for total in [*self._stripes(words[:full]), *self._stripes(words[full:])]:
            self.value = _mix(self.value ^ (total & _MASK))
        self.value = _mix(self.value ^ len(words))  # and the division into buckets

    def _stripes(self, words: torch.Tensor) -> list[int]:
        if not len(words):
            return []
        width = min(len(words), _STRIPE)
        rows, multipliers = words.view(-1, width), self._multipliers[:width]
        if rows.device.type != "cpu":  # one kernel and one copy to the host
            sums: list[int] = (rows * multipliers).sum(dim=1).tolist()
            return sums
        # numpy's loop holds the sum in a register: twice as fast as torch's product and sum, and other threads run meanwhile
        return np.einsum("ij,j->i", rows.numpy(), multipliers.numpy()).tolist()
