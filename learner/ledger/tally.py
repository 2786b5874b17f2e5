"""Adds up sums, maxima and values over the micro-batches of a rank, to be reduced over all ranks."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch leaves the type of Tensor.tolist open.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor


class Tally:
    """Collects sums, maxima and values of one rank.

    Keys are the same on every rank, so that a few collectives reduce all of them. What is added stays on its device until
    somebody reads it: dozens of sums a micro-batch would otherwise each wait for the GPU.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}  # float64
        self._peaks: dict[str, Tensor | float] = {}
        self.values: dict[str, list[Tensor]] = {}  # for quantiles: float32 [n] each

    @property
    def sums(self) -> dict[str, float]:
        return _settled(self._sums)

    @property
    def peaks(self) -> dict[str, float]:
        return _settled(self._peaks)

    def add(self, key: str, value: Tensor | float) -> None:
        value = value.sum(dtype=torch.float64) if isinstance(value, Tensor) else value
        self._sums[key] = self._sums.get(key, 0.0) + value

    def add_by(self, key: str, member: Tensor, names: Sequence[str], value: Tensor) -> None:
        """Adds the sum of `value` [N] for every name under key/NAME; member float64 [names, N] is 1 where a token is the name's.

        A product, not a scatter, whose order of additions a GPU does not fix: entropies have to be the same after a resume.
        """
        for name, total in zip(names, (member @ value.double()).unbind(), strict=True):
            self.add(f"{key}/{name}", total)

    def peak(self, key: str, value: Tensor) -> None:
        """Keeps the largest value; nan, if there is one, stays the largest."""
        if len(value):
            largest = value.max().double()
            before = torch.as_tensor(self._peaks.get(key, -math.inf), dtype=torch.float64, device=largest.device)
            self._peaks[key] = torch.maximum(before, largest)
        else:
            self._peaks.setdefault(key, -math.inf)

    def keep(self, key: str, value: Tensor) -> None:
        self.values.setdefault(key, []).append(value.detach().float())

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Returns (sums, peaks) as float64 vectors on the CPU, keys in order: reduce them with SUM and MAX, then `replace`."""
        return _vector(self.sums), _vector(self.peaks)

    def replace(self, sums: Tensor, peaks: Tensor) -> None:
        self._sums = dict(zip(sorted(self._sums), sums.tolist(), strict=True))
        self._peaks = dict(zip(sorted(self._peaks), peaks.tolist(), strict=True))

    def mean(self, key: str, over: str) -> float:
        return self.sums[key] / self.sums[over] if self.sums[over] else math.nan

    def quantiles(self, key: str, percents: Sequence[float]) -> dict[str, float]:
        """Returns {"KEY/q99.9": value, ...} of the kept values; nothing where there are none."""
        values = torch.cat(self.values[key])
        if not len(values):
            return {}
        ordered = values.sort().values
        # The nearest rank, not an interpolation: exact whatever the order and the division of the tokens.
        ranks = [min(len(ordered) - 1, math.ceil(p / 100 * len(ordered)) - 1) for p in percents]
        return {f"{key}/q{p:g}": float(ordered[max(0, r)]) for p, r in zip(percents, ranks, strict=True)}


def _vector(numbers: dict[str, float]) -> Tensor:
    return torch.tensor([numbers[key] for key in sorted(numbers)], dtype=torch.float64)


def _settled(numbers: dict[str, Tensor | float]) -> dict[str, float]:
    """The same dict with every number on the host: one transfer for all of them."""
    waiting = [key for key, value in numbers.items() if isinstance(value, Tensor)]
    if waiting:
        numbers.update(zip(waiting, torch.stack([cast(Tensor, numbers[key]) for key in waiting]).tolist(), strict=True))
    return cast("dict[str, float]", numbers)
