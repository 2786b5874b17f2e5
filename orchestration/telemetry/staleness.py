"""Measures how much older than the trained policy the one is that sampled a batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from envs.types import Group


def staleness(groups: Sequence[Group], version: int) -> dict[str, float]:
    """Returns the metrics staleness/... of a batch; version: that of the policy which the batch is to update.

    A turn is as old as its oldest token. Means are over tokens.
    """
    turns = [turn for g in groups for t in g.trajectories for turn in t.turns]
    tokens = sum(len(turn.response_ids) for turn in turns)
    ages = [version - turn.version_min for turn in turns]
    weighted = sum(age * len(turn.response_ids) for age, turn in zip(ages, turns, strict=True))
    spans = [
        max(turn.version_max for turn in t.turns) - min(turn.version_min for turn in t.turns)
        for g in groups
        for t in g.trajectories
    ]
    return {
        "staleness/mean": weighted / max(1, tokens),
        "staleness/max": float(max(ages)),
        "staleness/span": sum(spans) / len(spans),
        "staleness/span_max": float(max(spans)),
    }
