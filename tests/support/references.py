"""The papers' formulas in plain numpy float64, one response and one token at a time. They share nothing with the code but the data.

A batch is a list of `Response`; objectives are written as the papers have them, to be maximised, and `loss` is minus their sum.
Where a paper stops a gradient, `at` is the point at which the stopped part is evaluated: a finite difference moves `logp` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# (low, high) of the published clip ranges: PPO, arXiv 1707.06347, table 1; GSPO, arXiv 2507.18071, section 5.1; CISPO without a
# lower bound, arXiv 2506.13585, section 3.1, and a weight of at most 5, arXiv 2510.13786.
PUBLISHED_CLIP = {"ppo": (0.2, 0.2), "gspo": (3e-4, 4e-4), "cispo": (float("inf"), 4.0)}


# --- advantages: groups of rewards, and the responses' lengths ----------------------------------------------------------------


def group_advantages(name: str, rewards: Sequence[float]) -> list[float]:
    """GRPO, arXiv 2402.03300, section 4.1.2: (r - mean) / std; RLOO, arXiv 2402.14740, eq. 8, and LOOP, arXiv 2502.01600,
    section 4: r minus the mean of the others; Dr. GRPO, arXiv 2503.20783, section 3.2, and REINFORCE++ with a baseline,
    arXiv 2501.03262: r - mean; REINFORCE++: r."""
    n, mean = len(rewards), math.fsum(rewards) / len(rewards)
    if name == "grpo":
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / n)
        return [(r - mean) / (std + 1e-6) for r in rewards]
    if name in ("rloo", "loop"):
        return [r - (math.fsum(rewards) - r) / (n - 1) for r in rewards]
    if name in ("dr_grpo", "reinforce_pp_baseline"):
        return [r - mean for r in rewards]
    return {"reinforce_pp": list(rewards)}[name]


def batch_advantages(name: str, groups: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]]) -> list[float]:
    """Returns one advantage per response.

    REINFORCE++ (arXiv 2501.03262, eq. 9): (A - mean) / std over all tokens of the global batch.
    """
    flat = [a for rewards in groups for a in group_advantages(name, rewards)]
    if not name.startswith("reinforce_pp"):
        return flat
    tokens = [a for a, n in zip(flat, (n for group in lengths for n in group), strict=True) for _ in range(n)]
    mean = math.fsum(tokens) / len(tokens)
    std = math.sqrt(math.fsum((a - mean) ** 2 for a in tokens) / len(tokens))
    return [(a - mean) / std if std > 1e-12 else 0.0 for a in flat]


# --- the loss ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """Holds the sampled tokens of one trajectory, without observations."""

    old: Array
    engine: Array
    reference: Array
    entropy: Array
    advantage: float


@dataclass(frozen=True)
class Rules:
    surrogate: str = "ppo"
    low: float = 0.2
    high: float = 0.2
    aggregation: str = "token"
    max_tokens: int = 1
    importance: str = "none"
    level: str = "token"
    cap: float = 2.0
    floor: float = 0.0
    kl: float = 0.0
    estimator: str = "k3"
    bonus: float = 0.0


def clipped_objective(ratio: float, advantage: float, rules: Rules) -> float:
    """Returns min(r A, clip(r, 1 - low, 1 + high) A). PPO, arXiv 1707.06347, eq. 7; two ranges: DAPO, arXiv 2503.14476, eq. 8."""
    return min(ratio * advantage, min(max(ratio, 1 - rules.low), 1 + rules.high) * advantage)


def objectives(logp: Array, at: Array, response: Response, rules: Rules) -> list[float]:
    """The surrogate objective of each token of a response.

    REINFORCE: A log pi, here with the value A; CISPO, arXiv 2506.13585, eqs. 4-5: sg(clip(r)) A log pi;
    GSPO, arXiv 2507.18071, eqs. 5-7: the clipped objective of s = (pi(y) / pi_old(y))^(1/|y|), once a response: the same for
    each of its tokens, since averaging them gives it back.
    """
    n, a = len(logp), response.advantage
    if rules.surrogate == "policy_gradient":
        return [a + a * (logp[t] - at[t]) for t in range(n)]
    if rules.surrogate == "cispo":
        weights = [min(max(math.exp(at[t] - response.old[t]), 1 - rules.low), 1 + rules.high) for t in range(n)]
        return [weights[t] * a * logp[t] for t in range(n)]
    if rules.surrogate == "gspo":
        s = math.exp(math.fsum(logp - response.old)) ** (1 / n)
        return [clipped_objective(s, a, rules)] * n
    return [clipped_objective(math.exp(logp[t] - response.old[t]), a, rules) for t in range(n)]


def corrections(response: Response, rules: Rules) -> list[float]:
    """pi_old of the trainer over that of the engine, a token or a whole response; min(w, cap): TIS, Yao et al. 2025; w where
    floor <= w <= cap, else nothing: MIS, Liu et al. 2025, and with a floor IcePop."""
    if rules.importance == "none":
        return [1.0] * len(response.old)
    ratios = [math.exp(o) / math.exp(e) for o, e in zip(response.old, response.engine, strict=True)]
    if rules.level == "sequence":
        ratios = [math.prod(ratios)] * len(ratios)
    if rules.importance == "truncated":
        return [min(w, rules.cap) for w in ratios]
    return [w if rules.floor <= w <= rules.cap else 0.0 for w in ratios]


def penalty(pi: float, reference: float, estimator: str) -> float:
    """Returns a KL estimate from log-probs. Schulman 2020, "Approximating KL divergence"; k3: GRPO, arXiv 2402.03300, eq. 4."""
    x = math.exp(reference) / math.exp(pi)
    return {"k1": 0.0, "k2": math.log(x) ** 2 / 2, "k3": x - 1 - math.log(x)}[estimator]


def token_losses(logp: Array, at: Array, response: Response, rules: Rules) -> list[float]:
    """Returns the loss of every token. The estimator k1 changes the advantage instead: A - kl * (log pi_old - log ref)."""
    weights = corrections(response, rules)
    if rules.kl and rules.estimator == "k1":
        parts = []
        for t in range(len(logp)):
            a = response.advantage - rules.kl * (response.old[t] - response.reference[t])
            one = slice(t, t + 1)
            single = Response(
                response.old[one], response.engine[one], response.reference[one], response.entropy[one], a
            )
            parts += objectives(logp[one], at[one], single, rules)
    else:
        parts = objectives(logp, at, response, rules)
    return [
        -w * part - rules.bonus * h + rules.kl * penalty(x, ref, rules.estimator)
        for w, part, h, x, ref in zip(weights, parts, response.entropy, logp, response.reference, strict=True)
    ]


def loss(logps: Sequence[Array], ats: Sequence[Array], responses: Sequence[Response], rules: Rules) -> float:
    """token: DAPO, arXiv 2503.14476, eq. 8: over all tokens; sequence: GRPO, arXiv 2402.03300, eq. 3: means of means;
    constant: Dr. GRPO, arXiv 2503.20783, listing 1: sums over a constant length."""
    each = [token_losses(*x, rules) for x in zip(logps, ats, responses, strict=True)]
    if rules.aggregation == "token":
        return math.fsum(x for one in each for x in one) / sum(len(one) for one in each)
    if rules.aggregation == "sequence":
        return math.fsum(math.fsum(one) / len(one) for one in each) / len(each)
    return math.fsum(x for one in each for x in one) / (len(each) * rules.max_tokens)


def gradients(logps: Sequence[Array], responses: Sequence[Response], rules: Rules, eps: float = 1e-6) -> list[Array]:
    """Returns the gradient of `loss` in every token's log-prob, by central differences."""
    rows = []
    for i, own in enumerate(logps):
        row = np.zeros(len(own))
        for t in range(len(own)):
            ends = []
            for sign in (1, -1):
                moved = own.copy()
                moved[t] += sign * eps
                ends.append(loss([*logps[:i], moved, *logps[i + 1 :]], logps, responses, rules))
            row[t] = (ends[0] - ends[1]) / (2 * eps)
        rows.append(row)
    return rows
