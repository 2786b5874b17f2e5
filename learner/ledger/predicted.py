"""Says which tokens of an update push entropy where, and tallies what iterations and updates are measured by. Pure.

Every metric is over the GLOBAL batch of an iteration: ranks add up `Tally`s, then one division. Change of entropy, first order,
unbiased from samples a ~ pi (tabular softmax, step eta on the logits; entropy notes of arXiv 2603.11682):

    dH = sum over tokens of w * eta * [ -(i * A'_a + r_a) * (pi_a L_a - kappa) + bonus * entropy_grad_sq ]
    kappa = sum_b pi_b^2 L_b,    entropy_grad_sq = sum_b pi_b^2 L_b^2,    L = log pi + H

with A' the advantage after shaping, i the importance weight, r the pull of the KL to a reference (objective.reference_pull), w the
token's weight in the loss (1 / tokens for aggregation "token") and eta the sum of the learning rates of the iteration's updates.
This is of a policy whose logits are its parameters, under plain gradient steps: it divides the push among tokens, and between
advantages and control, and its scale is not a network's. What an optimiser's step does to a network: learner/ledger/step_effect.py.

Entropy, and the gap to the engine, are over every fresh response; states.py has what older policies sampled. Advantages,
covariance and predicted changes are of the responses that are trained on: what dynamic sampling drops is measured and has no
weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learner.ledger.states import States, tally_states
from learner.ledger.tally import Tally
from learner.types import Shaping, TokenStats

RARE = -2.0  # log-prob under which a token counts as rare


@dataclass(frozen=True, slots=True)
class Fresh:
    """Holds the policy at the start of the iteration on the iteration's own responses, and what came with them. All [N]."""

    stats: TokenStats
    weight: Tensor  # in the loss; 0: measured and not trained on
    engine_logp: Tensor
    correct: Tensor  # bool: the trajectory's verdict
    first: Tensor  # bool: the response's first token
    last: Tensor  # bool: and its last
    reference_logp: Tensor | None = None
    importance: Tensor | None = None  # what the surrogate is multiplied by; None: 1
    pull: Tensor | None = None  # of the KL to the reference, as an advantage; None: 0
    states: States | None = None  # how older policies reached the tokens' states; None: the present one did


def planned_dh(fresh: Fresh, shaping: Shaping) -> Tensor:
    """Returns each token's share of dH for a step of size 1 on the logits, everything in the loss counted. [N], nats"""
    dh = predicted_dh(fresh.stats, replace(shaping, bonus=None))
    if fresh.importance is not None:
        dh = dh * fresh.importance
    if fresh.pull is None and shaping.bonus is None:
        return dh
    pull = torch.zeros_like(dh) if fresh.pull is None else fresh.pull
    return dh + predicted_dh(replace(fresh.stats, advantages=pull), Shaping(bonus=shaping.bonus))


def predicted_dh(stats: TokenStats, shaping: Shaping) -> Tensor:
    """Returns `planned_dh` of the shaped surrogate and the bonus alone. [N], nats"""
    shaped = stats.advantages if shaping.advantages is None else shaping.advantages
    dh = -shaped * (stats.logp.exp() * stats.centred - stats.kappa)
    if shaping.weight is not None:
        dh = dh * shaping.weight
    return dh if shaping.bonus is None else dh + shaping.bonus * stats.entropy_grad_sq


