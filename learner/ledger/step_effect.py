"""Predicts and measures what an iteration's optimiser steps do to entropy, on some of its own responses.

    predicted   g . (theta' - theta)    g = d(mean entropy of the responses' tokens) / d theta, before the first step
    realised    H(theta') - H(theta)    of the same tokens

theta' - theta is the optimiser's own step: momentum, Adam's preconditioner, gradient clipping, weight decay, the rounding of
half-precision weights and all updates of the iteration are in it. Both are of the same tokens, so that the prompts and responses
drawn add no noise, and both leave out that the next responses visit other states: that, and the noise, is in
`entropy/realised_dh`, between the fresh responses of two iterations.

It costs a forward and a backward pass before the updates and a forward pass after them, of these responses alone, and in memory
one set of gradients while they are measured; then a rank keeps its share of gradient and weights until the updates are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from learner.types import MicroBatch

# A micro-batch -> (log-prob, entropy) of its action tokens, float32 [N] each.
ForwardFn = Callable[[MicroBatch], tuple[Tensor, Tensor]]
# A micro-batch and its log-probs -> the weights of its tokens' states [N].
WeighFn = Callable[[MicroBatch, Tensor], Tensor]
# Gradients of a mean over many tokens are small: multiplied by this, half precision does not lose them.
GRADIENT_SCALE = 1024.0
PIECE = 2**22  # elements that are multiplied in float64 at once: of a whole embedding that would be 28 bytes an element


class Shards(Protocol):
    """Divides parameters among ranks and reduces over them: learner/deepspeed_engine.py."""

    def all_reduce(self, value: Tensor, op: Literal["sum", "max"]) -> Tensor: ...

    def own_part(self, parameter: nn.Parameter, whole: Tensor | None = None) -> Tensor:
        """Returns this rank's share of the parameter, or of a tensor of its full shape, flat."""
        ...

    def zeros_like(self, parameter: nn.Parameter) -> Tensor:
        """Returns zeros of the parameter's full shape."""
        ...


class StepEffect:
    """Follows one iteration's steps. `begin` and `end` are collectives: every rank calls them, with its own micro-batches."""

    def __init__(self, engine: Shards, parameters: Sequence[nn.Parameter]) -> None:
        self._engine = engine
        self._parameters = [p for p in parameters if p.requires_grad]
        self._gradient: list[Tensor] = []  # of the mean entropy, this rank's share of each parameter
        self._before: list[Tensor] = []  # of the weights, likewise
        self._weights: list[Tensor] = []  # of the tokens' states, by micro-batch
        self._entropy = 0.0

    def begin(self, micros: Sequence[MicroBatch], forward: ForwardFn, weigh: WeighFn | None = None) -> float:
        """Takes the gradient of the mean entropy and remembers the weights. Returns that entropy, nats per token.

        weigh: counts states that older policies reached as often as the present one reaches them; None: it did."""
        total = torch.zeros(2, dtype=torch.float64)
        gradient: list[Tensor | None] = [None] * len(self._parameters)
        for micro in micros:
            logp, entropy = forward(micro)
            if weigh is not None:
                self._weights.append(weigh(micro, logp.detach()).to(entropy.dtype))
                entropy = entropy * self._weights[-1]
            total[0] += float(entropy.detach().sum(dtype=torch.float64))
            total[1] += len(entropy) if weigh is None else float(self._weights[-1].sum(dtype=torch.float64))
            # With allow_unused a parameter that entropy does not depend on has None, which torch's annotation leaves out.
            parts = torch.autograd.grad(GRADIENT_SCALE * entropy.sum(), self._parameters, allow_unused=True)
            for i, part in enumerate(cast("Sequence[Tensor | None]", parts)):
                before = gradient[i]
                if part is not None:
                    gradient[i] = part if before is None else before + part
        total = self._engine.all_reduce(total, "sum")
        count = max(1.0, float(total[1]))
        self._before = [self._engine.own_part(p).clone() for p in self._parameters]
        self._gradient = []
        for parameter, part in zip(self._parameters, gradient, strict=True):
            whole = self._engine.all_reduce(self._engine.zeros_like(parameter) if part is None else part, "sum")
            self._gradient.append(_precise(self._engine.own_part(parameter, whole)) / (GRADIENT_SCALE * count))
        self._entropy = float(total[0]) / count
        return self._entropy

    def end(self, micros: Sequence[MicroBatch], forward: ForwardFn) -> tuple[float, float]:
        """Returns (predicted, realised) change of entropy by the steps since `begin`, nats per token."""
        total = torch.zeros(3, dtype=torch.float64)
        for parameter, gradient, before in zip(self._parameters, self._gradient, self._before, strict=True):
            weights = self._engine.own_part(parameter)
            for start in range(0, len(weights), PIECE):
                piece = slice(start, start + PIECE)
                step = _precise(weights[piece]) - _precise(before[piece])
                total[2] += float((gradient[piece].double() * step.double()).sum())
        self._gradient, self._before = [], []
        with torch.no_grad():
            for i, micro in enumerate(micros):
                _, entropy = forward(micro)
                weight = self._weights[i] if self._weights else torch.ones_like(entropy)
                total[0] += float((weight * entropy).sum(dtype=torch.float64))
                total[1] += float(weight.sum(dtype=torch.float64))
        total = self._engine.all_reduce(total, "sum")
        return float(total[2]), float(total[0]) / max(1.0, float(total[1])) - self._entropy


def _precise(tensor: Tensor) -> Tensor:
    """Casts half precision to float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
