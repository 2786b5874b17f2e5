"""Prompt -> Group, over two callables, or three where a reward has terms. Knows nothing of Ray, vLLM or where anything runs.

Consumes a prompt; waits for `generate` (all responses of the group at once) and then, turn by turn, for `judge`; what it
returns unblocks the buffer. Token ids come from the engine and are kept: only an observation is rendered to new ids.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from actors.inference import Completion, Request, SamplingParams
from actors.rewards.composite import FinishedTrajectory, ScoreFn
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Group, Message, Prompt, Status, Trajectory, Turn, Verdict

GenerateFn = Callable[[Sequence[Request]], Awaitable[list[Completion]]]  # completions in the order of the requests
RewardFn = Callable[
    [FinishedTrajectory], Awaitable[Verdict]
]  # from the environment's verdict to the one that is trained on


class Codec(Protocol):
    """Text to token ids and back, for one model."""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """A conversation up to and including the header of the response to come."""
        ...

    def render_observation(
        self, before: Sequence[Message], observation: Sequence[Message], response_ids: Sequence[int]
    ) -> tuple[int, ...]:
        """What to append after `response_ids`; `before`: the conversation up to that response, without it."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """Holds the section `sampling`, and what it takes beside it to sample groups."""

    sampling: SamplingSettings
    responses: int
    max_model_len: int
    seed: int  # of the run; each response's own seed follows from it and from where the response stands
    stop_token_ids: tuple[int, ...] = ()
    temperature: float | None = None  # in place of sampling.temperature: an evaluation has its own, and 0 for greedy


def response_seed(seed: int, *where: object) -> int:
    """The same for the same place in the run, whatever was sampled before: what makes a resumed run equal."""
    digest = hashlib.blake2b(repr((seed, *where)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2  # engines take signed 64-bit seeds


class ContextFull(ValueError):
    """A prompt that leaves no room for a response. The message has the prompt and the numbers."""


async def rollout_group(
    prompt: Prompt,
    environment: int,
    generate: GenerateFn,
    score: ScoreFn,
    codec: Codec,
    settings: RolloutSettings,
    stamp: str,
    clock: Callable[[], float] = time.monotonic,
    reward: RewardFn | None = None,
    release: Callable[[str], None] = lambda session: None,
) -> Group:
    """`stamp` names the pass over the prompt (an iteration, an evaluation): part of the seeds and of the request ids.

    reward: None leaves verdicts as the environment gave them.
    release: is told every session that ended, however it did: a limit or a cancellation is no verdict that `judge` could see.
    """
    began = clock()

    async def finish(session: str, done: Completion) -> Trajectory:
        try:
            ended = await _finish(
                prompt, environment, session, context, done, generate, score, codec, settings, lambda: clock() - began
            )
        finally:
            release(session)
        if reward is None:
            return ended.trajectory
        return replace(ended.trajectory, verdict=await reward(ended))

    context = codec.render(prompt.messages)
    name = f"{stamp}/{environment}:{prompt.key}"  # two environments of a mixture may share a name
    first = [_request(f"{name}/{i}", 0, context, settings) for i in range(settings.responses)]
    completions = await generate(first)
    tails = [finish(f"{name}/{i}", done) for i, done in enumerate(completions)]
    return Group(prompt, tuple(await asyncio.gather(*tails)))


def _request(name: str, turn: int, ids: tuple[int, ...], settings: RolloutSettings, spent: int = 0) -> Request:
    """`spent`: tokens of the trajectory's responses so far."""
    room = settings.max_model_len - len(ids)
    if room < 1:
        raise ContextFull(
            f"{name}: {len(ids)} tokens of context leave no room for a response in generators.max_model_len = "
            f"{settings.max_model_len}"
        )
    sampling = settings.sampling
    if sampling.max_total_tokens is not None:
        room = min(room, sampling.max_total_tokens - spent)
    temperature = sampling.temperature if settings.temperature is None else settings.temperature
    params = SamplingParams(min(sampling.max_tokens, room), temperature, sampling.top_p, settings.stop_token_ids)
    return Request(f"{name}/turn{turn}", ids, params, response_seed(settings.seed, name, turn))


async def _finish(
    prompt: Prompt,
    environment: int,
    name: str,
    context: tuple[int, ...],
    done: Completion,
    generate: GenerateFn,
    score: ScoreFn,
    codec: Codec,
    settings: RolloutSettings,
    elapsed: Callable[[], float],
) -> FinishedTrajectory:
    """One trajectory, from its first completion to its verdict."""
    turns: list[Turn] = []
    texts: list[str] = []
    ids = context
    before: list[Message] = list(prompt.messages)
    while True:
        turns.append(Turn(context, done.response_ids, done.logprobs, done.finish, done.version_min, done.version_max))
        texts.append(codec.decode(done.response_ids))
        said = (*before, Message("assistant", texts[-1]))
        answer = await score(ScoreRequest(name, environment, prompt, tuple(texts)))
        if isinstance(answer, Verdict):
            break
        turns[-1] = replace(turns[-1], reward=answer.reward)
        ids = (*ids, *done.response_ids)
        context = codec.render_observation(before, answer.messages, done.response_ids)
        ids = (*ids, *context)
        before = [*said, *answer.messages]
        spent = sum(len(turn.response_ids) for turn in turns)
        limit = _limit_reached(settings, len(turns), spent, len(ids), elapsed())
        if limit is not None:
            answer = Verdict(0.0, status=limit[0], detail=f"{limit[1]} reached")
            break
        (done,) = await generate([_request(name, len(turns), ids, settings, spent)])
    if turns[-1].finish == "length" and answer.status is Status.OK:
        answer = replace(answer, status=Status.TRUNCATED)
    trajectory = Trajectory(prompt, tuple(turns), tuple(texts), answer)
    return FinishedTrajectory(name, environment, trajectory, said, settings.sampling.max_tokens)


def _limit_reached(
    settings: RolloutSettings, turns: int, spent: int, length: int, seconds: float
) -> tuple[Status, str] | None:
    """The limit that forbids another turn, and the key it is set with. spent, length: tokens of responses, of everything."""
    sampling = settings.sampling
    if turns >= sampling.max_turns:
        return Status.TURNS, "sampling.max_turns"
    if sampling.max_total_tokens is not None and spent >= sampling.max_total_tokens:
        return Status.TOKENS, "sampling.max_total_tokens"
    if length >= settings.max_model_len:
        return Status.TOKENS, "generators.max_model_len"
    if sampling.max_seconds is not None and seconds >= sampling.max_seconds:
        return Status.SECONDS, "sampling.max_seconds"
    return None
