"""Defines the output head of a language model: the weight and what is done to its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Head:
    """Holds what makes logits of hidden states: z = cap(scale (h W^T + bias)) / temperature.

    weight [V, D], bias [V] or None. cap(x) = softcap tanh(x / softcap), nothing where softcap is None. fp32: the product is
    float32, whatever the types of hidden and weight; without it, it is rounded to the weight's type, as an engine does.
    """

    weight: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    fp32: bool = False

    @property
    def rounds(self) -> bool:
        """Returns whether the product is rounded to a type of less than 32 bits."""
        return not self.fp32 and self.weight.dtype != torch.float32

    @property
    def slope(self) -> float:
        """Returns dz / d(h W^T) where the soft cap is flat."""
        return self.scale / self.temperature

    def finish_(self, product: Tensor) -> Tensor:
        """Makes logits of a float32 product (bias included), in place."""
        if self.rounds:
            product.copy_(product.to(self.weight.dtype))
        if self.softcap is not None:
            return product.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)
        return product if self.slope == 1.0 else product.mul_(self.slope)

    def cap_slope(self, z: Tensor) -> Tensor | None:
        """Returns cap'(x) = 1 - tanh^2(x / softcap) at the logits z; None without a soft cap."""
        if self.softcap is None:
            return None
        return z.square().mul_(-((self.temperature / self.softcap) ** 2)).add_(1.0)
