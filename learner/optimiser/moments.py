"""Reads and writes ranges of flat optimiser tensors as float32, however they are stored.

Masters, and the moments of torch's AdamW, are float32 tensors. bitsandbytes stores a moment in 8 bits (block-wise dynamic
quantisation, arXiv 2110.02861): of every BLOCK elements of the flattened tensor the largest magnitude, absmax, as float32, and of
each element a code of one byte. An element is `levels[code] * absmax`.

A checkpoint has float32 in both cases, so that any number of ranks, any ZeRO stage and either optimiser reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 256  # elements that share an absmax: bitsandbytes' own, which its kernels are compiled for
PIECE = 2**22  # elements that are converted at a time: of temporary tensors of 8 bytes an element


class Values(Protocol):
    """Names a range of a flat tensor that an optimiser works with."""

    @property
    def length(self) -> int:
        """Returns the number of elements."""
        ...

    @property
    def stored(self) -> Sequence[Tensor]:
        """Returns the tensors that it is stored in, which may hold more than this range."""
        ...

    def read(self) -> Tensor:
        """Returns a float32 copy [length] on the CPU."""
        ...

    def write(self, start: int, values: Tensor) -> None:
        """Replaces the elements from `start` of the range on by float32 values."""
        ...

    def part(self, start: int, end: int) -> Values:
        """Returns a range of the range."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Holds a float32 tensor [length], a view of what the optimiser has."""

    tensor: Tensor

    @property
    def length(self) -> int:
        """Returns the number of elements."""
        return self.tensor.numel()

    @property
    def stored(self) -> Sequence[Tensor]:
        """Returns the view."""
        return (self.tensor,)

    def read(self) -> Tensor:
        """Returns a copy on the CPU."""
        return self.tensor.to("cpu", copy=True)

    def write(self, start: int, values: Tensor) -> None:
        """Copies the values in."""
        self.tensor[start : start + len(values)].copy_(values)

    def part(self, start: int, end: int) -> Plain:
        """Returns a narrower view."""
        return Plain(self.tensor[start:end])


@dataclass(slots=True)
class EightBit:
    """Holds a moment of n elements in 8 bits: codes [n] uint8, absmax [n / BLOCK, rounded up], levels [256] in rising order.

    Quantising what was read gives the same codes and the same absmax, so that a run resumed on the same ranks goes on bit for bit.
    bitsandbytes' own values would not do that: the signed levels end at 1 and at -0.993, so that a block whose largest element is
    negative would come back smaller. Its lowest code is therefore read as -absmax, which that element was. And its CPU kernel does
    not always take the nearest level, where this does.
    """

    codes: Tensor
    absmax: Tensor
    levels: Tensor
    # Float32 values [BLOCK] of blocks that only a part has been written of, by the block's number: a block that was quantised after
    # each part would be rounded several times, the first times for an absmax that is not its own.
    _parts: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    @property
    def length(self) -> int:
        """Returns the number of elements."""
        return self.codes.numel()

    def read(self, start: int, end: int) -> Tensor:
        """Returns the elements from `start` to `end` as float32 on the CPU."""
        out = torch.empty(end - start)
        levels = self.levels.clone()
        if float(levels[0]) < 0:
            levels[0] = -1.0
        for first in range(start - start % BLOCK, end, PIECE):
            last = min(end, first + PIECE)
            scale = self.absmax[first // BLOCK : -(-last // BLOCK)].repeat_interleave(BLOCK)[: last - first]
            values = levels[self.codes[first:last].int()] * scale
            skipped = max(0, start - first)
            out[first + skipped - start : last - start] = values[skipped:]
        return out

    def write(self, start: int, values: Tensor) -> None:
        """Replaces the elements from `start` on. Those of a block that a range does not cover whole stay as they were written."""
        end = start + len(values)
        if start == end:
            return
        for block in {start // BLOCK, (end - 1) // BLOCK}:
            low, high = block * BLOCK, min(self.length, (block + 1) * BLOCK)
            if start <= low and high <= end:
                continue
            if block not in self._parts:
                self._parts[block] = self.read(low, high)
            first, last = max(start, low), min(end, high)
            self._parts[block][first - low : last - low] = values[first - start : last - start]
            self._quantise(low, self._parts[block])
        first, last = -(-start // BLOCK) * BLOCK, end if end == self.length else end - end % BLOCK
        if first < last:
            self._quantise(first, values[first - start : last - start])

    def _quantise(self, start: int, values: Tensor) -> None:
        """Stores whole blocks; the last one of the tensor may be short. start: a multiple of BLOCK."""
        between = (self.levels[1:] + self.levels[:-1]) / 2
        for offset in range(0, len(values), PIECE):
            part = values[offset : offset + PIECE].to(self.codes.device, torch.float32)
            blocks = functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK)
            absmax = blocks.abs().amax(1)
            scaled = blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            codes = torch.bucketize(scaled, between).view(-1)[: len(part)]
            first = start + offset
            self.codes[first : first + len(part)] = codes.to(torch.uint8)
            self.absmax[first // BLOCK : first // BLOCK + len(blocks)] = absmax


@dataclass(frozen=True, slots=True)
class EightBitRange:
    """Names the range from `start` to `end` of a moment in 8 bits. Ranges of one moment share it."""

    moment: EightBit
    start: int
    end: int

    @property
    def length(self) -> int:
        """Returns the number of elements."""
        return self.end - self.start

    @property
    def stored(self) -> Sequence[Tensor]:
        """Returns codes and absmax of the whole moment."""
        return self.moment.codes, self.moment.absmax

    def read(self) -> Tensor:
        """Returns the dequantised elements on the CPU."""
        return self.moment.read(self.start, self.end)

    def write(self, start: int, values: Tensor) -> None:
        """Quantises the values."""
        self.moment.write(self.start + start, values)

    def part(self, start: int, end: int) -> EightBitRange:
        """Returns a range of the same moment."""
        return EightBitRange(self.moment, self.start + start, self.start + end)
