"""Decides which of an iteration's groups are trained on, and whether more are generated. Pure, but for what it awaits.

DAPO, arXiv 2503.14476, sec. 3.2: a group whose responses all have the same reward has no advantage, and a batch with many of
them has a small and noisy gradient. Where terms shape the reward, groups that are all right or all wrong differ by these alone:
`by` says what counts as a difference (learner/batching.py:informative). `filter` leaves groups without one out of the update;
`refill` also generates others in their place, in rounds, each of as many prompts as informative groups are missing: no informative
group is discarded, and the number of rounds is bounded. Which prompts come follows from the curriculum's position and from what
was sampled before, hence from the run's seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from envs.types import Group, Prompt, Trajectory
from learner.batching import informative
from learner.diversity.settings import DiversitySettings
from learner.tracing.spans import traced
from learner.types import SignalOf
from orchestration.config.sections import BatchSection

DrawFn = Callable[[int], list[Prompt]]
CollectFn = Callable[
    [list[Prompt]], Awaitable[tuple[list[Group], dict[str, float]]]
]  # groups in order, seconds by kind
DIFFERENT: dict[SignalOf, str] = {"reward": "reward", "verdict": "verdict", "correct": "correctness"}


@dataclass(frozen=True, slots=True)
class Sampled:
    """Holds every group that an iteration generated, in order, and which of them are trained on.

    kept     one for each group: whether it is trained on
    seconds  by kind of work: "generate", "verify"
    by       what the responses of a group had to differ in
    """

    groups: list[Group]
    kept: list[bool]
    rounds: int
    seconds: dict[str, float]
    by: SignalOf = "reward"

    @property
    def trained(self) -> list[Group]:
        """Lists the groups that are trained on."""
        return [g for g, keep in zip(self.groups, self.kept, strict=True) if keep]

    @property
    def measured(self) -> list[Trajectory]:
        """Lists the trajectories that are not trained on; entropy is measured on them all the same."""
        return [t for g, keep in zip(self.groups, self.kept, strict=True) if not keep for t in g.trajectories]

    def metrics(self) -> dict[str, float]:
        """Returns the metrics dynamic/..."""
        dropped = Counter(dropped_because(g) for g, keep in zip(self.groups, self.kept, strict=True) if not keep)
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
        """Describes, in a sentence, an iteration that trains on nothing."""
        m = self.metrics()
        return (
            f"none of {len(self.groups)} groups in {self.rounds} rounds has responses of different {DIFFERENT[self.by]} ("
            f"{m['dynamic/all_right']:g} all right, {m['dynamic/all_wrong']:g} all wrong, {m['dynamic/other']:g} other): entropy "
            "was measured, the weights stay as they are"
        )


def dropped_because(group: Group) -> str:
    """Classifies a group without advantages: "all right", "all wrong", or "other" (too few scored, or equal rewards by chance)."""
    correct = {t.verdict.correct for t in group.trajectories if t.verdict.status.scored}
    if sum(t.verdict.status.scored for t in group.trajectories) < 2 or len(correct) != 1:
        return "other"
    return "all right" if correct == {True} else "all wrong"


@traced("sample")
async def sample(
    batch: BatchSection,
    draw: DrawFn,
    collect: CollectFn,
    by: SignalOf = "reward",
    diversity: DiversitySettings | None = None,
) -> Sampled:
    """Generates an iteration's groups: batch.prompts, or with refill until so many are informative or the rounds are used up."""
    dynamic = batch.dynamic
    groups: list[Group] = []
    kept: list[bool] = []
    seconds: Counter[str] = Counter()
    rounds = 0
    while rounds == 0 or (dynamic.kind == "refill" and rounds < dynamic.max_rounds and sum(kept) < batch.prompts):
        collected, took = await collect(draw(batch.prompts - sum(kept)))
        groups += collected
        kept += [dynamic.kind == "none" or informative(group, by, diversity) for group in collected]
        seconds.update(took)
        rounds += 1
    return Sampled(groups, kept, rounds, dict(seconds), by)
