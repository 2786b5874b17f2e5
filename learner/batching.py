"""Divides trajectories into micro-batches. Pure numpy; deterministic.

An iteration's trajectories are divided into equal updates, in order; those of an update are dealt to the ranks by what they cost
and filled into micro-batches of at most `micro_batch_tokens` token slots so that least is wasted (learner/microbatches/). Where
prompts are shared, it is those of an update and a prompt together that are dealt and filled.
Advantages and loss weights are set here, once, over the whole iteration, so that nothing downstream depends on how the batch was
divided. Where dynamic sampling dropped groups there are fewer updates, of the size that updates have otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from envs.types import Group, Trajectory
from learner.advantages import Advantage, returns_to_go, turn_baselines, whitened
from learner.diversity.rewards import tells_apart
from learner.diversity.settings import DiversitySettings
from learner.microbatches.partition import partition
from learner.microbatches.units import Member, Unit, deal, saved, shared_units, single_units
from learner.settings import BatchPlan
from learner.types import Aggregation, MicroBatch, RankBatch, SignalOf

T = TypeVar("T")

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


def informative(group: Group, by: SignalOf = "reward", diversity: DiversitySettings | None = None) -> bool:
    """Returns whether a group baseline leaves the group an advantage, and one that `by` lets count.

    It leaves none where all scored rewards are equal, or one is. With by "verdict" the environment's own rewards have to differ
    too, those before the terms that shape them (`Verdict.terms`); with "correct", whether responses are right.
    diversity: the section, where it is on: correct responses whose solutions are not equally frequent are then paid differently,
    and that counts whatever `by` says, which is about terms. The present coefficient does not matter, as it may move before a
    group is trained on.
    """
    if diversity is not None and tells_apart(group, diversity.compare_texts):
        return True
    verdicts = [t.verdict for t in group.trajectories if t.verdict.status.scored]
    own = {v.terms.get("verdict", v.reward) for v in verdicts}
    differ = {"reward": True, "verdict": len(own) > 1, "correct": len({v.correct for v in verdicts}) > 1}
    return len({v.reward for v in verdicts}) > 1 and differ[by]


def no_signal(groups: Sequence[Group], diversity: DiversitySettings | None = None) -> int:
    """Counts the groups without a gradient under a group baseline."""
    return sum(not informative(g, diversity=diversity) for g in groups)


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
    version: int = 0,
    staleness: int = 0,
    least_saved: float = 0.0,
) -> list[RankBatch]:
    """Builds one RankBatch a rank. Raises ValueError where the numbers do not divide or a response is empty.

    advantages: one a trajectory, or for each an array with one a turn; a turn's tokens share it. length_scale: tokens that
    aggregation "constant" divides every response by; the others do not need it. measured: responses that are not trained on and
    belong to the iteration's entropy all the same. full_batch: how many trajectories `plan` is meant for, where there may be
    fewer. They are divided into as many updates of that plan's size as they fill, one at least, and what is left over is spread
    over these: an update is noisier only where fewer trajectories than one update's are left. version: of the policy that is
    trained; staleness: by how many versions the tokens' may be behind it. least_saved: with `plan.prefix_sharing`, the share of an
    update's tokens that computing prompts once has to save for it to be done."""
    count = len(trajectories)
    _refuse(trajectories, len(advantages), 1 if full_batch is not None else plan.updates)
    everything = [*trajectories, *measured]
    envs = tuple(sorted({t.prompt.env for t in everything}))
    updates = plan.updates
    if full_batch is not None:
        updates = min(updates, max(1, count * updates // full_batch), count)
    per_rank: list[list[tuple[MicroBatch, ...]]] = [[] for _ in range(plan.ranks)]
    lay = partial(_shares, trajectories=everything, advantages=advantages, envs=envs, plan=plan, least=least_saved)
    for k in range(updates):
        members = list(_of_update(k, updates, count, plan.mixed))
        per_update = len(members)
        tokens = sum(trajectories[i].response_tokens for i in members)
        scale = {"token": tokens, "constant": per_update * length_scale}
        weight = {i: 1.0 / scale.get(aggregation, per_update * trajectories[i].response_tokens) for i in members}
        for rank, rows in enumerate(lay(members, weight=weight)):
            per_rank[rank].append(rows)
    rest = list(range(count, len(everything)))
    without = np.zeros(len(everything))
    untrained = lay(rest, weight=dict.fromkeys(rest, 0.0), advantages=without)
    sample = ledger_sample(count, plan.ledger_share)
    followed = lay(sample, weight=dict.fromkeys(sample, 0.0), advantages=without)
    return [
        RankBatch(
            updates=tuple(trained) * plan.epochs,
            envs=envs,
            temperature=temperature,
            measured=measured_only,
            ledger=ledger,
            steps=plan.updates * plan.epochs,
            version=version,
            staleness=staleness,
        )
        for trained, measured_only, ledger in zip(per_rank, untrained, followed, strict=True)
    ]


def _refuse(trajectories: Sequence[Trajectory], advantages: int, updates: int) -> None:
    """Raises ValueError where the numbers do not divide or a response is empty. updates: equal ones that are asked for."""
    count = len(trajectories)
    if count != advantages:
        raise ValueError(f"{count} trajectories but {advantages} advantages")
    if count % updates:
        raise ValueError(f"{count} trajectories cannot be divided into {updates} equal updates")
    if silent := next((t for t in trajectories if t.response_tokens == 0), None):
        raise ValueError(f"trajectory {silent.prompt.key} has no sampled token: its weight would be lost")


def _of_update(k: int, updates: int, count: int, mixed: bool) -> range:
    """Returns which of `count` trajectories, which stand by prompt, update k has: every so manieth, or a part of them."""
    return range(k, count, updates) if mixed else range(k * count // updates, (k + 1) * count // updates)


def ledger_sample(count: int, share: float) -> list[int]:
    """Chooses ceil(share * count) of `count` trajectories, evenly: with as many groups as that, one of each."""
    chosen = math.ceil(share * count)
    return [i * count // chosen for i in range(chosen)]


def _shares(
    members: Sequence[int],
    *,
    trajectories: Sequence[Trajectory],
    advantages: Advantages,
    weight: Mapping[int, float],
    envs: tuple[str, ...],
    plan: BatchPlan,
    least: float,
) -> list[tuple[MicroBatch, ...]]:
    """Returns each rank's micro-batches of these members, the same number for all."""
    shares: list[list[MicroBatch]] = []
    for share in deal(_units([trajectories[i] for i in members], members, plan, least), plan.ranks):
        rows: list[MicroBatch] = []
        for units in _fill(share, plan):
            chosen = [i for unit in units for i in unit.members]
            skipped = [n for unit in units for n in unit.skipped]
            weights = [weight[i] for i in chosen]
            rows.append(micro_batch(chosen, trajectories, advantages, weights, envs, bool(plan.packing), skipped))
        shares.append(rows)
    longest = max(len(rows) for rows in shares)
    # An object each: the learner measures every micro-batch once, told apart by identity, and its passes must pair up.
    return [(*rows, *(_empty() for _ in range(longest - len(rows)))) for rows in shares]


def _units(chosen: Sequence[Trajectory], members: Sequence[int], plan: BatchPlan, least: float) -> list[Unit]:
    """Returns what stands together, each in one micro-batch: responses with their prompt once, or a trajectory alone."""
    described = [
        Member(i, t.tokens, t.turns[0].context_ids if t.turns else ()) for i, t in zip(members, chosen, strict=True)
    ]
    if plan.packing and plan.prefix_sharing:
        units = shared_units(described, plan.ranks, plan.micro_batch_tokens)
        if saved(units, described) >= least:
            return units
    return single_units(described)


def _fill(share: Sequence[Unit], plan: BatchPlan) -> list[list[Unit]]:
    """Fills units, the most expensive first, into bins of at most micro_batch_tokens slots; a longer trajectory has one to itself.

    A packed bin has a slot for each of its tokens, and bins are as few as can be. A padded bin has its longest row's length for
    each row, and what all bins cost, their padding weighed against their number, is the least possible.
    """
    if not plan.packing:
        lengths = [unit.slots for unit in share]
        costs = [unit.cost for unit in share]
        sizes = partition(lengths, costs, overhead=plan.overhead_slots, slots=plan.micro_batch_tokens)
        ends = np.cumsum([0, *sizes])
        return [list(share[a:b]) for a, b in pairwise(ends)]
    bins: list[list[Unit]] = []
    used = 0
    for unit in share:
        if bins and used + unit.slots <= plan.micro_batch_tokens:
            bins[-1].append(unit)
            used += unit.slots
        else:
            bins.append([unit])
            used = unit.slots
    return bins


def micro_batch(
    chosen: Sequence[int],
    trajectories: Sequence[Trajectory],
    advantages: Advantages,
    weights: Sequence[float],
    envs: tuple[str, ...],
    packing: bool,
    skipped: Sequence[int] = (),
) -> MicroBatch:
    """Lays the chosen trajectories out as one micro-batch. weights: one each, of every token in the loss. skipped: in a packed row,
    how many of its first tokens each leaves out, which are those of the last one before it that leaves out none; () for 0 of all.
    """
    skipped = skipped or (0,) * len(chosen)
    rows = [_Row.of(trajectories[i]).without(n) for i, n in zip(chosen, skipped, strict=True)]
    lengths = np.array([len(row.ids) for row in rows])
    width, height = (int(lengths.sum()), 1) if packing else (int(lengths.max()), len(rows))
    origins = np.cumsum(lengths) - lengths if packing else np.arange(height) * width
    tokens = np.zeros(height * width, np.int64)
    # Padding goes on counting: a restart would read as another packed trajectory. Pad tokens come after every real token of their
    # row, so a causal model never sees them.
    positions = np.tile(np.arange(width), height)
    if packing:
        tokens[:] = _joined(row.ids for row in rows)
        positions += np.repeat(np.array(skipped) - origins, lengths)
    else:
        for row, origin in zip(rows, origins.tolist(), strict=True):
            tokens[origin : origin + len(row.ids)] = row.ids
    counts = np.array([len(row.at) for row in rows])  # action tokens
    ends = np.cumsum(counts)
    at = np.repeat(origins, counts) + np.array(_joined(row.at for row in rows), np.int64)
    last = np.zeros(len(at), np.bool_)
    last[ends[counts > 0] - 1] = True
    turns = [len(trajectories[i].turns) for i in chosen]
    if isinstance(advantages, np.ndarray):
        per_turn = np.repeat(advantages[np.array(chosen)], turns)
    else:
        per_turn = np.concatenate([advantages[i] for i in chosen])
    of_turn = np.array([n for row in rows for n in row.turn_lengths])
    members = [trajectories[i] for i in chosen]
    return MicroBatch(
        tokens=tokens.reshape(height, width),
        positions=positions.reshape(height, width),
        predict=at - 1,
        targets=tokens[at],
        advantages=np.repeat(per_turn, of_turn).astype(np.float32),
        engine_logprobs=np.array(_joined(row.engine for row in rows), np.float32),
        weight=np.repeat(np.array(weights, np.float64), counts).astype(np.float32),
        trajectory=np.repeat(np.array(chosen, np.int32), counts),
        action_index=(np.arange(len(at)) - np.repeat(ends - counts, counts)).astype(np.int32),
        last=last,
        correct=np.repeat(np.array([t.verdict.correct for t in members], np.bool_), counts),
        env=np.repeat(np.array([envs.index(t.prompt.env) for t in members], np.int16), counts),
        version=np.repeat(np.array([turn.version_min for t in members for turn in t.turns], np.int32), of_turn),
    )


def _joined(parts: Iterable[Sequence[T]]) -> list[T]:
    return [*chain.from_iterable(parts)]


class _Row(NamedTuple):
    """Holds a trajectory as lists: an array of a few numbers takes longer to make than these, and a micro-batch has one of all."""

    ids: list[int]
    at: list[int]  # where its action tokens are
    engine: list[float]  # their log-probs
    turn_lengths: list[int]

    @classmethod
    def of(cls, trajectory: Trajectory) -> _Row:
        """Lays out one trajectory. Raises ValueError where its first token was sampled: nothing predicts it."""
        turns = trajectory.turns
        if turns and turns[0].response_ids and not turns[0].context_ids:
            raise ValueError(f"trajectory {trajectory.prompt.key} starts with a sampled token: nothing predicts it")
        ids, at, engine, lengths = list[int](), list[int](), list[float](), list[int]()
        for turn in turns:
            ids += turn.context_ids
            at += range(len(ids), len(ids) + len(turn.response_ids))
            ids += turn.response_ids
            engine += turn.logprobs
            lengths.append(len(turn.response_ids))
        return cls(ids, at, engine, lengths)

    def without(self, count: int) -> _Row:
        """Returns the row without its first tokens, none of which is an action token."""
        return self._replace(ids=self.ids[count:], at=[i - count for i in self.at]) if count else self


def _empty() -> MicroBatch:
    """Makes a forward pass of zero weight, for a rank that has fewer than the others."""
    i, f, b = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.bool_)
    short = i.astype(np.int32)
    one = np.zeros((1, 1), np.int64)
    return MicroBatch(one, one, i, i, f, f, f, short, short, b, b, i.astype(np.int16), short)
