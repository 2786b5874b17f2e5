"""What an iteration's responses say: their part of the row of metrics, and the samples that are kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from envs.types import Group, Status, Trajectory, Verdict
from learner.batching import no_signal
from orchestration.sampling.evaluation import by_env, distinct
from orchestration.telemetry.sinks.base import Sample


def describe(groups: Sequence[Group], trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Rewards, their terms, lengths and statuses of an iteration's responses; by environment too."""
    rewards = _rewards([t.verdict for t in trajectories])
    lengths = [t.response_tokens for t in trajectories]
    mean = sum(rewards) / len(rewards)
    row = {
        "reward/mean": mean,
        "reward/std": (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5,
        "correct/mean": sum(t.verdict.correct for t in trajectories) / len(trajectories),
        "groups/no_signal": float(no_signal(groups)),
        "response/length_mean": sum(lengths) / len(lengths),
        "response/length_max": float(max(lengths)),
        "responses/distinct": sum(len({t.texts for t in g.trajectories}) for g in groups) / len(groups),
        "responses/distinct_correct": sum(distinct(g) for g in groups) / len(groups),
    }
    for status in Status:
        row[f"status/{status}"] = sum(t.verdict.status is status for t in trajectories) / len(trajectories)
    row |= _terms([t.verdict for t in trajectories])
    for env, members in by_env(groups).items():
        verdicts = [t.verdict for g in members for t in g.trajectories]
        rewards = _rewards(verdicts)
        row[f"reward/{env}"] = sum(rewards) / len(rewards)
        row[f"correct/{env}"] = sum(v.correct for v in verdicts) / len(verdicts)
        row[f"response/length/{env}"] = sum(t.response_tokens for g in members for t in g.trajectories) / len(verdicts)
        row[f"groups/no_signal/{env}"] = float(no_signal(members))
        row |= {f"{key}/{env}": value for key, value in _terms(verdicts).items()}
        for status in Status:
            row[f"status/{status}/{env}"] = sum(v.status is status for v in verdicts) / len(verdicts)
    return row


def _rewards(verdicts: Sequence[Verdict]) -> list[float]:
    """Of the responses that were scored; where none was, of all: 0. An outage of a judge is no fall of the reward."""
    return [v.reward for v in verdicts if v.status.scored] or [v.reward for v in verdicts]


def _terms(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Each term's mean over the responses that have it: one that failed has no value, which is not 0."""
    row = {}
    for name in dict.fromkeys(name for v in verdicts for name in v.terms):
        values = [v.terms[name] for v in verdicts if name in v.terms]
        row[f"term/{name}"] = sum(values) / len(values)
    return row


def samples(iteration: int, trajectories: Sequence[Trajectory], count: int) -> list[Sample]:
    """`count` responses, spread over the batch; the last one's text where there are several turns."""
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
            **({"terms": dict(t.verdict.terms)} if t.verdict.terms else {}),
        }
        for t in trajectories[::step][:count]
    ]
