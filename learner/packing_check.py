"""Measures whether a model keeps packed trajectories apart.

Several trajectories in one row are told apart by positions that restart. Attention of most families honours that; layers whose
state runs along the row (convolution, linear attention, state space) do not see positions, and some families take positions from
elsewhere (OPT from the attention mask, BLOOM and Falcon's ALiBi from the place in the row). A list of names would be out of date with
the next family, so the model itself is asked: a sequence behind another one against the same sequence alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LENGTHS = (13, 11)  # tokens of the sequence before, and of the one that is measured
LIMIT = 1e-3  # nats, float32; kernels of two shapes round to some 1e-6
HALF_LIMIT = 0.1  # nats, bf16 and fp16: rounding alone is some 1e-2


class PackingLeak(ValueError):
    """Reports a model whose packed trajectories see each other."""


def packing_gap(forward: Callable[..., Any], vocabulary: int, device: torch.device) -> float:
    """Returns the largest gap, in nats, of a sequence's log-probs packed behind another one and alone.

    forward: a `Policy`, or an engine around one (a collective under ZeRO-3: every rank calls it). Without gradient; 35 tokens.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(vocabulary, (1, n), generator=generator).to(device) for n in LENGTHS)
    with torch.no_grad():
        apart = _logprobs(forward, second, _positions(LENGTHS[1:], device), 0, second)
        together = torch.cat([first, second], 1)
        packed = _logprobs(forward, together, _positions(LENGTHS, device), LENGTHS[0], second)
    return float((packed - apart).abs().max())


def require_exact_packing(
    forward: Callable[..., Any], family: str, vocabulary: int, device: torch.device, half: bool
) -> None:
    """Raises PackingLeak, with the family and the gap, where packing is not exact. Arguments as for `packing_gap`."""
    gap, limit = packing_gap(forward, vocabulary, device), HALF_LIMIT if half else LIMIT
    if not gap <= limit:  # nan as well
        raise PackingLeak(
            f"learner.packing cannot be used with {family}: a trajectory packed behind another one has log-probs "
            f"{gap:.2g} nats off those it has alone (limit {limit:g}), because its layers do not see where one ends: "
            "set learner.packing=false"
        )


def _positions(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(n, device=device) for n in lengths])[None]


def _logprobs(forward: Callable[..., Any], tokens: Tensor, positions: Tensor, start: int, measured: Tensor) -> Tensor:
    """Log-probs of tokens 1.. of `measured`, which begins at `start` of the row."""
    predict = start + torch.arange(measured.shape[1] - 1, device=tokens.device)
    logp, *_ = forward(tokens, positions, predict, measured[0, 1:], 1.0)
    return logp
