"""Evaluates a policy on held-out prompts: pass@1, unbiased pass@k and distinct correct solutions, at several temperatures.

The prompts and the seeds are the same every time, so that two evaluations differ by the policy alone. Rewards are the
environments' own verdicts: other terms of a training reward do not count here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors.settings import SamplingSettings
from envs.types import Group, Prompt
from orchestration.config.sections import EvaluationSection
from orchestration.group_stats import by_env, distinct_solutions
from orchestration.sampling.rollouts import Rollouts
from orchestration.stats import mean_pass_at_k


async def evaluate(
    settings: EvaluationSection,
    sampling: SamplingSettings,
    prompts: Sequence[Prompt],
    rollouts: Rollouts,
    show_progress: Callable[[str, float, float], None],
) -> dict[str, float]:
    """Returns metrics eval/ENV/...; ENV is the prompt's own env, so a mixture is shown by family."""
    row: dict[str, float] = {}
    total = len(settings.temperatures)
    for i, temperature in enumerate(settings.temperatures):
        show_progress("eval", i, total)
        # Greedy responses of one prompt are all the same: one is enough.
        samples = settings.samples if temperature > 0 else 1
        groups, _ = await rollouts.collect(
            prompts,
            sampling,
            responses=samples,
            temperature=temperature,
            stamp=f"eval/T={temperature:g}",
            progress=False,
            with_terms=False,
        )
        for env, members in sorted(by_env(groups).items()):
            row |= scores(env, members, [k for k in settings.ks if k <= samples], temperature, first=i == 0)
    show_progress("eval", total, total)
    return row


def scores(env: str, groups: Sequence[Group], ks: Sequence[int], temperature: float, first: bool) -> dict[str, float]:
    """Returns the metrics of one env at one temperature; those of the `first` temperature also go by the short names."""
    counts = [(len(g.trajectories), sum(t.verdict.correct for t in g.trajectories)) for g in groups]
    row: dict[str, float] = {}
    for k in ks:
        value = mean_pass_at_k(counts, k)
        row[f"eval/{env}/pass@{k}/T={temperature:g}"] = value
        if first:
            row[f"eval/{env}/pass@{k}"] = value
    if first:
        row[f"eval/{env}/distinct_correct"] = sum(distinct_solutions(g) for g in groups) / len(groups)
    return row
