"""Which prompt comes next, and when the next stage does. Mixtures of environments by weight, one after the other; no torch.

Deterministic and resumable: the state is the stage, the place in it, the rewards its advance rule looks at, and how many prompts
each environment has given in each stage; with adaptive difficulty also how many of them came again, and what is known of those
that were tried.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.base import Environment
from envs.types import Group, Prompt, Split
from learner.batching import informative
from orchestration.config.run_config import RunConfig
from orchestration.config.sections import AdaptiveSection, AdvanceSection
from orchestration.sampling.prompt_pool import Tried
from orchestration.stats import mean


@dataclass(frozen=True, slots=True)
class Stage:
    """Stage("sums", shares=(0.0, 0.75, 0.25), iterations=40): its environments are the second and the third of the run's."""

    name: str
    shares: tuple[float, ...]  # of the prompts, by environment of the run; they sum to 1
    iterations: int  # with a rule: at most
    advance: AdvanceSection | None = None

    def over(self, iteration: int, rewards: Sequence[float]) -> bool:
        """Whether the stage ends with its `iteration`-th. rewards: the mean training rewards of the last iterations up to it, as
        many as the rule looks at."""
        if iteration >= self.iterations:
            return True
        rule = self.advance
        if rule is None or len(rewards) < rule.rewards:
            return False
        late = mean(rewards[-rule.window :])
        if rule.reward is not None:
            return late >= rule.reward
        return late - mean(rewards[-2 * rule.window : -rule.window]) <= (rule.plateau or 0.0)


def stages_of(config: RunConfig) -> list[Stage]:
    """The stages of a run; without any, the run as its only one."""
    everything = [(e.name, e.params) for e in config.all_environments]

    def stage(name: str, part: RunConfig, iterations: int, advance: AdvanceSection | None) -> Stage:
        weights = [0.0] * len(everything)
        for place, e in enumerate(part.environments):
            # Without stages the list is the run's own, in which the same environment may stand twice.
            weights[everything.index((e.name, e.params)) if config.stages else place] += e.weight
        return Stage(name, tuple(w / sum(weights) for w in weights), iterations, advance)

    if not config.stages:
        return [stage(config.run.name, config, config.iterations, None)]
    return [stage(s.name, config.at_stage(i), s.iterations, s.advance) for i, s in enumerate(config.stages)]


