"""Corrects means over the states of a batch that older policies sampled: what the present policy would visit. Pure.

A controller has to see the entropy of the policy, E over the states that the policy itself visits. Under asynchronous training
the states of a batch were reached by older policies, mu: the mean over them is that of a mixture, in which a change of the policy
arrives late. Importance sampling over the tokens before a state gives its weight,

    w_t = min(CAP, prod over k < t of pi(a_k|s_k) / mu(a_k|s_k)) ** power,    mean of x = sum w x / sum w

self-normalised, with mu the engine's own log-probs, hence exact for responses that several versions sampled. Products over long
responses are heavy-tailed, so that few tokens may carry the mean; `power` bounds that: the largest of POWERS at which the effective
sample size (sum w)^2 / sum w^2 is at least MIN_EFFECTIVE of the tokens. Power 1 corrects all of it, 0 none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.ledger.tally import Tally
from learner.types import StepMetrics

POWERS = (1.0, 0.5, 0.25, 0.0)
CAP = 10.0
MIN_EFFECTIVE = 0.5


@dataclass(frozen=True, slots=True)
class States:
    """Says of each of N action tokens how its state was reached. staleness: the bound on `age`, the same on every rank."""

    weight: Tensor  # at power 1: `state_weights` [N]
    age: Tensor  # versions that its policy is behind the trained one [N]
    staleness: int


def state_weights(log_ratio: Tensor, trajectory: Tensor) -> Tensor:
    """Returns the weight of each token's state at power 1. [N], float64

    log_ratio   log pi - log mu of the N action tokens [N]
    trajectory  equal for the tokens of one trajectory, which stand together and in order [N]
    """
    step = log_ratio.detach().double()
    if not len(step):
        return step
    before = step.cumsum(0) - step  # of all tokens before, those of earlier trajectories included
    first = torch.ones_like(trajectory, dtype=torch.bool)
    first[1:] = trajectory[1:] != trajectory[:-1]
    start = before[first][first.cumsum(0) - 1]
    return (before - start).clamp(max=math.log(CAP)).exp()


def suffix(power: float) -> str:
    """Returns what is added to the key of a sum that is weighted at this power: nothing at power 0, which weighs nothing."""
    return f"^{power:g}" if power else ""


def tally_states(
    tally: Tally, states: States, member: Tensor, envs: Sequence[str], values: Sequence[tuple[str, Tensor]]
) -> None:
    """Tallies `values` by environment once more at every power, and what chooses among the powers.

    member: float64 [environments, N], 1 where a token is the environment's. values: (key, [N]) each.
    """
    for power in POWERS:
        w = states.weight**power
        tally.add(f"states{suffix(power)}", w)
        tally.add(f"states_square{suffix(power)}", w * w)
        tally.add(f"states_age{suffix(power)}", w * states.age)
        if power:
            for key, value in values:
                tally.add_by(key + suffix(power), member, envs, w * value.double())
    age = states.age.clamp(max=states.staleness)
    entropy = dict(values)["entropy"].double()
    for k in range(states.staleness + 1):
        tally.add(f"age_tokens/{k}", (age == k).double())
        tally.add(f"age_entropy/{k}", entropy * (age == k))


def chosen_power(tally: Tally) -> float:
    """Returns the largest power that leaves enough effective tokens; 0 where no states were tallied."""
    tokens = tally.sums.get("states", 0.0)

    def effective(power: float) -> float:
        return tally.sums[f"states{suffix(power)}"] ** 2 / (tally.sums[f"states_square{suffix(power)}"] * tokens)

    return next((p for p in POWERS if tokens and effective(p) >= MIN_EFFECTIVE), 0.0)


def state_metrics(tally: Tally, power: float, uncorrected: float) -> StepMetrics:
    """Returns the metrics of the correction. uncorrected: entropy over the states as they are, nats per token."""
    if "states" not in tally.sums:
        return {}
    tokens, ages = tally.sums["states"], [k for k in tally.sums if k.startswith("age_tokens/")]
    out = {
        "entropy/uncorrected": uncorrected,
        "entropy/correction": power,
        "entropy/dead_time": tally.mean(f"states_age{suffix(power)}", f"states{suffix(power)}"),
    }
    for key in ages:
        age = key.partition("/")[2]
        out[f"staleness/tokens/{age}"] = tally.sums[key] / tokens if tokens else math.nan
        if tally.sums[key]:
            out[f"staleness/entropy/{age}"] = tally.sums[f"age_entropy/{age}"] / tally.sums[key]
    return out
