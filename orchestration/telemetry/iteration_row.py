"""Builds an iteration's row of metrics from what its stages returned. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.types import Group
from learner.diversity.settings import DiversitySettings
from orchestration.telemetry.rollout_metrics import describe


@dataclass(frozen=True, slots=True)
class Iteration:
    """Holds the results of one iteration of training.

    number          counts from 1 over the run
    policy_version  version of the weights that the generators have after it
    groups          every group that was generated, whether it was trained on or not
    update          the learner's metrics
    logprob_gap     engine against trainer
    sampling        metrics of dynamic sampling, and of the age of what was sampled; empty without either
    curriculum      metrics of adaptive difficulty, and the position in the stages
    seconds         by stage: generate, verify, train, sync, and the waits of an asynchronous run
    total_seconds   wall time of the iteration, without evaluation and checkpoint
    sent_bytes      size of the weights that were sent
    diversity       the section, where it is on: which groups have a gradient depends on it
    cluster         metrics of its actors
    ended_at        seconds since the epoch
    """

    number: int
    policy_version: int
    groups: Sequence[Group]
    update: Mapping[str, float]
    logprob_gap: Mapping[str, float]
    sampling: Mapping[str, float]
    curriculum: Mapping[str, float]
    seconds: Mapping[str, float]
    total_seconds: float
    sent_bytes: int
    diversity: DiversitySettings | None = None
    cluster: Mapping[str, float] = field(default_factory=dict[str, float])
    ended_at: float = field(default_factory=time.time)


def iteration_row(iteration: Iteration) -> dict[str, float]:
    """Returns the row of an iteration, to which an evaluation and the reward-hacking monitor add theirs."""
    tokens = sum(t.response_tokens for g in iteration.groups for t in g.trajectories)
    return {
        **iteration.update,
        **describe(iteration.groups, iteration.diversity),
        **iteration.logprob_gap,
        **{f"time/{stage}": seconds for stage, seconds in iteration.seconds.items()},
        **iteration.sampling,
        **iteration.curriculum,
        **iteration.cluster,
        "iteration": float(iteration.number),
        "policy_version": float(iteration.policy_version),
        "time/iteration": iteration.total_seconds,
        "time/unix": iteration.ended_at,
        "sync/bytes": float(iteration.sent_bytes),
        "tokens/generated": float(tokens),
        "tokens/per_second": tokens / iteration.total_seconds,
    }
