"""Computes reward terms of a response's length, and rescales raw scores.

Lengths are tokens, integers >= 0. Values are before the weight of their term. Each formula names its source, where it has one.
"""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["linear", "cosine"]


def progress(tokens: int, free: int, full: int) -> float:
    """Returns how far `tokens` is on the way from `free` (0, also below) to `full` (1, also above). Needs free < full."""
    return min(max((tokens - free) / (full - free), 0.0), 1.0)


def between(start: float, end: float, share: float, shape: Shape) -> float:
    """Interpolates from `start` at share 0 to `end` at share 1: linearly, or along half a cosine, which is flat at both ends.

    The cosine is CosFn of "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv 2502.03373, section 3.2.
    """
    if shape == "linear":
        return start + (end - start) * share
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) / 2.0


def overlong(tokens: int, limit: int, buffer: int) -> float:
    """Computes DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13.

    0 up to limit - buffer tokens, from there linearly to -1 at the limit, -1 beyond it. Needs 0 < buffer <= limit.
    """
    return -progress(tokens, limit - buffer, limit)


def normalised(score: float, scale: float, shift: float, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns scale * score + shift, clipped to [low, high]."""
    return min(max(scale * score + shift, low), high)


def rescaled(score: float, low: float, high: float) -> float:
    """Maps a score from [low, high] to [0, 1]. Raises ValueError outside: clipping would hide a faulty judge."""
    if not low <= score <= high:
        raise ValueError(f"the score {score:g} is not within {low:g} to {high:g}")
    return (score - low) / (high - low)
