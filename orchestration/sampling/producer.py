"""Produces the groups that an iteration trains on. Synchronous: sampling begins when the loop awaits the batch."""

from __future__ import annotations

import math
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

from envs.types import Group
from orchestration.config.run_config import RunConfig
from orchestration.sampling.curriculum import Curriculum
from orchestration.sampling.dynamic_sampling import Sampled, sample
from orchestration.sampling.rollouts import Rollouts


class SynchronousProducer:
    """Samples one iteration's groups at a time, all of them by the present policy: between two batches nothing is under way."""

    def __init__(self, config: RunConfig, curriculum: Curriculum, rollouts: Rollouts) -> None:
        self._config, self._curriculum, self._rollouts = config, curriculum, rollouts
        self._before: Mapping[str, Any] = curriculum.state_dict()

    def next_batch(self, iteration: int, stage: RunConfig) -> Coroutine[Any, Any, Sampled]:
        """Returns a coroutine that samples the groups of `iteration`. stage: the run's configuration in the present stage.

        Consumes prompts of the curriculum; waits for generators and verifiers.
        """
        # Saved before the coroutine runs: were it cancelled before its first step, `abandon` would restore an older batch's state.
        self._before = self._curriculum.state_dict()
        collect = partial(
            self._rollouts.collect,
            sampling=stage.sampling,
            responses=self._config.batch.responses,
            temperature=stage.sampling.temperature,
            stamp=f"iteration {iteration}",
        )
        return sample(
            self._config.batch, self._curriculum.next, collect, self._config.dynamic_by, self._config.diversity
        )

    async def before_training(self, stage: RunConfig, responses: int) -> list[Group]:
        """Samples groups that are not trained on: see `before_training`."""
        return await before_training(self._config, self._curriculum, self._rollouts, stage, responses)

    def abandon(self) -> None:
        """Gives the prompts of an interrupted batch back to the curriculum: a resumed run draws them again."""
        self._curriculum.load_state_dict(self._before)

    async def end_stage(self) -> str:
        """Returns "": between two batches nothing is under way."""
        return ""

    async def close(self) -> None:
        """Ends nothing, likewise."""


async def before_training(
    config: RunConfig, curriculum: Curriculum, rollouts: Rollouts, stage: RunConfig, responses: int
) -> list[Group]:
    """Samples groups of at least `responses` responses that are not trained on; consumes no prompt of the curriculum.

    The prompts are those that training begins with, so that what is measured on them is of the same mixture. stage: the run's
    configuration in the present stage.
    """
    each, before = config.batch.responses, curriculum.state_dict()
    prompts = curriculum.next(math.ceil(responses / each))
    curriculum.load_state_dict(before)
    groups, _ = await rollouts.collect(
        prompts,
        sampling=stage.sampling,
        responses=each,
        temperature=stage.sampling.temperature,
        stamp=f"before stage {curriculum.index}",
    )
    return groups
