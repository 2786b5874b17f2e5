"""Evaluation on held-out prompts: pass@1, unbiased pass@k, distinct correct solutions, at several temperatures.

The same prompts and the same seeds every time, so that two evaluations differ by the policy alone. By the environments' own
verdicts: whatever else is rewarded in training has no say here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from actors.settings import SamplingSettings
from envs.types import Group, Prompt
from orchestration.config.sections import EvaluationSection
from orchestration.sampling.rollouts import Rollouts
from orchestration.stats import distinct_correct, mean_pass_at_k


async def evaluate(
    settings: EvaluationSection,
    sampling: SamplingSettings,
    prompts: Sequence[tuple[int, Prompt]],
    rollouts: Rollouts,
    stage: Callable[[str, float, float], None],
) -> dict[str, float]:
    """Metrics eval/ENV/...; ENV is the prompt's own env, so a mixture is shown by family."""
    row: dict[str, float] = {}
    total = len(settings.temperatures)
    for i, temperature in enumerate(settings.temperatures):
        stage("eval", i, total)
        # Greedy responses of one prompt are all the same: one of them says it all.
        samples = settings.samples if temperature > 0 else 1
        groups, _ = await rollouts.collect(
            prompts,
            sampling,
            responses=samples,
            temperature=temperature,
            stamp=f"eval/T={temperature:g}",
            bars=False,
            composed=False,
        )
        for env, members in sorted(by_env(groups).items()):
            row |= scores(env, members, [k for k in settings.ks if k <= samples], temperature, first=i == 0)
    stage("eval", total, total)
    return row


def by_env(groups: Sequence[Group]) -> dict[str, list[Group]]:
    out: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        out[group.prompt.env].append(group)
    return dict(out)


def scores(env: str, groups: Sequence[Group], ks: Sequence[int], temperature: float, first: bool) -> dict[str, float]:
    """Groups of one env at one temperature. `first`: the temperature whose figures also go by the short names."""
    counts = [(len(g.trajectories), sum(t.verdict.correct for t in g.trajectories)) for g in groups]
    row: dict[str, float] = {}
    for k in ks:
        value = mean_pass_at_k(counts, k)
        row[f"eval/{env}/pass@{k}/T={temperature:g}"] = value
        if first:
            row[f"eval/{env}/pass@{k}"] = value
    if first:
        row[f"eval/{env}/distinct_correct"] = sum(distinct(g) for g in groups) / len(groups)
    return row


def distinct(group: Group) -> int:
    """Different correct solutions among a prompt's responses, by the environment's canonical form where it gives one."""
    answers = [t.verdict.solution if t.verdict.solution is not None else t.texts[-1] for t in group.trajectories]
    return distinct_correct(answers, [t.verdict.correct for t in group.trajectories])
