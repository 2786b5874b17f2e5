"""Computes statistics of scored groups that sampling and telemetry share. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from envs.types import Group, Verdict
from orchestration.stats import distinct_correct


def scored_rewards(verdicts: Iterable[Verdict]) -> list[float]:
    """Lists the rewards of the responses that were scored; where none was, those of all of them, which are 0.

    A failure of a verifier or a judge must not look like a fall of the reward.
    """
    every = list(verdicts)
    return [v.reward for v in every if v.status.scored] or [v.reward for v in every]


def mean_reward(groups: Sequence[Group]) -> float:
    """Returns the metric reward/mean: the mean of `scored_rewards` over all responses. Needs one group at least."""
    rewards = scored_rewards(t.verdict for g in groups for t in g.trajectories)
    return sum(rewards) / len(rewards)


def by_env(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Sorts groups by their prompt's `env`, in the order in which each first appears."""
    sorted_groups: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        sorted_groups[group.prompt.env].append(group)
    return dict(sorted_groups)


def distinct_solutions(group: Group) -> int:
    """Counts the different correct solutions among a prompt's responses, by the environment's canonical form where it gives one."""
    answers = [t.verdict.solution if t.verdict.solution is not None else t.texts[-1] for t in group.trajectories]
    return distinct_correct(answers, [t.verdict.correct for t in group.trajectories])
