"""Computes rewards by how common a correct response's solution is in its group, and how many solutions there are. Pure numpy.

For the N correct responses of a group that have a solution, n_i of them that of response i:

    share_i  = (n_i - 1) / (N - 1)                            of the others, those with the same solution
    margin_i = max(reward_i - floor, 0)                       floor: the best reward of a response that is not correct, or 0
    factor_i = 1 - coefficient * share_i
    reward_i + margin_i * (factor_i * sum(margin) / sum(margin * factor) - 1)

With rewards of 0 and 1 that is 1 - coefficient * share_i, times one number a group that makes the mean over the correct ones
1 again. So the sum over the group stays, and with it what a group's mean makes of the responses that are not correct. Under GRPO,
whose std takes out a factor of the rewards, the number changes nothing; under RLOO and Dr. GRPO, without it a group would lose
its size with the coefficient. Where all shares are equal (one solution, or all different) rewards are left bit for bit as they
are. A margin times a positive number is a positive margin: with a coefficient under 1, a correct response that was worth more
than every other one still is, and whatever terms the reward has they cannot turn that around. Correct responses worth no more
than the floor are left alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from envs.types import Group, Trajectory

Array = NDArray[np.float64]


def solution_of(trajectory: Trajectory, compare_texts: bool = False) -> str | None:
    """Returns what is compared with other responses; None where the response is not correct or has no solution.

    compare_texts: where the environment gives no solution, the last response's text is it, whatever its case and white space.
    """
    verdict = trajectory.verdict
    if not (verdict.status.scored and verdict.correct):
        return None
    if verdict.solution is None and compare_texts:
        return " ".join(trajectory.texts[-1].casefold().split())
    return verdict.solution


def shares(solutions: Sequence[str]) -> Array:
    """Returns for each solution which part of the others equals it. [N], N >= 2. The mean estimates, without bias, the
    probability that two responses have the same solution."""
    count = Counter(solutions)
    return np.array([(count[s] - 1) / (len(solutions) - 1) for s in solutions])


def diverse_rewards(rewards: Array, margins: Array, solutions: Sequence[str], coefficient: float) -> Array:
    """Returns the new rewards of a group's correct responses; see the head of this file. [N] each."""
    if len(rewards) < 2 or not margins.any():
        return rewards
    share = shares(solutions)
    if np.ptp(share[margins > 0]) == 0:  # the factors cancel, which rounding would spoil
        return rewards
    factor, relative = 1 - coefficient * share, margins / margins.max()
    return rewards + margins * (factor * (relative.sum() / (relative @ factor)) - 1)


def diversified(group: Group, coefficient: float, compare_texts: bool = False) -> Group:
    """Returns the group with the rewards of its correct responses changed; the same object where none changes."""
    solutions = [solution_of(t, compare_texts) for t in group.trajectories]
    chosen = [i for i, s in enumerate(solutions) if s is not None]
    others = (t.verdict for t in group.trajectories if t.verdict.status.scored and not t.verdict.correct)
    floor = max((v.reward for v in others), default=0.0)
    before = np.array([group.trajectories[i].verdict.reward for i in chosen], np.float64)
    named = [s for s in solutions if s is not None]
    after = diverse_rewards(before, np.maximum(before - floor, 0.0), named, coefficient)
    if np.array_equal(before, after):
        return group
    changed = dict(zip(chosen, after.tolist(), strict=True))
    return replace(
        group,
        trajectories=tuple(
            replace(t, verdict=replace(t.verdict, reward=changed[i])) if i in changed else t
            for i, t in enumerate(group.trajectories)
        ),
    )


def tells_apart(group: Group, compare_texts: bool = False) -> bool:
    """Decides whether a coefficient, whatever its size, changes the group's rewards."""
    return diversified(group, 0.5, compare_texts) is not group


@dataclass(frozen=True, slots=True)
class Diversity:
    """Describes the correct responses of several groups, of those with two of them at least; nan where none has."""

    effective: float  # number of equally frequent solutions with the same collision probability, mean over groups
    shared: float  # share of these responses that have their solution in common with another one of their group


def measure(groups: Sequence[Group], compare_texts: bool = False) -> Diversity:
    """Measures the effective number of solutions: 1 / the probability that two correct responses to a prompt are alike.

    The probability is estimated from pairs, without bias, and averaged over groups. Where not one of the pairs is alike the
    number is that of the pairs: more cannot be told from so many.
    """
    collisions: list[float] = []
    shared: list[bool] = []
    pairs = 0
    for group in groups:
        solutions = [s for t in group.trajectories if (s := solution_of(t, compare_texts)) is not None]
        if len(solutions) >= 2:
            share = shares(solutions)
            collisions.append(float(share.mean()))
            shared += (share > 0).tolist()
            pairs += math.comb(len(solutions), 2)
    if not collisions:
        return Diversity(math.nan, math.nan)
    mean = sum(collisions) / len(collisions)
    return Diversity(1 / mean if mean > 0 else float(pairs), sum(shared) / len(shared))