def tally_policy(
    tally: Tally, fresh: Fresh, probe: tuple[Shaping, float | Tensor] | None, envs: tuple[str, ...]
) -> None:
    """Tallies what the controllers and the ledger see before the updates.

    probe: a shaping and the coefficient that made it (Steering.probe).
    """
    s, w = fresh.stats, fresh.weight
    free = planned_dh(fresh, Shaping())
    slope = torch.full_like(free, math.nan) if probe is None else (planned_dh(fresh, probe[0]) - free) / probe[1]
    gap = (s.logp - fresh.engine_logp).abs()
    outside = (((s.logp - fresh.engine_logp).exp() - 1.0).abs() > 0.1).double()
    rare = s.logp < RARE
    ok = fresh.correct.to(s.entropy.dtype)
    member = (s.env == torch.arange(len(envs), device=s.env.device)[:, None]).double()
    learnt = (w > 0).double()
    advantages = learnt * s.advantages.double()
    of_states = (
        ("tokens", torch.ones_like(w)),
        ("entropy", s.entropy),
        ("ok_tokens", ok),
        ("ok_entropy", ok * s.entropy),
    )
    if fresh.states is not None:
        tally_states(tally, fresh.states, member, envs, of_states)
    for key, value in (
        *of_states,
        ("free", w * free),
        ("slope", w * slope),
        ("weight", w),
        ("advantage_square", w * s.advantages.double() ** 2),
    ):
        tally.add_by(key, member, envs, value)
    for key, value in (
        ("count", float(len(s.logp))),
        ("surprisal", -s.logp),
        ("learnt", learnt),
        ("learnt_surprisal", -learnt * s.logp),
        ("advantage", advantages),
        ("square", advantages**2),
        ("product", advantages * s.logp),
        ("gap", gap),
        ("gap_outside", outside),
        ("rare", rare.double()),
        ("gap_outside_rare", outside * rare),
        ("first", fresh.first.double()),
        ("first_entropy", s.entropy.where(fresh.first, 0.0)),
        ("last", fresh.last.double()),
        ("last_entropy", s.entropy.where(fresh.last, 0.0)),
    ):
        tally.add(key, value)
    if fresh.reference_logp is not None:
        difference = fresh.reference_logp - s.logp
        tally.add("reference", difference.exp() - 1.0 - difference)
    tally.peak("gap", gap)
    tally.keep("gap", gap)


def tally_shaping(tally: Tally, fresh: Fresh, shaping: Shaping) -> None:
    """Tallies what the updates should do, with the coefficient they will have."""
    s = fresh.stats
    dh = fresh.weight * planned_dh(fresh, shaping)
    shaped = s.advantages if shaping.advantages is None else shaping.advantages
    for name, mask in (("positive", s.advantages > 0), ("negative", s.advantages < 0), ("zero", s.advantages == 0)):
        tally.add(f"dh_{name}", dh.where(mask, 0.0))  # zero: REPO and the bonus move these as well
        tally.add(f"size_{name}", s.advantages.abs().where(mask, 0.0))
        tally.add(f"shaped_{name}", shaped.abs().where(mask, 0.0))


def tally_update(
    tally: Tally, loss: Tensor, tokens: dict[str, Tensor], stats: TokenStats, shaping: Shaping, step: Tensor
) -> None:
    """Tallies one micro-batch of an update. step [N]: learning rate times the token's weight in the loss."""
    count = float(len(tokens["ratio"]))
    # Clipping removes the surrogate's part alone; unclipped, the token would count in proportion to its ratio.
    forgone = step * tokens["withheld"] * predicted_dh(stats, replace(shaping, bonus=None))
    for key, value in (
        ("loss", loss.detach()),
        ("trained", count),
        # The share touched by the coefficient is measured where it acts.
        ("touched", count if shaping.touched is None else shaping.touched.double()),
        ("ratio", tokens["ratio"]),
        ("ratio_square", tokens["ratio"].double() ** 2),
        ("clipped_high", tokens["clipped_high"].double()),
        ("clipped_low", tokens["clipped_low"].double()),
        ("forgone_high", forgone.where(tokens["clipped_high"], 0.0)),
        ("forgone_low", forgone.where(tokens["clipped_low"], 0.0)),
        ("kl", tokens["kl"]),
        ("importance", tokens["importance"]),
        ("limited", tokens["limited"].double()),
    ):
        tally.add(key, value)
    tally.peak("ratio", tokens["ratio"])
    tally.keep("ratio", tokens["ratio"])
