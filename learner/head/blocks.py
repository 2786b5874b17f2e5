"""Computes the head's statistics and gradients block by block of rows x vocabulary: on any device, made for CPUs.

A block of logits stays in the processor's cache from the product that makes it until the products that use it up, so what is done
to its elements costs little beside the products. Backward takes one product more than plain autograd, since it makes the logits
anew, those aside that forward kept. The gradient of the loss in the logits cannot be taken in forward: it depends on those of
log-prob and entropy, which are not known before the loss is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from learner.head.logits import Head
from learner.head.moments import Moments, RowStatistics

BLOCK = 2**20  # logits of a block: 4 MB, of a processor's cache
DEVICE_BLOCK = 2**26  # on other devices
KEEP = 2**26  # logits that forward keeps for backward: 256 MB


@dataclass(frozen=True, slots=True)
class LogitGradient:
    """Holds the loss's gradient in h W^T, the soft cap aside: at_target onehot + e^q (constant + linear q).

    q = z - reference. All [N] and float32; linear is None where it is 0 in all rows.
    """

    reference: Tensor
    at_target: Tensor
    constant: Tensor
    linear: Tensor | None

    def of(self, rows: slice) -> LogitGradient:
        linear = None if self.linear is None else self.linear[rows]
        return LogitGradient(self.reference[rows], self.at_target[rows], self.constant[rows], linear)

    def at(self, z: Tensor, spare: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the gradient in the logits z, what is added at the targets aside, in the first of two buffers like z.

        That buffer may be z itself.
        """
        q = torch.sub(z, self.reference[:, None], out=spare[0])
        if self.linear is None:
            return q.exp_().mul_(self.constant[:, None])
        e = torch.exp(q, out=spare[1])
        return q.mul_(self.linear[:, None]).add_(self.constant[:, None]).mul_(e)

    def add_at_targets(self, dz: Tensor, columns: Tensor) -> None:
        """Adds what is added at the targets. columns [N]: of this block; those outside [0, C) are of other blocks."""
        inside = (columns >= 0) & (columns < dz.shape[1])
        dz.scatter_add_(1, columns.clamp(0, dz.shape[1] - 1)[:, None], (self.at_target * inside)[:, None])


def spans(length: int, step: int) -> Iterator[slice]:
    yield from (slice(start, min(start + step, length)) for start in range(0, length, step))


def block_shape(rows: int, head: Head, chunk: int) -> tuple[int, int]:
    """Returns (rows, columns) of a block: at most `chunk` rows, and as many columns as make it BLOCK logits."""
    height = max(1, min(rows, chunk))
    block = BLOCK if head.weight.device.type == "cpu" else DEVICE_BLOCK
    return height, max(1, min(len(head.weight), block // height))


def kept_columns(rows: int, vocabulary: int, width: int) -> int:
    """Returns of how many of the first columns forward keeps the logits: whole blocks."""
    return min(vocabulary, KEEP // (rows * width) * width)


def _logits(hidden: Tensor, weight: Tensor, head: Head, columns: slice, out: Tensor) -> Tensor:
    """Makes the logits of the columns in `out` [n, C]. hidden [n, D], weight [C, D]: both float32."""
    if head.bias is None:
        torch.mm(hidden, weight.T, out=out)
    else:
        torch.addmm(head.bias[columns].float(), hidden, weight.T, out=out)
    return head.finish_(out)


class _Buffers:
    """Lends space for blocks of logits; those of the first columns are in what is kept for backward."""

    def __init__(self, height: int, width: int, kept: Tensor) -> None:
        self.kept = kept  # [N, C]: of the rows of a block its columns, block after block
        self._spare = torch.empty(2, height * width, device=kept.device)

    def keeps(self, columns: slice) -> bool:
        return columns.stop <= self.kept.shape[1]

    def lend(self, rows: slice, columns: slice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns (where the logits of a block are, two buffers of the same shape): the first of the two, where none is kept."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        first, second = (buffer[: shape[0] * shape[1]].view(shape) for buffer in self._spare)
        if not self.keeps(columns):
            return first, (first, second)
        return self.kept[rows].view(-1)[shape[0] * columns.start :][: shape[0] * shape[1]].view(shape), (first, second)


def forward(
    hidden: Tensor, head: Head, targets: Tensor, chunk: int, squares: bool, keep: bool
) -> tuple[RowStatistics, Tensor]:
    """Takes hidden [N, D] and targets [N], N > 0, to (their statistics, logits that backward will not have to make).

    Beside the logits that are kept, with `keep` KEEP of them, BLOCK of at most `chunk` rows exist at once.
    """
    count, vocabulary = len(hidden), len(head.weight)
    height, width = block_shape(count, head, chunk)
    kept = torch.empty(count, kept_columns(count, vocabulary, width) if keep else 0, device=hidden.device)
    buffers = _Buffers(height, width, kept)
    found: list[RowStatistics] = []
    for rows in spans(count, height):
        h, moments = hidden[rows].float(), Moments(squares)
        for columns in spans(vocabulary, width):
            place, spare = buffers.lend(rows, columns)
            z = _logits(h, head.weight[columns].float(), head, columns, place)
            moments.add(z, targets[rows], columns.start, spare)
        found.append(moments.statistics())
    names = (field.name for field in fields(RowStatistics))
    joined = RowStatistics(**{name: torch.cat([getattr(part, name) for part in found]) for name in names})
    return joined, kept


def backward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    gradient: LogitGradient,
    kept: Tensor,
    chunk: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of hidden, weight and bias, those that are wanted."""
    weight, bias = head.weight, head.bias
    height, width = block_shape(len(hidden), head, chunk)
    buffers = _Buffers(height, width, kept)
    hidden32 = hidden.float()
    grad_hidden = torch.zeros_like(hidden32) if wanted[0] else None
    grad_weight = torch.empty_like(weight) if wanted[1] else None
    grad_bias = torch.zeros(len(weight), device=weight.device) if wanted[2] else None
    for columns in spans(len(weight), width):
        w = weight[columns].float()
        of_weight = None if grad_weight is None else grad_weight[columns]
        total = torch.empty_like(w) if of_weight is not None and of_weight.dtype != torch.float32 else of_weight
        for rows in spans(len(hidden), height):
            h, part = hidden32[rows], gradient.of(rows)
            z, spare = buffers.lend(rows, columns)
            if not buffers.keeps(columns):
                _logits(h, w, head, columns, z)
            cap_slope = head.cap_slope(z)
            dz = part.at(z, spare)
            part.add_at_targets(dz, targets[rows] - columns.start)
            if cap_slope is not None:
                dz.mul_(cap_slope)
            if grad_hidden is not None:
                grad_hidden[rows].addmm_(dz, w)
            if total is not None:
                total.addmm_(dz.T, h, beta=0.0 if rows.start == 0 else 1.0)
            if grad_bias is not None:
                grad_bias[columns] += dz.sum(0)
        if of_weight is not None and total is not None and total is not of_weight:
            of_weight.copy_(total)
    return (
        None if grad_hidden is None else grad_hidden.to(hidden.dtype),
        grad_weight,
        None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
    )
