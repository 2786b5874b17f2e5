"""Dynamic sampling: which of an iteration's groups are trained on, and whether more are generated. Pure but for the awaiting.

DAPO, arXiv 2503.14476, sec. 3.2: a group whose responses all have the same reward has no advantage, and a batch with many of
them has a small and noisy gradient. `filter` leaves them out of the update; `refill` also generates others in their place. In
rounds, each of as many prompts as informative groups are missing: none that teaches is thrown away, and the number of rounds is
bounded. Which prompts come follows from the curriculum's position and from what was sampled before, hence from the run's seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from envs.types import Group, Prompt, Trajectory
from learner.batching import informative
from orchestration.config.sections import BatchSection

Drawn = list[tuple[int, Prompt]]  # (environment index, prompt)
DrawFn = Callable[[int], Drawn]
CollectFn = Callable[[Drawn], Awaitable[tuple[list[Group], dict[str, float]]]]  # groups in order, seconds by kind


@dataclass(frozen=True, slots=True)
class Sampled:
    """The groups of one iteration, every one that was generated, in order, and what is done with them."""

    environments: list[int]  # index of each group's environment
    groups: list[Group]
    kept: list[bool]  # whether the group is trained on
    rounds: int
    seconds: dict[str, float]

    @property
    def trained(self) -> list[Group]:
        return [g for g, keep in zip(self.groups, self.kept, strict=True) if keep]

    @property
    def measured(self) -> list[Trajectory]:
        """Responses that are not trained on."""
        return [t for g, keep in zip(self.groups, self.kept, strict=True) if not keep for t in g.trajectories]

    def metrics(self) -> dict[str, float]:
        dropped = Counter(verdict(g) for g, keep in zip(self.groups, self.kept, strict=True) if not keep)
        return {
            "dynamic/rounds": float(self.rounds),
            "dynamic/generated": float(len(self.groups)),
            "dynamic/trained": float(sum(self.kept)),
            "dynamic/all_right": float(dropped["all right"]),
            "dynamic/all_wrong": float(dropped["all wrong"]),
            "dynamic/other": float(dropped["other"]),
            "dynamic/skipped": float(not any(self.kept)),
        }

    def nothing_left(self) -> str:
        """A sentence for an iteration that trains on nothing."""
        m = self.metrics()
        return (
            f"none of {len(self.groups)} groups in {self.rounds} rounds has responses of different reward ("
            f"{m['dynamic/all_right']:g} all right, {m['dynamic/all_wrong']:g} all wrong, {m['dynamic/other']:g} other): entropy "
            "was measured, the weights stay as they are"
        )


def verdict(group: Group) -> str:
    """What a group without advantages is: "all right", "all wrong", or "other": too few scored, or of one reward by chance."""
    scored = {t.verdict.correct for t in group.trajectories if t.verdict.status.scored}
    if sum(t.verdict.status.scored for t in group.trajectories) < 2 or len(scored) != 1:
        return "other"
    return "all right" if scored == {True} else "all wrong"


async def sample(batch: BatchSection, draw: DrawFn, collect: CollectFn) -> Sampled:
    """One iteration's groups: batch.prompts of them, or, with refill, until so many are informative or the rounds are used up."""
    dynamic = batch.dynamic
    environments: list[int] = []
    groups: list[Group] = []
    kept: list[bool] = []
    seconds: Counter[str] = Counter()
    rounds = 0
    while rounds == 0 or (dynamic.kind == "refill" and rounds < dynamic.max_rounds and sum(kept) < batch.prompts):
        prompts = draw(batch.prompts - sum(kept))
        found, spent = await collect(prompts)
        environments += [environment for environment, _ in prompts]
        groups += found
        kept += [dynamic.kind == "none" or informative(group) for group in found]
        seconds.update(spent)
        rounds += 1
    return Sampled(environments, groups, kept, rounds, dict(seconds))
