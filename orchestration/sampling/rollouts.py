"""Many rollouts at once: prompts -> groups, with the clocks and the bars a person watches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from actors.inference import Completion, Request
from actors.pool import GeneratorPool, VerifierPool
from actors.rewards.composite import FinishedTrajectory, RewardFunction
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Group, Observation, Prompt, Verdict
from orchestration.config.run_config import RunConfig
from orchestration.sampling.codec import HFCodec


class BusyClock:
    """Wall time during which at least one call of a kind was under way; kinds overlap, so they need not add up."""

    def __init__(self) -> None:
        self._under_way = 0
        self._since = 0.0
        self.seconds = 0.0

    def __enter__(self) -> None:
        if self._under_way == 0:
            self._since = time.perf_counter()
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self.seconds += time.perf_counter() - self._since


class Rollouts:
    """`collect` consumes prompts, waits for generators and verifiers, returns groups in the order of the prompts.

    composite: what the reward is made of beside the environment's verdict; None for that alone.
    """

    def __init__(
        self,
        config: RunConfig,
        generators: GeneratorPool,
        verifiers: VerifierPool,
        codec: HFCodec,
        stage: Callable[[str, float, float], None],
        composite: RewardFunction | None = None,
    ) -> None:
        self._composite = composite
        self._config, self._codec, self._stage = config, codec, stage
        self._generators, self._verifiers = generators, verifiers

    def render(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids, as they go to the generators."""
        return self._codec.render(prompt.messages)

    def save_tokenizer(self, folder: Path) -> None:
        """Beside the weights, so that the folder serves by itself."""
        self._codec.save(folder)

    async def collect(
        self,
        prompts: Sequence[tuple[int, Prompt]],
        sampling: SamplingSettings,
        *,
        responses: int,
        temperature: float,
        stamp: str,
        bars: bool = True,
        composed: bool = True,
    ) -> tuple[list[Group], dict[str, float]]:
        """prompts: (environment index, prompt); `temperature` takes the place of that of `sampling`; composed=False leaves the
        environment's verdicts as they are. Beside the groups: seconds spent in `generate` and in `verify`."""
        settings = RolloutSettings(
            sampling=sampling,
            responses=responses,
            max_model_len=self._config.generators.max_model_len,
            seed=self._config.run.seed,
            stop_token_ids=self._codec.stop_token_ids,
            temperature=temperature,
        )
        total = len(prompts) * responses
        clocks = {"generate": BusyClock(), "verify": BusyClock()}
        done = {"generate": 0, "verify": 0}

        def advance(name: str, count: int) -> None:
            done[name] += count
            if bars:
                self._stage(name, min(done[name], total), total)

        async def generate(requests: Sequence[Request]) -> list[Completion]:
            with clocks["generate"]:
                completions = await self._generators.generate(requests)
            advance("generate", len(requests))
            return completions

        async def score(request: ScoreRequest) -> Observation | Verdict:
            with clocks["verify"]:
                result = await self._verifiers.score(request)
            advance("verify", int(isinstance(result, Verdict)))
            return result

        composite = self._composite if composed else None

        async def reward(ended: FinishedTrajectory) -> Verdict:
            with clocks["verify"]:
                return ended.trajectory.verdict if composite is None else await composite(ended)

        advance("generate", 0)
        rollout = partial(
            rollout_group,
            generate=generate,
            score=score,
            codec=self._codec,
            settings=settings,
            stamp=stamp,
            reward=reward,
            release=self._verifiers.release,
        )
        groups = await asyncio.gather(*(rollout(prompt, env) for env, prompt in prompts))
        return list(groups), {name: clock.seconds for name, clock in clocks.items()}
