"""Builds AdamW, torch's or bitsandbytes' with moments in 8 bits, and knows how each keeps its state.

optimiser_bits  AdamW of                  a tensor's state
32              torch, fused on CUDA      step (a tensor), exp_avg, exp_avg_sq
8               bitsandbytes              step (a number), state1, state2: the same moments, of 4096 elements and more in 8 bits,
                                          with absmax1, absmax2 and the levels qmap1, qmap2, which all tensors share
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.optimiser.moments import EightBit, EightBitRange, Plain, Values
from learner.settings import EngineSettings
from learner.types import UnsupportedModel

MOMENTS = ("exp_avg", "exp_avg_sq")
LEVELS = ("qmap1", "qmap2")


@dataclass(frozen=True, slots=True)
class StepCount:
    """Reads and sets AdamW's count of a tensor's steps, where the optimiser has it: `state["step"]`."""

    state: dict[str, Any]

    @property
    def value(self) -> float:
        """Returns the count."""
        return float(self.state["step"])

    def set(self, count: float) -> None:
        """Replaces the count."""
        step = self.state["step"]
        self.state["step"] = step.fill_(count) if isinstance(step, Tensor) else int(count)


def build(
    settings: EngineSettings, groups: Sequence[Mapping[str, Any]], lr: float, cuda: bool
) -> torch.optim.Optimizer:
    """Returns the optimiser for groups of parameters. Raises UnsupportedModel where a package is missing."""
    usual: dict[str, Any] = {"lr": lr, "betas": settings.betas, "eps": settings.eps}
    given: Any = [dict(group) for group in groups]
    if settings.optimiser_bits == 8:
        return _bitsandbytes().AdamW8bit(given, **usual)
    # Fused, it takes no memory beside its state; on a CPU the loop over parameters is what all recorded numbers are of.
    return torch.optim.AdamW(given, **usual, fused=True if cuda else None)


def _bitsandbytes() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels for inference that it does not find
    try:
        return importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise UnsupportedModel(
            f"learner.optimiser_bits is 8 and bitsandbytes cannot be imported by a learner rank ({error}): `pip install "
            "bitsandbytes` where ranks run, or set learner.optimiser_bits to 32"
        ) from None


def values_of(adam: torch.optim.Optimizer, holder: Tensor) -> dict[str, Plain | EightBit]:
    """Returns the two moments of a tensor that the optimiser steps, whole; before its first step they are made, as zeros."""
    state: dict[str, Any] = adam.state[holder]
    if not state:
        _begin(adam, holder)
    if "state1" not in state:
        return {key: Plain(state[key].detach().view(-1)) for key in MOMENTS}
    found: dict[str, Plain | EightBit] = {}
    for number, key in enumerate(MOMENTS, 1):
        stored = state[f"state{number}"].view(-1)
        absmax = state.get(f"absmax{number}")
        found[key] = Plain(stored) if absmax is None else EightBit(stored, absmax, state[f"qmap{number}"])
    return found


def range_of(whole: Plain | EightBit, start: int, length: int) -> Values:
    """Returns a range of a moment, or of a master."""
    if isinstance(whole, Plain):
        return whole.part(start, start + length)
    return EightBitRange(whole, start, start + length)


def reset(adam: torch.optim.Optimizer) -> None:
    """Sets moments and step counts back to zero, as a new optimiser has them."""
    for state in adam.state.values():
        for key, value in state.items():
            if key not in LEVELS:
                state[key] = value.zero_() if isinstance(value, Tensor) else type(value)(0)


def _begin(adam: Any, holder: Tensor) -> None:
    """Makes the state that the optimiser itself would make at its first step."""
    if isinstance(adam, torch.optim.AdamW):
        state = adam.state[holder]
        state["step"] = torch.tensor(0.0)
        for key in MOMENTS:
            state[key] = torch.zeros_like(holder, memory_format=torch.preserve_format)
        return
    # At ZeRO-3 the tensor is in the optimiser's groups only while it is stepped, and bitsandbytes looks for it there.
    alone: Any = type(adam)([holder])
    alone.name2qmap = adam.name2qmap
    alone.init_state(alone.param_groups[0], holder, 0, 0)
    adam.state[holder].update(alone.state[holder])
