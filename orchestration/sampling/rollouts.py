"""Plays many rollouts at once, prompts to groups, and measures how long generators and verifiers were busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from actors.inference import Completion, Request
from actors.pool import GeneratorPool, VerifierPool
from actors.rewards.composite import FinishedTrajectory, RewardFunction
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Group, Observation, Prompt, Verdict
from orchestration.config.run_config import RunConfig
from orchestration.sampling.codec import HFCodec

ProgressFn = Callable[[str, float, float], None]  # name of a phase, how much of it is done, how much there is


class PlayFn(Protocol):
    """Samples and scores one group."""

    def __call__(self, prompt: Prompt, *, stamp: str) -> Coroutine[Any, Any, Group]: ...


class BusyClock:
    """Measures the wall time during which at least one call of a kind was under way; kinds overlap, so they need not add up."""

    def __init__(self) -> None:
        self._under_way = 0
        self._since = 0.0
        self._ended = 0.0

    @property
    def seconds(self) -> float:
        """Returns the seconds so far, those of what is under way among them."""
        return self._ended + (time.perf_counter() - self._since if self._under_way else 0.0)

    def __enter__(self) -> None:
        if self._under_way == 0:
            self._since = time.perf_counter()
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._ended += time.perf_counter() - self._since


class Rollouts:
    """Turns prompts into groups on the run's generators and verifiers, in the order of the prompts.

    reward: adds the terms of a reward to the environment's verdict; None where the verdict is all.
    """

    def __init__(
        self,
        config: RunConfig,
        generators: GeneratorPool,
        verifiers: VerifierPool,
        codec: HFCodec,
        show_progress: ProgressFn,
        reward: RewardFunction | None = None,
    ) -> None:
        self._config, self._codec, self._show_progress = config, codec, show_progress
        self._generators, self._verifiers, self._reward = generators, verifiers, reward

    def render(self, prompt: Prompt) -> tuple[int, ...]:
        """Returns the prompt's token ids, as they go to the generators."""
        return self._codec.render(prompt.messages)

    def save_tokenizer(self, folder: Path) -> None:
        """Saves the tokenizer beside the weights, so that the folder can be served by itself."""
        self._codec.save(folder)

    async def collect(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        *,
        responses: int,
        temperature: float,
        stamp: str,
        progress: bool = True,
        with_terms: bool = True,
    ) -> tuple[list[Group], dict[str, float]]:
        """Samples and scores `responses` trajectories of each prompt; returns the groups, and the seconds by kind of work.

        temperature  replaces that of `sampling`
        stamp        names the pass in request ids and seeds: "iteration 3"
        progress     shows the pass as the phases generate and verify
        with_terms   False leaves the environment's verdicts as they are
        """
        total = len(prompts) * responses
        measured = MeasuredPass(self._generators, self._verifiers, self._show_progress if progress else None, total)
        play = self.player(measured, sampling, responses=responses, temperature=temperature, with_terms=with_terms)
        groups = await asyncio.gather(*(play(prompt, stamp=stamp) for prompt in prompts))
        return list(groups), measured.seconds

    def continuous(self) -> MeasuredPass:
        """Returns a pass that goes on beside the training, whose clocks count from now on."""
        return MeasuredPass(self._generators, self._verifiers, None, 0)

    def player(
        self,
        measured: MeasuredPass,
        sampling: SamplingSettings,
        *,
        responses: int,
        temperature: float,
        with_terms: bool = True,
    ) -> PlayFn:
        """Returns what samples and scores one group of a pass, given its prompt and `stamp`; the rest as in `collect`."""
        return partial(
            rollout_group,
            begin=measured.begin,
            score=measured.score,
            codec=self._codec,
            settings=self._settings(sampling, responses, temperature),
            reward=partial(measured.reward, self._reward) if self._reward is not None and with_terms else None,
            release=self._verifiers.release,
        )

    def _settings(self, sampling: SamplingSettings, responses: int, temperature: float) -> RolloutSettings:
        return RolloutSettings(
            sampling=sampling,
            responses=responses,
            max_model_len=self._config.generators.max_model_len,
            seed=self._config.run.seed,
            stop_token_ids=self._codec.stop_token_ids,
            temperature=temperature,
        )


class MeasuredPass:
    """Passes the calls of rollouts on, with clocks around them and, given `show`, their progress out of `total` responses."""

    def __init__(
        self,
        generators: GeneratorPool,
        verifiers: VerifierPool,
        show: ProgressFn | None,
        total: int,
    ) -> None:
        self._generators, self._verifiers = generators, verifiers
        self._show, self._total = show, total
        self._clocks = {"generate": BusyClock(), "verify": BusyClock()}
        self._done = {"generate": 0, "verify": 0}
        self._advance("generate", 0)

    @property
    def seconds(self) -> dict[str, float]:
        return {name: clock.seconds for name, clock in self._clocks.items()}

    def _advance(self, name: str, count: int) -> None:
        self._done[name] += count
        if self._show is not None:
            self._show(name, min(self._done[name], self._total), self._total)

    def begin(self, requests: Sequence[Request]) -> list[asyncio.Future[Completion]]:
        futures = self._generators.begin(requests)
        for future in futures:
            self._clocks["generate"].__enter__()
            future.add_done_callback(self._generated)
        return futures

    def _generated(self, future: asyncio.Future[Completion]) -> None:
        self._clocks["generate"].__exit__()
        self._advance("generate", not future.cancelled())

    async def score(self, request: ScoreRequest) -> Observation | Verdict:
        with self._clocks["verify"]:
            result = await self._verifiers.score(request)
        self._advance("verify", int(isinstance(result, Verdict)))
        return result

    async def reward(self, function: RewardFunction, finished: FinishedTrajectory) -> Verdict:
        with self._clocks["verify"]:
            return await function(finished)
