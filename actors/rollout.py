"""Turns a prompt into a scored group of trajectories, over callables: knows nothing of Ray, vLLM or where anything runs.

Begins the first responses of a group together, on one generator; from then on each trajectory goes its own way: what is sampled is
judged, and takes its next turn, at once, whatever the others of its group do. At its end it waits for `reward` where a reward has
terms. The ids of responses are kept as the engine gave them; prompt and observations are rendered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from actors.inference import BeginFn, Completion, Request, SamplingParams, before_stop, response_seed
from actors.rewards.composite import FinishedTrajectory, ScoreFn
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Group, Message, Prompt, Status, Trajectory, Turn, Verdict

# From the environment's verdict to the one that is trained on.
RewardFn = Callable[[FinishedTrajectory], Awaitable[Verdict]]


class Codec(Protocol):
    """Converts text to token ids and back, for one model."""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Returns the ids of a conversation, up to and including the header of the response to come."""
        ...

    def render_observation(
        self, before: Sequence[Message], observation: Sequence[Message], response_ids: Sequence[int]
    ) -> tuple[int, ...]:
        """Returns the ids to append after `response_ids`; `before`: the conversation up to that response, without it."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """Bounds one trajectory and says how its responses are sampled."""

    sampling: SamplingSettings
    responses: int
    max_model_len: int
    seed: int  # of the run; each response's own seed follows from it and from where the response stands
    stop_token_ids: tuple[int, ...] = ()
    temperature: float | None = None  # overrides sampling.temperature, for evaluations; 0 is greedy


class ContextFull(ValueError):
    """Reports a prompt that leaves no room for a response; the message has the prompt and the numbers."""


async def rollout_group(
    prompt: Prompt,
    begin: BeginFn,
    score: ScoreFn,
    codec: Codec,
    settings: RolloutSettings,
    stamp: str,
    clock: Callable[[], float] = time.monotonic,
    reward: RewardFn | None = None,
    release: Callable[[str], None] = lambda session: None,
) -> Group:
    """Samples `settings.responses` trajectories of a prompt and has each scored. Raises ContextFull.

    stamp    names the pass over the prompt (an iteration, an evaluation): part of the seeds and of the request ids
    reward   None leaves verdicts as the environment gave them
    clock    measures verdicts, for sampling.max_seconds; responses come with the seconds their engine worked on them
    release  gets the name of every session that ended; `score` sees the end by a verdict alone, not a limit or a cancellation
    """
    player = _Player(prompt, begin, score, codec, settings, clock)

    async def finish(session: str, first: Awaitable[Completion]) -> Trajectory:
        try:
            finished = await player.play(session, context, first)
        finally:
            release(session)
        if reward is None:
            return finished.trajectory
        return replace(finished.trajectory, verdict=await reward(finished))

    context = codec.render(prompt.messages)
    name = f"{stamp}/{prompt.environment}:{prompt.key}"  # two environments of a mixture may share a name
    firsts = begin([_request(f"{name}/{i}", 0, context, settings) for i in range(settings.responses)])
    tasks = [asyncio.ensure_future(finish(f"{name}/{i}", first)) for i, first in enumerate(firsts)]
    try:
        return Group(prompt, tuple(await asyncio.gather(*tasks)))
    finally:
        for task in tasks:  # after an error the others are of no use
            task.cancel()


# One object for equal parameters: a message of many requests has it once, and so has who reads it.
_shared_params = lru_cache(maxsize=256)(SamplingParams)


def _request(name: str, turn: int, ids: tuple[int, ...], settings: RolloutSettings, sampled: int = 0) -> Request:
    """sampled: tokens of the trajectory's responses so far."""
    room = settings.max_model_len - len(ids)
    if room < 1:
        raise ContextFull(
            f"{name}: {len(ids)} tokens of context leave no room for a response in generators.max_model_len = "
            f"{settings.max_model_len}"
        )
    sampling = settings.sampling
    if sampling.max_total_tokens is not None:
        room = min(room, sampling.max_total_tokens - sampled)
    temperature = sampling.temperature if settings.temperature is None else settings.temperature
    params = _shared_params(
        min(sampling.max_tokens, room), temperature, sampling.top_p, settings.stop_token_ids, tuple(sampling.stop)
    )
    return Request(f"{name}/turn{turn}", ids, params, response_seed(settings.seed, name, turn))


@dataclass(frozen=True, slots=True)
class _Player:
    """Plays the trajectories of one prompt."""

    prompt: Prompt
    begin: BeginFn
    score: ScoreFn
    codec: Codec
    settings: RolloutSettings
    clock: Callable[[], float]

    async def play(self, name: str, context: tuple[int, ...], first: Awaitable[Completion]) -> FinishedTrajectory:
        """Plays one trajectory from its first completion, which follows `context`, to its verdict."""
        completion = await first
        turns: list[Turn] = []
        texts: list[str] = []
        ids = context
        before: list[Message] = list(self.prompt.messages)
        # Without what requests wait for an engine: that depends on how many others are under way (batch.ahead).
        seconds = 0.0
        while True:
            turns.append(_turn(context, completion))
            texts.append(before_stop(self.codec.decode(completion.response_ids), self.settings.sampling.stop))
            conversation = (*before, Message("assistant", texts[-1]))
            asked = self.clock()
            answer = await self.score(ScoreRequest(name, self.prompt, tuple(texts)))
            seconds += completion.seconds + self.clock() - asked
            if isinstance(answer, Verdict):
                break
            turns[-1] = replace(turns[-1], reward=answer.reward)
            context = self.codec.render_observation(before, answer.messages, completion.response_ids)
            ids = (*ids, *completion.response_ids, *context)
            before = [*conversation, *answer.messages]
            sampled = sum(len(turn.response_ids) for turn in turns)
            limit = _limit_reached(self.settings, len(turns), sampled, len(ids), seconds)
            if limit is not None:
                answer = Verdict(0.0, status=limit[0], detail=f"{limit[1]} reached")
                break
            (answered,) = self.begin([_request(name, len(turns), ids, self.settings, sampled)])
            completion = await answered
        if turns[-1].finish == "length" and answer.status is Status.OK:
            answer = replace(answer, status=Status.TRUNCATED)
        trajectory = Trajectory(self.prompt, tuple(turns), tuple(texts), answer)
        return FinishedTrajectory(name, trajectory, conversation, self.settings.sampling.max_tokens)


def _turn(context: tuple[int, ...], done: Completion) -> Turn:
    return Turn(context, done.response_ids, done.logprobs, done.finish, done.version_min, done.version_max)


def _limit_reached(
    settings: RolloutSettings, turns: int, sampled: int, length: int, seconds: float
) -> tuple[Status, str] | None:
    """The limit that forbids another turn, and the key it is set with. sampled, length: tokens of responses, of everything."""
    sampling = settings.sampling
    if turns >= sampling.max_turns:
        return Status.TURNS, "sampling.max_turns"
    if sampling.max_total_tokens is not None and sampled >= sampling.max_total_tokens:
        return Status.TOKENS, "sampling.max_total_tokens"
    if length >= settings.max_model_len:
        return Status.TOKENS, "generators.max_model_len"
    if sampling.max_seconds is not None and seconds >= sampling.max_seconds:
        return Status.SECONDS, "sampling.max_seconds"
    return None
