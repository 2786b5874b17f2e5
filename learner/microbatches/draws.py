"""Draws a random number for every token from the run's seed, the optimiser step and the token's position alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN, _M1, _M2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers that looks random."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


def token_uniform(
    seed: int, step: int, trajectory: NDArray[np.int32], action_index: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Returns numbers uniform on [0, 1), float32 [N].

    trajectory, action_index [N]: which trajectory of the iteration, and which of its action tokens.
    Ranks, micro-batches and packing move a token about and do not change its number.
    """
    key = _mix(np.asarray([seed], np.uint64)) ^ np.uint64(step)
    mixed = _mix(_mix(_mix(key) ^ trajectory.astype(np.uint64)) ^ action_index.astype(np.uint64))
    return ((mixed >> np.uint64(40)).astype(np.float64) / 2.0**24).astype(np.float32)
