"""Computes advantages from rewards: pure numpy, float64.

A baseline takes the rewards [G] of one prompt's responses to advantages [G]; some are then normalised over the global batch.
Turn-level advantages compare returns-to-go instead, and give every turn an advantage of its own.

`ADVANTAGES` is the whole list. A new one is a line there, its name in `ObjectiveSettings.advantage` and, if its baseline is
new, one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rewards = NDArray[np.float64]

GRPO_EPSILON = 1e-6  # a group of equal rewards does not divide by zero


@dataclass(frozen=True, slots=True)
class Advantage:
    """Defines how rewards become advantages."""

    baseline: Callable[[Rewards], Rewards]  # within a group
    compared: int = 2  # scored responses of a prompt that it takes; with fewer, none of them has an advantage
    whiten: bool = False  # then to mean 0 and standard deviation 1 over the tokens of the global batch


def centred(rewards: Rewards) -> Rewards:
    """Returns r - mean of the group; exactly zero where all are equal, which rounding of the mean would spoil."""
    return rewards - (rewards[0] if np.ptp(rewards) == 0 else rewards.mean())


def grpo(rewards: Rewards) -> Rewards:
    """Returns (r - mean) / (std + 1e-6), population std. DeepSeekMath, arXiv 2402.03300, eq. 3."""
    return centred(rewards) / (rewards.std() + GRPO_EPSILON)


def leave_one_out(rewards: Rewards) -> Rewards:
    """Returns r_i minus the mean of the others' rewards: unbiased, no scale. RLOO, arXiv 2402.14740. Needs G >= 2."""
    if len(rewards) < 2:
        raise ValueError(f"a leave-one-out baseline needs at least 2 responses per prompt, not {len(rewards)}")
    return centred(rewards) * (len(rewards) / (len(rewards) - 1))


def plain(rewards: Rewards) -> Rewards:
    """Returns the rewards themselves: no baseline but the batch's."""
    return rewards.copy()


def returns_to_go(rewards: Rewards, discount: float) -> Rewards:
    """Returns what is earned from each turn on: R_k = r_k + discount * R_(k+1). [turns] -> [turns]"""
    returns = np.zeros(len(rewards))
    after = 0.0
    for k in range(len(rewards) - 1, -1, -1):
        returns[k] = after = rewards[k] + discount * after
    return returns


def turn_baselines(returns: Sequence[Rewards], advantage: Advantage) -> list[Rewards]:
    """Turns the returns-to-go of a group's trajectories into advantages, each turn compared with the others' same turn.

    [turns] each.
    GRPO's process supervision (arXiv 2402.03300, sec. 4.1.3) gives a step the sum of the rewards from it on, less the group's
    mean; turn-level credit compares at the same turn (arXiv 2505.11821). A trajectory that ended has no turn k to compare with,
    and under a group baseline a turn that none of the others has is left without an advantage, as the only response of a group
    is.
    """
    advantages = [np.zeros(len(r)) for r in returns]
    for k in range(max(map(len, returns), default=0)):
        reached = [i for i, r in enumerate(returns) if len(r) > k]
        if len(reached) >= advantage.compared:
            for i, value in zip(reached, advantage.baseline(np.array([returns[i][k] for i in reached])), strict=True):
                advantages[i][k] = value
    return advantages


def whitened(advantages: NDArray[np.float64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns (A - mean) / std with both taken over TOKENS: a trajectory counts as often as it has tokens. [n], [n] -> [n]

    REINFORCE++, arXiv 2501.03262: normalisation over the global batch in place of a group's. All zero where nothing varies.
    """
    if np.ptp(advantages) == 0:
        return np.zeros_like(advantages)
    mean = np.average(advantages, weights=lengths)
    return (advantages - mean) / np.sqrt(np.average((advantages - mean) ** 2, weights=lengths))


ADVANTAGES: dict[str, Advantage] = {
    "grpo": Advantage(grpo),
    "rloo": Advantage(leave_one_out),
    # LOOP (arXiv 2502.01600) is the leave-one-out baseline with PPO's clipped ratio and several updates per batch: the
    # configuration refuses it with another surrogate.
    "loop": Advantage(leave_one_out),
    # Dr. GRPO (arXiv 2503.20783): no division by the group's std, which favours prompts that are nearly solved or nearly
    # hopeless; its other half is aggregation "constant".
    "dr_grpo": Advantage(centred),
    # REINFORCE++ (arXiv 2501.03262): one response a prompt in the paper, and several do as well. The paper subtracts from the
    # reward at token t the k1 KL of the tokens from t on, before normalisation; the estimator k1 of objective.kl, which is ours
    # (objective.with_reference), subtracts that of the token alone, and after it.
    "reinforce_pp": Advantage(plain, compared=1, whiten=True),
    # REINFORCE++ with the group's mean as baseline: for several responses a prompt (the same paper).
    "reinforce_pp_baseline": Advantage(centred, whiten=True),
}
