"""Group baselines: rewards [G] of one prompt's replies -> advantages [G]. Pure numpy, float64.

`GROUP_ADVANTAGES` is the whole list; a new one is one function and one line there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rewards = NDArray[np.float64]

GRPO_EPSILON = 1e-6  # a group of equal rewards does not divide by zero


def _centred(rewards: Rewards) -> Rewards:
    """r - mean; exactly zero where all are equal, which rounding of the mean would spoil."""
    return rewards - (rewards[0] if np.ptp(rewards) == 0 else rewards.mean())


def grpo(rewards: Rewards) -> Rewards:
    """(r - mean) / (std + 1e-6), population std. DeepSeekMath, arXiv 2402.03300, eq. 3."""
    return _centred(rewards) / (rewards.std() + GRPO_EPSILON)


def leave_one_out(rewards: Rewards) -> Rewards:
    """r_i minus the mean of the others' rewards: unbiased, no scale. RLOO, arXiv 2402.14740. Needs G >= 2."""
    if len(rewards) < 2:
        raise ValueError(f"a leave-one-out baseline needs at least 2 replies per prompt, not {len(rewards)}")
    return _centred(rewards) * (len(rewards) / (len(rewards) - 1))


GROUP_ADVANTAGES: dict[str, Callable[[Rewards], Rewards]] = {
    "grpo": grpo,
    "rloo": leave_one_out,
    # LOOP (arXiv 2502.01600) is the leave-one-out baseline with PPO's clipped ratio and several updates per batch: the
    # configuration refuses it with another surrogate.
    "loop": leave_one_out,
}
