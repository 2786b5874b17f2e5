"""Decides which responses of an update stand in a row with their prompt once, and deals rows to ranks. Pure numpy; deterministic.

A unit is what a micro-batch has whole: one trajectory, or several of one prompt of which all but the first leave out the shared
prefix, the prompt without its last token. That token stays in every branch, so that each response is predicted from positions of
its own. A unit is as large as a micro-batch may be, and smaller where ranks could not be given equal work otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from learner.microbatches.partition import row_cost

# Pairs of a branch's tokens with those that its mask is over, at most: 4 MB of it. A longer response stands by itself, and is
# computed without a mask.
MASK_PAIRS = 2**22
# Of the mean rank's work: the largest units that are tried, the division whose slowest rank has least to do is taken.
FINENESS = (1.1, 1.05, 1.0, 0.5, 0.25, 0.125, 0.0)


class Member(NamedTuple):
    """Describes a trajectory: which it is, the number of its tokens, and those of the prompt that it begins with."""

    trajectory: int
    tokens: int
    prompt: tuple[int, ...]


class Unit(NamedTuple):
    """Holds trajectories that stand together in a row. skipped: of each, how many of its first tokens it leaves out."""

    members: tuple[int, ...]
    skipped: tuple[int, ...]
    slots: int
    cost: float


def single_units(members: Iterable[Member]) -> list[Unit]:
    """Returns a unit for each trajectory."""
    return [Unit((m.trajectory,), (0,), m.tokens, row_cost(m.tokens)) for m in members]


def shared_units(members: Iterable[Member], ranks: int, slots: int) -> list[Unit]:
    """Returns units of at most `slots` slots, but for a single trajectory that is longer."""
    groups: dict[tuple[int, ...], list[Member]] = {}
    for member in members:
        groups.setdefault(member.prompt, []).append(member)
    for group in groups.values():
        group.sort(key=lambda m: (-m.tokens, m.trajectory))  # the longest has no mask
    whole = [unit for group in groups.values() for unit in _split(group, slots, float("inf"))]
    if ranks == 1:
        return whole
    mean = sum(unit.cost for unit in whole) / ranks
    divisions = [[u for g in groups.values() for u in _split(g, slots, share * mean)] for share in FINENESS]
    return min(divisions, key=lambda units: max(sum(u.cost for u in share) for share in deal(units, ranks)))


def _split(group: Sequence[Member], slots: int, cost: float) -> list[Unit]:
    """Divides the trajectories of a prompt, longest first, into units of at most so many slots and so much cost."""
    units: list[Unit] = []
    for m in group:
        prefix = max(0, len(m.prompt) - 1)
        own = m.tokens - prefix
        more = row_cost(own, prefix)
        if units and prefix and own * m.tokens <= MASK_PAIRS:
            last = units[-1]
            if last.slots + own <= slots and last.cost + more <= cost:
                members, skipped = (*last.members, m.trajectory), (*last.skipped, prefix)
                units[-1] = Unit(members, skipped, last.slots + own, last.cost + more)
                continue
        units += single_units([m])
    return units


def saved(units: Iterable[Unit], members: Iterable[Member]) -> float:
    """Returns the share of the members' tokens that units leave out; 0 without members."""
    tokens = sum(m.tokens for m in members)
    return 1.0 - sum(unit.slots for unit in units) / tokens if tokens else 0.0


def deal(units: Iterable[Unit], ranks: int) -> list[list[Unit]]:
    """Deals units, the most expensive first, to the rank with the least to do so far (ties: fewest units, then lowest rank)."""
    shares: list[list[Unit]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for unit in sorted(units, key=lambda u: (-u.cost, u.members[0])):
        rank = min(range(ranks), key=lambda r: (load[r], len(shares[r]), r))
        shares[rank].append(unit)
        load[rank] += unit.cost
    return shares
