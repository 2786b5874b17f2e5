"""Divides trajectories into micro-batches. Pure numpy; deterministic.

An iteration's trajectories are divided into equal updates, in order; those of an update are dealt to the ranks by length and
filled into micro-batches of at most `micro_batch_tokens` token slots. Advantages and loss weights are set here, once, over the
whole iteration, so that nothing downstream depends on how the batch was divided. Where dynamic sampling dropped groups
there are fewer updates, of the size that updates have otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.types import Group, Trajectory
from learner.advantages import Advantage, returns_to_go, turn_baselines, whitened
from learner.settings import BatchPlan
from learner.types import Aggregation, MicroBatch, RankBatch, SignalOf

# One a trajectory, or for each an array with one a turn.
Advantages = NDArray[np.float64] | Sequence[NDArray[np.float64]]


def trajectory_advantages(groups: Sequence[Group], advantage: Advantage) -> NDArray[np.float64]:
    """Returns one advantage a trajectory, groups in order. [sum of group sizes]

    A trajectory that could not be scored (ERROR, TIMEOUT) is left out of its group's baseline and has advantage 0: a
    verifier that fails must not teach the policy. So has one that is the only one scored of its group, but under the batch's
    baseline (`Advantage.compared`). A trajectory that a limit ended (TURNS, TOKENS, SECONDS) counts with its reward of 0.
    """
    advantages: list[NDArray[np.float64]] = []
    compared: list[NDArray[np.bool_]] = []
    for group in groups:
        scored = np.array([t.verdict.status.scored for t in group.trajectories])
        rewards = np.array([t.verdict.reward for t in group.trajectories], np.float64)
        values = np.zeros(len(rewards))
        if scored.sum() >= advantage.compared:
            values[scored] = advantage.baseline(rewards[scored])
        else:
            scored[:] = False
        advantages.append(values)
        compared.append(scored)
    if not groups:
        return np.zeros(0)
    values, counted = np.concatenate(advantages), np.concatenate(compared)
    if advantage.whiten and counted.any():
        lengths = np.array([t.response_tokens for g in groups for t in g.trajectories], np.float64)
        values[counted] = whitened(values[counted], lengths[counted])
    return values


def turn_advantages(
    groups: Sequence[Group], advantage: Advantage, discount: float, weight: float = 1.0
) -> list[NDArray[np.float64]]:
    """Returns one advantage a turn, trajectories in order. [turns] each.

    weight: rewards.verdict, applied to the turns' rewards as to the verdict's.
    A turn earns its observation's reward, the last one the verdict's as well. What could not be scored is left out of every
    baseline and has advantage 0, as in `trajectory_advantages`: with one turn each the two are the same.
    """
    values: list[NDArray[np.float64]] = []
    compared: list[NDArray[np.bool_]] = []
    for group in groups:
        returns: list[NDArray[np.float64]] = []
        for t in group.trajectories:
            rewards = weight * np.array([turn.reward for turn in t.turns], np.float64)
            rewards[-1] += t.verdict.reward
            returns.append(returns_to_go(rewards, discount))
        scored = [r for r, t in zip(returns, group.trajectories, strict=True) if t.verdict.status.scored]
        of_scored = iter(turn_baselines(scored, advantage))
        enough = advantage.compared
        others = np.array([sum(len(r) > k for r in scored) >= enough for k in range(max(map(len, returns), default=0))])
        for r, t in zip(returns, group.trajectories, strict=True):
            values.append(next(of_scored) if t.verdict.status.scored else np.zeros(len(r)))
            compared.append(others[: len(r)] & t.verdict.status.scored)
    if not values:
        return []
    flat, mask = np.concatenate(values), np.concatenate(compared)
    if advantage.whiten and mask.any():
        turns = (turn for g in groups for t in g.trajectories for turn in t.turns)
        lengths = np.array([len(turn.response_ids) for turn in turns], np.float64)
        flat[mask] = whitened(flat[mask], lengths[mask])
    return np.split(flat, np.cumsum([len(v) for v in values])[:-1])


def informative(group: Group, by: SignalOf = "reward") -> bool:
    """Returns whether a group baseline leaves the group an advantage, and one that `by` lets count.

    It leaves none where all scored rewards are equal, or one is. With by "verdict" the environment's own rewards have to differ
    too, those before the terms that shape them (`Verdict.terms`); with "correct", whether responses are right.
    """
    verdicts = [t.verdict for t in group.trajectories if t.verdict.status.scored]
    own = {v.terms.get("verdict", v.reward) for v in verdicts}
    differ = {"reward": True, "verdict": len(own) > 1, "correct": len({v.correct for v in verdicts}) > 1}
    return len({v.reward for v in verdicts}) > 1 and differ[by]


def no_signal(groups: Sequence[Group]) -> int:
    """Counts the groups without a gradient under a group baseline."""
    return sum(not informative(g) for g in groups)


def build_batches(
    trajectories: Sequence[Trajectory],
    advantages: Advantages,
    *,
    plan: BatchPlan,
    aggregation: Aggregation,
    temperature: float,
    length_scale: int = 0,
    measured: Sequence[Trajectory] = (),
    full_batch: int | None = None,
) -> list[RankBatch]:
    """Builds one RankBatch a rank. Raises ValueError where the numbers do not divide or a response is empty.

    advantages: one a trajectory, or for each an array with one a turn; a turn's tokens share it. length_scale: tokens that
    aggregation "constant" divides every response by; the others do not need it. measured: responses that are not trained on and
    belong to the iteration's entropy all the same. full_batch: how many trajectories `plan` is meant for, where there may be
    fewer. They are divided into as many updates of that plan's size as they fill, one at least, and what is left over is spread
    over these: an update is noisier only where fewer trajectories than one update's are left."""
    count = len(trajectories)
    if count != len(advantages):
        raise ValueError(f"{count} trajectories but {len(advantages)} advantages")
    if full_batch is None and count % plan.updates:
        raise ValueError(f"{count} trajectories cannot be divided into {plan.updates} equal updates")
    everything = [*trajectories, *measured]
    envs = tuple(sorted({t.prompt.env for t in everything}))
    updates = plan.updates
    if full_batch is not None:
        updates = min(updates, max(1, count * updates // full_batch), count)
    per_rank: list[list[tuple[MicroBatch, ...]]] = [[] for _ in range(plan.ranks)]
    for k in range(updates):
        members = list(range(k * count // updates, (k + 1) * count // updates))
        per_update = len(members)
        for i in members:
            if trajectories[i].response_tokens == 0:
                raise ValueError(
                    f"trajectory {trajectories[i].prompt.key} has no sampled token: its weight would be lost"
                )
        tokens = sum(trajectories[i].response_tokens for i in members)
        scale = {"token": tokens, "constant": per_update * length_scale}
        weight = {i: 1.0 / scale.get(aggregation, per_update * trajectories[i].response_tokens) for i in members}
        for rank, rows in enumerate(_shares(members, everything, advantages, weight, envs, plan)):
            per_rank[rank].append(rows)
    rest = list(range(count, len(everything)))
    nothing, silent = dict.fromkeys(rest, 0.0), np.zeros(len(everything))
    untrained = _shares(rest, everything, silent, nothing, envs, plan)
    sample = ledger_sample(count, plan.ledger_share)
    followed = _shares(sample, everything, silent, dict.fromkeys(sample, 0.0), envs, plan)
    return [
        RankBatch(
            updates=tuple(trained) * plan.epochs,
            envs=envs,
            temperature=temperature,
            measured=measured_only,
            ledger=ledger,
            steps=plan.updates * plan.epochs,
        )
        for trained, measured_only, ledger in zip(per_rank, untrained, followed, strict=True)
    ]


def ledger_sample(count: int, share: float) -> list[int]:
    """Chooses ceil(share * count) of `count` trajectories, evenly: with as many groups as that, one of each."""
    chosen = math.ceil(share * count)
    return [i * count // chosen for i in range(chosen)]


def _shares(
    members: Sequence[int],
    trajectories: Sequence[Trajectory],
    advantages: Advantages,
    weight: Mapping[int, float],
    envs: tuple[str, ...],
    plan: BatchPlan,
) -> list[tuple[MicroBatch, ...]]:
    """Returns each rank's micro-batches of these members, the same number for all."""
    length = {i: len(trajectories[i].token_ids) for i in members}
    shares: list[list[MicroBatch]] = []
    for share in _deal(members, [length[i] for i in members], plan.ranks):
        bins = _fill(share, {i: length[i] for i in share}, plan)
        rows = [_micro_batch(b, trajectories, advantages, [weight[i] for i in b], envs, plan.packing) for b in bins]
        shares.append(rows)
    longest = max(len(rows) for rows in shares)
    # An object each: the learner measures every micro-batch once, told apart by identity, and its passes must pair up.
    return [(*rows, *(_empty() for _ in range(longest - len(rows)))) for rows in shares]


def _deal(members: Sequence[int], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Deals members, longest first, to the rank with the fewest tokens so far (ties: fewest members, then lowest rank)."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for i, length in sorted(zip(members, lengths, strict=True), key=lambda x: (-x[1], x[0])):
        rank = min(range(ranks), key=lambda r: (load[r], len(shares[r]), r))
        shares[rank].append(i)
        load[rank] += length
    return shares


def _fill(share: Sequence[int], length: dict[int, int], plan: BatchPlan) -> list[list[int]]:
    """Fills members (longest first) into bins of at most micro_batch_tokens slots; a longer trajectory has a bin to itself.

    A padded bin of n rows costs n times its longest row; a packed bin costs the sum of its rows.
    """
    bins: list[list[int]] = []
    used = 0
    for i in share:
        if plan.packing:
            fits = bool(bins) and used + length[i] <= plan.micro_batch_tokens
        else:  # sorted: the first row of a bin is its longest
            fits = bool(bins) and (len(bins[-1]) + 1) * length[bins[-1][0]] <= plan.micro_batch_tokens
        if fits:
            bins[-1].append(i)
            used += length[i]
        else:
            bins.append([i])
            used = length[i]
    return bins


def _micro_batch(
    chosen: Sequence[int],
    trajectories: Sequence[Trajectory],
    advantages: Advantages,
    weights: Sequence[float],
    envs: tuple[str, ...],
    packing: bool,
) -> MicroBatch:
    ids = [np.array(trajectories[i].token_ids, np.int64) for i in chosen]
    if packing:
        width, rows = sum(map(len, ids)), 1
        origins = np.concatenate([[0], np.cumsum([len(x) for x in ids])[:-1]])
    else:
        width, rows = max(map(len, ids)), len(ids)
        origins = np.arange(rows) * width
    tokens = np.zeros(rows * width, np.int64)
    # Padding goes on counting: a restart would read as another packed trajectory and cost the slow attention mask. Pad
    # tokens come after every real token of their row, so a causal model never sees them.
    positions = np.tile(np.arange(width), rows)
    columns: dict[str, list[NDArray[Any]]] = {
        name: []
        for name in ("predict", "targets", "adv", "engine", "weight", "traj", "action_index", "last", "correct", "env")
    }
    for i, x, origin, weight in zip(chosen, ids, origins, weights, strict=True):
        tokens[origin : origin + len(x)] = x
        positions[origin : origin + len(x)] = np.arange(len(x))
        at = np.flatnonzero(trajectories[i].action_mask)
        if len(at) and at[0] == 0:
            raise ValueError(
                f"trajectory {trajectories[i].prompt.key} starts with a sampled token: nothing predicts it"
            )
        columns["predict"].append(origin + at - 1)
        columns["targets"].append(x[at])
        columns["engine"].append(np.array(trajectories[i].engine_logprobs, np.float32)[at])
        columns["action_index"].append(np.arange(len(at)))
        lengths = [len(turn.response_ids) for turn in trajectories[i].turns]
        columns["adv"].append(np.repeat(np.broadcast_to(advantages[i], len(lengths)), lengths))
        columns["last"].append(np.arange(len(at)) == len(at) - 1)
        for name, value in (
            ("weight", weight),
            ("traj", i),
            ("correct", trajectories[i].verdict.correct),
            ("env", envs.index(trajectories[i].prompt.env)),
        ):
            columns[name].append(np.full(len(at), value))
    flat: dict[str, NDArray[Any]] = {name: np.concatenate(pieces) for name, pieces in columns.items()}
    return MicroBatch(
        tokens=tokens.reshape(rows, width),
        positions=positions.reshape(rows, width),
        predict=flat["predict"],
        targets=flat["targets"],
        advantages=flat["adv"].astype(np.float32),
        engine_logprobs=flat["engine"],
        weight=flat["weight"].astype(np.float32),
        trajectory=flat["traj"].astype(np.int32),
        action_index=flat["action_index"].astype(np.int32),
        last=flat["last"].astype(np.bool_),
        correct=flat["correct"].astype(np.bool_),
        env=flat["env"].astype(np.int16),
    )


def _empty() -> MicroBatch:
    """Makes a forward pass of zero weight, for a rank that has fewer than the others."""
    i, f, b = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.bool_)
    short = i.astype(np.int32)
    one = np.zeros((1, 1), np.int64)
    return MicroBatch(one, one, i, i, f, f, f, short, short, b, b, i.astype(np.int16))
