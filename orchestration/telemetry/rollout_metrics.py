"""Computes the metrics of an iteration's responses, and picks the samples that are kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from envs.types import Group, Status, Trajectory, Verdict
from learner.batching import no_signal
from learner.diversity.settings import DiversitySettings
from orchestration.group_stats import by_env, distinct_solutions, mean_reward, scored_rewards
from orchestration.telemetry.sinks.base import Sample


def describe(groups: Sequence[Group], diversity: DiversitySettings | None = None) -> dict[str, float]:
    """Returns rewards, their terms, lengths and statuses of an iteration's responses, over all of them and by environment.

    Rewards are those that were given, not what `diversity` makes of them.
    """
    trajectories = [t for g in groups for t in g.trajectories]
    rewards = scored_rewards(t.verdict for t in trajectories)
    lengths = [t.response_tokens for t in trajectories]
    mean = mean_reward(groups)
    row = {
        "reward/mean": mean,
        "reward/std": (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5,
        "correct/mean": sum(t.verdict.correct for t in trajectories) / len(trajectories),
        "groups/no_signal": float(no_signal(groups, diversity)),
        "response/length_mean": sum(lengths) / len(lengths),
        "response/length_max": float(max(lengths)),
        "responses/distinct": sum(len({t.texts for t in g.trajectories}) for g in groups) / len(groups),
        "responses/distinct_correct": sum(distinct_solutions(g) for g in groups) / len(groups),
    }
    for status in Status:
        row[f"status/{status}"] = sum(t.verdict.status is status for t in trajectories) / len(trajectories)
    row |= _terms([t.verdict for t in trajectories])
    for env, members in by_env(groups).items():
        row |= _of_environment(env, members, diversity)
    return row


def _of_environment(env: str, groups: Sequence[Group], diversity: DiversitySettings | None) -> dict[str, float]:
    verdicts = [t.verdict for g in groups for t in g.trajectories]
    row = {
        f"reward/{env}": mean_reward(groups),
        f"correct/{env}": sum(v.correct for v in verdicts) / len(verdicts),
        f"response/length/{env}": sum(t.response_tokens for g in groups for t in g.trajectories) / len(verdicts),
        f"groups/no_signal/{env}": float(no_signal(groups, diversity)),
    }
    row |= {f"{key}/{env}": value for key, value in _terms(verdicts).items()}
    for status in Status:
        row[f"status/{status}/{env}"] = sum(v.status is status for v in verdicts) / len(verdicts)
    return row


def _terms(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Each term's mean over the responses that have it: one that failed has no value, which is not 0."""
    row: dict[str, float] = {}
    for name in dict.fromkeys(name for v in verdicts for name in v.terms):
        values = [v.terms[name] for v in verdicts if name in v.terms]
        row[f"term/{name}"] = sum(values) / len(values)
    return row


def samples(iteration: int, trajectories: Sequence[Trajectory], count: int, tokens: bool = False) -> list[Sample]:
    """Picks `count` trajectories, spread over the batch, for samples.jsonl; the responses of several turns are joined.

    tokens: adds what is needed to find the prompt and to compute the log-probs again.
    """
    step = max(1, len(trajectories) // count) if count else 1
    return [
        {
            "iteration": iteration,
            "env": t.prompt.env,
            "prompt": t.prompt.messages[-1].content if t.prompt.messages else "",
            "response": "\n".join(t.texts),
            "reward": t.verdict.reward,
            "correct": t.verdict.correct,
            "status": str(t.verdict.status),
            # Why it was not scored.
            **({"detail": t.verdict.detail} if t.verdict.detail and not t.verdict.status.scored else {}),
            **({"terms": dict(t.verdict.terms)} if t.verdict.terms else {}),
            **(_tokens(t) if tokens else {}),
        }
        for t in trajectories[::step][:count]
    ]


def _tokens(trajectory: Trajectory) -> Sample:
    """Returns the prompt's index, ids and log-probs of every turn, and the oldest and newest version that sampled a token."""
    turns = trajectory.turns
    return {
        "index": trajectory.prompt.index,
        "versions": [min(turn.version_min for turn in turns), max(turn.version_max for turn in turns)],
        "turns": [
            {"context": list(turn.context_ids), "response": list(turn.response_ids), "logprobs": list(turn.logprobs)}
            for turn in turns
        ],
    }
