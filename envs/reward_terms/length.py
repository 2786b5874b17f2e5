"""Pure: what the length of a response adds to its reward, and a raw score on another scale.

Tokens are whole numbers >= 0. Values are before the weight of their term; the sources are named where a formula has one.
"""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["linear", "cosine"]


def progress(tokens: int, free: int, full: int) -> float:
    """How far `tokens` is on the way from `free` to `full`: 0 up to the first, 1 from the second on. Needs free < full."""
    return min(max((tokens - free) / (full - free), 0.0), 1.0)


def between(start: float, end: float, share: float, shape: Shape) -> float:
    """From `start` at share 0 to `end` at share 1: straight, or along half a cosine, which is flat at both ends.

    The cosine is CosFn of "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv 2502.03373, section 3.2.
    """
    if shape == "linear":
        return start + (end - start) * share
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) / 2.0


def overlong(tokens: int, limit: int, buffer: int) -> float:
    """DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13: 0 up to limit - buffer tokens, from there linearly to -1 at
    the limit, -1 beyond it. Needs 0 < buffer <= limit."""
    return -progress(tokens, limit - buffer, limit)


def normalised(score: float, scale: float, shift: float, low: float = -math.inf, high: float = math.inf) -> float:
    """scale * score + shift, then cut to [low, high]."""
    return min(max(scale * score + shift, low), high)


def rescaled(score: float, low: float, high: float) -> float:
    """A score in [low, high] as a share of the way. ValueError where it is outside: clipping would hide a judge that errs."""
    if not low <= score <= high:
        raise ValueError(f"the score {score:g} is not within {low:g} to {high:g}")
    return (score - low) / (high - low)
