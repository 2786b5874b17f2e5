"""Gives a model other weights for a while, and its own back: what engines are compared on before anything is trained."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# What DeepSpeed hangs on parameters has no types.

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

AMPLITUDE, FREQUENCY = 0.02, 0.7  # of what is added to an adapter, by the position of each element


class OtherWeights:
    """Changes the parameters that forward passes use and transfers send; the optimiser's masters stay.

    adapted: the parameters are an adapter's. One that has learnt nothing is zero, and would be zero however it were scaled: it gets
    a pattern in which no two rows are alike, and then its own values back.
    """

    def __init__(self, adapted: bool, rank: int) -> None:
        self._adapted, self._rank = adapted, rank
        self._kept: list[tuple[Tensor, Tensor]] = []  # with the values that each had

    @torch.no_grad()
    def scale(self, parameters: Iterable[nn.Parameter], factor: float) -> None:
        """Multiplies the parameters, until the inverse factor is given.

        A power of two and then its inverse give the same bits back, but in fp16, whose small numbers have fewer bits.
        """
        held = [held for parameter in parameters if parameter.requires_grad for held in _held(parameter, self._rank)]
        if not self._adapted:
            for tensor, _ in held:
                tensor.mul_(factor)
        elif self._kept:
            for tensor, value in self._kept:
                tensor.copy_(value)
            self._kept = []
        else:
            self._kept = [(tensor, tensor.clone()) for tensor, _ in held]
            for tensor, start in held:
                position = torch.arange(start, start + tensor.numel(), device=tensor.device, dtype=torch.float64)
                tensor.add_((AMPLITUDE * torch.cos(FREQUENCY * position)).to(tensor.dtype).view(tensor.shape))


def _held(parameter: nn.Parameter, rank: int) -> list[tuple[Tensor, int]]:
    """Returns what this rank holds of a parameter, each with the position of its first element in the whole."""
    part = getattr(parameter, "ds_tensor", None)  # ZeRO-3: this rank's part; small parameters stay whole beside it
    found = [] if part is None else [(part, rank * part.numel())]
    shares = part is not None and part.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    if not shares and parameter.numel():
        found.append((parameter, 0))
    return found
