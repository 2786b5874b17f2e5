"""Chooses the next prompts, and when the next stage begins: mixtures of environments by weight, one after the other. No torch.

Deterministic and resumable: the state is the stage, the iteration in it, the rewards its advance rule looks at, and how many
prompts each environment has given in each stage; with adaptive difficulty also how many of them came again, and the counts of those
that were tried.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from envs.base import Environment
from envs.types import Group, Prompt, Split
from learner.batching import informative
from orchestration.config.run_config import RunConfig
from orchestration.config.sections import AdaptiveSection, AdvanceSection
from orchestration.group_stats import mean_reward
from orchestration.sampling.prompt_pool import PromptPool
from orchestration.stats import mean


@dataclass(frozen=True, slots=True)
class Stage:
    """Says in which proportion the run's environments are mixed, and when that ends.

    Example: Stage("sums", shares=(0.0, 0.75, 0.25), iterations=40) mixes the second and the third environment of the run.
    """

    name: str
    shares: tuple[float, ...]  # of the prompts, by environment of the run; they sum to 1
    iterations: int  # with a rule: at most
    advance: AdvanceSection | None = None

    def ends_at(self, iteration: int, rewards: Sequence[float]) -> bool:
        """Decides whether the stage ends with its `iteration`-th.

        rewards: the mean training rewards of the last iterations up to it, as many as the rule looks at.
        """
        if iteration >= self.iterations:
            return True
        rule = self.advance
        if rule is None or len(rewards) < rule.rewards:
            return False
        recent = mean(rewards[-rule.window :])
        if rule.reward is not None:
            return recent >= rule.reward
        return recent - mean(rewards[-2 * rule.window : -rule.window]) <= (rule.plateau or 0.0)


def stages_of(config: RunConfig) -> list[Stage]:
    """Lists the stages of a run; a run without any is its own only stage."""
    environments = [e.key for e in config.all_environments]

    def stage(name: str, part: RunConfig, iterations: int, advance: AdvanceSection | None) -> Stage:
        weights = [0.0] * len(environments)
        for position, e in enumerate(part.environments):
            # Without stages the list is the run's own, in which the same environment may be twice.
            weights[environments.index(e.key) if config.stages else position] += e.weight
        return Stage(name, tuple(w / sum(weights) for w in weights), iterations, advance)

    if not config.stages:
        return [stage(config.run.name, config, config.iterations, None)]
    return [stage(s.name, config.at_stage(i), s.iterations, s.advance) for i, s in enumerate(config.stages)]


class Curriculum:
    """Gives training prompts in the proportion of a stage's shares, and goes through the stages.

    The environment furthest behind its share is next, so that shares are kept as evenly as whole numbers allow. A finite training
    split is walked in a new order every pass. A prompt's index goes on counting over the passes (splits wrap around) and over the
    stages, so that prompt keys, and with them request ids and seeds, are unique over a run.

    With adaptive difficulty some of an environment's prompts are ones it gave before, under the index of their first pass; the
    walk over new ones waits meanwhile. Keys are then unique within an iteration, which is named in ids and seeds.
    """

    def __init__(
        self,
        environments: Sequence[Environment],
        stages: Sequence[Stage],
        seed: int,
        adaptive: AdaptiveSection | None = None,
        limits: Sequence[int | None]
        | None = None,  # by environment: how many of its training prompts are used; None: all
    ) -> None:
        self.environments, self.stages, self.seed = list(environments), list(stages), seed
        self._limits = list(limits or [None] * len(self.environments))
        self.index = 0  # of the stage
        self.iteration = 0  # how many the stage has had
        self.rewards: list[float] = []  # of the last of these
        self.given = [[0] * len(self.environments) for _ in self.stages]
        self._orders: dict[tuple[int, int], list[int]] = {}
        self.pools = [PromptPool(adaptive) for _ in self.environments] if adaptive else []
        self.revisits = [0] * len(self.environments)  # how many of an environment's prompts were not new
        # Of what was drawn and not observed: (environment, index) -> whether the prompt came again.
        self._drawn: dict[tuple[int, int], bool] = {}

    # --- stages ---------------------------------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """Returns the present stage."""
        return self.stages[self.index]

    @property
    def stage_ended(self) -> bool:
        """Says whether the present stage has had its last iteration."""
        return self.stage.ends_at(self.iteration, self.rewards)

    @property
    def left(self) -> int:
        """Returns how many iterations the present stage has left, at most."""
        return max(0, self.stage.iterations - self.iteration)

    @property
    def finished(self) -> bool:
        """Says whether the last stage has had its last iteration."""
        return self.stage_ended and self.index + 1 == len(self.stages)

    def observe(self, groups: Sequence[Group]) -> dict[str, float]:
        """Counts an iteration of the stage, given all of its groups, one at least. Returns the metrics adaptive/..."""
        self.iteration += 1
        needed = 0 if self.stage.advance is None else self.stage.advance.rewards
        self.rewards = [*self.rewards, mean_reward(groups)][-needed:] if needed else []
        metrics = self._learn(groups) if self.pools else {}
        for group in groups:
            self._drawn.pop((group.prompt.environment, group.prompt.index), None)
        return metrics

    def _learn(self, groups: Sequence[Group]) -> dict[str, float]:
        """Updates the prompt pools. Returns the metrics adaptive/..."""
        for pool in self.pools:
            pool.decay()
        informed: dict[bool, list[bool]] = {False: [], True: []}  # by whether the prompt came again
        for group in groups:
            i, index = group.prompt.environment, group.prompt.index
            verdicts = [t.verdict for t in group.trajectories]
            right = sum(v.status.scored and v.correct for v in verdicts)
            self.pools[i].learn(self._task(i, index), right, sum(v.status.scored for v in verdicts) - right)
            informed[self._drawn.get((i, index), False)].append(informative(group))
        revisited, every = informed[True], informed[True] + informed[False]
        pools = [self.pools[i] for i in self._in_stage]
        metrics = {"adaptive/known": float(sum(len(pool.counts) for pool in pools))}
        if metrics["adaptive/known"]:
            metrics["adaptive/solved"] = mean(pool.solve_rate(task) for pool in pools for task in pool.counts)
        if every:
            metrics["adaptive/revisited"] = len(revisited) / len(every)
            metrics["adaptive/informative"] = mean(every)
        if revisited:
            metrics["adaptive/informative_again"] = mean(revisited)
        return metrics

    def advance(self) -> None:
        """Goes over to the next stage. Raises ValueError where there is none, or the stage has not ended."""
        if not self.stage_ended or self.finished:
            raise ValueError(
                f"stage {self.index} of {len(self.stages)}, '{self.stage.name}', is at iteration {self.iteration} of "
                f"{self.stage.iterations} and cannot be left"
            )
        self.index, self.iteration, self.rewards = self.index + 1, 0, []

    # --- prompts --------------------------------------------------------------------------------------------------------

    def next(self, count: int) -> list[Prompt]:
        """Draws the next `count` training prompts of the stage."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Prompt:
        shares, given = self.stage.shares, self.given[self.index]
        total = sum(given) + 1
        i = max(self._in_stage, key=lambda k: (shares[k] * total - given[k], -k))
        ordinal = sum(stage[i] for stage in self.given)
        given[i] += 1
        index = self._revisit(i, ordinal)
        revisited = index is not None
        self.revisits[i] += revisited
        if index is None:
            index = self._index(i, ordinal - self.revisits[i])
        self._drawn[i, index] = revisited
        return self._prompt(i, "train", index)

    def came_again(self, prompt: Prompt) -> bool:
        """Says whether a prompt that was drawn, and not observed yet, had been given before."""
        return self._drawn.get((prompt.environment, prompt.index), False)

    def redraw(self, i: int, index: int, again: bool) -> Prompt:
        """Returns a training prompt of environment i that a checkpoint says was drawn and not observed, and counts it as that."""
        self._drawn[i, index] = again
        return self._prompt(i, "train", index)

    def _prompt(self, i: int, split: Split, index: int) -> Prompt:
        # An environment without end knows nothing of a limit: it is asked for one of its first prompts, whatever the pass.
        asked = index if split == "eval" or self._limits[i] is None else self._task(i, index)
        return replace(self.environments[i].prompt(split, asked), environment=i, index=index)

    def _size(self, i: int) -> int | None:
        """The number of prompts in a pass over an environment's training split; None: it has no end."""
        size, limit = self.environments[i].size("train"), self._limits[i]
        return size if limit is None else min(limit, size or limit)

    @property
    def _in_stage(self) -> list[int]:
        """Returns the environments with a share in this stage; the others are left out, so that rounding cannot pick one."""
        return [k for k, share in enumerate(self.stage.shares) if share > 0]

    def _revisit(self, i: int, ordinal: int) -> int | None:
        """The index of a prompt of environment i that was tried before, for its `ordinal`-th draw; None: take a new one."""
        if not self.pools:
            return None
        drawn = {self._task(i, index) for k, index in self._drawn if k == i}
        return self.pools[i].draw(random.Random(f"{self.seed}/{i}/{ordinal}/again"), drawn)

    def _task(self, i: int, index: int) -> int:
        """The number of the task that a prompt asks: in a finite split, which wraps around, its position in the split."""
        size = self._size(i)
        return index if size is None else index % size

    def _index(self, i: int, position: int) -> int:
        size = self._size(i)
        if size is None:
            return position
        epoch, offset = divmod(position, size)
        if (i, epoch) not in self._orders:
            order = list(range(size))
            random.Random(f"{self.seed}/{i}/{epoch}").shuffle(order)
            self._orders = {key: v for key, v in self._orders.items() if key[0] != i} | {(i, epoch): order}
        return epoch * size + self._orders[i, epoch][offset]

    def held_out(self, split: Split, count: int) -> list[Prompt]:
        """Lists the first `count` prompts of a split of every environment of every stage: the same at every evaluation."""
        prompts: list[Prompt] = []
        for i, env in enumerate(self.environments):
            size = env.size(split)
            prompts += [self._prompt(i, split, k) for k in range(count if size is None else min(count, size))]
        return prompts

    # --- state ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of the state, made of JSON values."""
        return {
            "stage": self.index,
            "iteration": self.iteration,
            "rewards": list(self.rewards),
            "given": [list(counts) for counts in self.given],
            **({"again": list(self.revisits), "tried": [p.state() for p in self.pools]} if self.pools else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state of the same run, which may have been given more stages and environments since, after those it had."""
        self.index, self.iteration = int(state["stage"]), int(state["iteration"])
        self.rewards = [float(r) for r in state["rewards"]]
        for given, counts in zip(self.given, state["given"], strict=False):
            given[:] = [*counts, *[0] * (len(given) - len(counts))]
        revisits = [int(n) for n in state.get("again", [])]
        self.revisits = [*revisits, *[0] * (len(self.environments) - len(revisits))]
        for k, pool in enumerate(self.pools):
            pool.load(state["tried"][k] if k < len(revisits) else [])
        self._drawn.clear()  # what was drawn ahead is drawn again: see `redraw`