class Curriculum:
    """Within a stage, prompts in the proportion of its shares, as even as whole numbers allow (the environment furthest behind
    its share is next). A finite training split is walked in a new order every pass. A prompt's index goes on counting over the
    passes (splits wrap around) and over the stages, so that prompt keys, and with them request ids and seeds, are unique over
    a run.

    With adaptive difficulty some of an environment's prompts are ones it gave before, under the index of their first pass: the
    walk over new ones waits meanwhile. Keys are then unique within an iteration, which is named in ids and seeds."""

    def __init__(
        self,
        environments: Sequence[Environment],
        stages: Sequence[Stage],
        seed: int,
        adaptive: AdaptiveSection | None = None,
    ) -> None:
        self.environments, self.stages, self.seed = list(environments), list(stages), seed
        self.index = 0  # of the stage
        self.iteration = 0  # how many the stage has had
        self.rewards: list[float] = []  # of the last of these
        self.given = [[0] * len(self.environments) for _ in self.stages]
        self._orders: dict[tuple[int, int], list[int]] = {}
        self.tried = [Tried(adaptive) for _ in self.environments] if adaptive else []
        self.again = [0] * len(self.environments)  # how many of an environment's prompts were not new
        # Of this iteration: (environment, index) -> whether it came again.
        self._drawn: dict[tuple[int, int], bool] = {}

    # --- stages ---------------------------------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        return self.stages[self.index]

    @property
    def stage_ended(self) -> bool:
        return self.stage.over(self.iteration, self.rewards)

    @property
    def finished(self) -> bool:
        return self.stage_ended and self.index + 1 == len(self.stages)

    def observe(self, reward: float, groups: Sequence[tuple[int, Group]] = ()) -> dict[str, float]:
        """An iteration of the stage was done; its mean training reward, and all groups with their environments' indices. Returns
        metrics."""
        self.iteration += 1
        seen = 0 if self.stage.advance is None else self.stage.advance.rewards
        self.rewards = [*self.rewards, reward][-seen:] if seen else []
        metrics = self._learn(groups) if self.tried else {}
        self._drawn.clear()
        return metrics

    def _learn(self, groups: Sequence[tuple[int, Group]]) -> dict[str, float]:
        for tried in self.tried:
            tried.age()
        teaching: dict[bool, list[bool]] = {False: [], True: []}  # by whether the prompt came again
        for i, group in groups:
            task, verdicts = self._task(i, group.prompt.index), [t.verdict for t in group.trajectories]
            right = sum(v.status.scored and v.correct for v in verdicts)
            self.tried[i].learn(task, right, sum(v.status.scored for v in verdicts) - right)
            teaching[self._drawn.get((i, group.prompt.index), False)].append(informative(group))
        again, everything = teaching[True], teaching[True] + teaching[False]
        metrics = {"adaptive/known": float(sum(len(self.tried[i].known) for i in self._mine))}
        if metrics["adaptive/known"]:
            metrics["adaptive/solved"] = mean(self.tried[i].solved(t) for i in self._mine for t in self.tried[i].known)
        if everything:
            metrics["adaptive/revisited"] = len(again) / len(everything)
            metrics["adaptive/informative"] = mean(everything)
        if again:
            metrics["adaptive/informative_again"] = mean(again)
        return metrics

    def advance(self) -> None:
        """Into the next stage. Raises ValueError where there is none, or the stage has not ended."""
        if not self.stage_ended or self.finished:
            raise ValueError(
                f"stage {self.index} of {len(self.stages)}, '{self.stage.name}', is at iteration {self.iteration} of "
                f"{self.stage.iterations} and cannot be left"
            )
        self.index, self.iteration, self.rewards = self.index + 1, 0, []

    # --- prompts --------------------------------------------------------------------------------------------------------

    def next(self, count: int) -> list[tuple[int, Prompt]]:
        """(environment index, prompt) of the next `count` training prompts of the stage."""
        return [self._next() for _ in range(count)]

    def _next(self) -> tuple[int, Prompt]:
        shares, given = self.stage.shares, self.given[self.index]
        total = sum(given) + 1
        i = max(self._mine, key=lambda k: (shares[k] * total - given[k], -k))
        turn = sum(stage[i] for stage in self.given)
        given[i] += 1
        index = self._again(i, turn)
        again = index is not None
        self.again[i] += again
        if index is None:
            index = self._index(i, turn - self.again[i])
        self._drawn[i, index] = again
        return i, self.environments[i].prompt("train", index)

    @property
    def _mine(self) -> list[int]:
        """Environments of the stage. One of another stage has no share: never ahead of one that has, whatever the rounding."""
        return [k for k, share in enumerate(self.stage.shares) if share > 0]

    def _again(self, i: int, turn: int) -> int | None:
        """A prompt of environment i that was tried before, as its `turn`-th; None: a new one."""
        if not self.tried:
            return None
        drawn = {self._task(i, index) for k, index in self._drawn if k == i}
        return self.tried[i].again(random.Random(f"{self.seed}/{i}/{turn}/again"), drawn)

    def _task(self, i: int, index: int) -> int:
        """What a prompt asks: its index, in a finite split its place."""
        size = self.environments[i].size("train")
        return index if size is None else index % size

    def _index(self, i: int, position: int) -> int:
        size = self.environments[i].size("train")
        if size is None:
            return position
        epoch, offset = divmod(position, size)
        if (i, epoch) not in self._orders:
            order = list(range(size))
            random.Random(f"{self.seed}/{i}/{epoch}").shuffle(order)
            self._orders = {key: v for key, v in self._orders.items() if key[0] != i} | {(i, epoch): order}
        return epoch * size + self._orders[i, epoch][offset]

    def held_out(self, split: Split, count: int) -> list[tuple[int, Prompt]]:
        """The first `count` prompts of a split, of every environment of every stage; the same at every evaluation."""
        out = []
        for i, env in enumerate(self.environments):
            size = env.size(split)
            out += [(i, env.prompt(split, k)) for k in range(count if size is None else min(count, size))]
        return out

    # --- state ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": self.index,
            "iteration": self.iteration,
            "rewards": list(self.rewards),
            "given": [list(counts) for counts in self.given],
            **({"again": list(self.again), "tried": [t.state() for t in self.tried]} if self.tried else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of the same run, which may have been given more stages and environments since, after those it had."""
        self.index, self.iteration = int(state["stage"]), int(state["iteration"])
        self.rewards = [float(r) for r in state["rewards"]]
        for mine, counts in zip(self.given, state["given"], strict=False):
            mine[:] = [*counts, *[0] * (len(mine) - len(counts))]
        again = [int(n) for n in state.get("again", [])]
        self.again = [*again, *[0] * (len(self.environments) - len(again))]
        for k, tried in enumerate(self.tried):
            tried.load(state["tried"][k] if k < len(again) else [])
        self._drawn.clear()  # states are of whole iterations
