"""Defines what a generator needs from an inference engine: requests, completions, and the `InferenceEngine` protocol.

vLLM is one implementation (actors/vllm_engine.py), tests have a fake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from learner.weights.protocol import Rendezvous, WeightManifest


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Says how to sample; temperature 0 is greedy. Log-probs are always of the distribution actually sampled from."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()  # texts that end a response wherever they occur in it


@dataclass(frozen=True, slots=True)
class Request:
    """Asks for one response. `seed` fixes the sample whatever else is in the batch."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """Holds a finished response: ids and log-probs of the same length, with what ended it (a token, a text) when finish == "stop".

    seconds: from the engine step of its first token to its end, without the time it waited for the engine before.
    """

    id: str
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    version_min: int
    version_max: int
    seconds: float = field(default=0.0, compare=False)


# What an engine's memory is, by the names that vLLM gives the two parts.
Memory = Literal["weights", "kv_cache"]
GenerateFn = Callable[[Sequence[Request]], Awaitable[list[Completion]]]  # completions in the order of the requests
# Begins all of them at once, on one generator, and returns one wait for each, in order.
BeginFn = Callable[[Sequence[Request]], Sequence[Awaitable[Completion]]]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Returns a text up to the first of the texts that end it."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def response_seed(seed: int, *where: object) -> int:
    """Returns a response's seed: it depends on the response's position in the run alone, so a resumed run samples the same."""
    digest = hashlib.blake2b(repr((seed, *where)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2  # engines take signed 64-bit seeds


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts what an engine did since its start. version: policy version of its weights; step_s: seconds in engine steps."""

    version: int
    alive: bool
    in_flight: int  # responses and sequences under way
    step_s: float = 0.0
    steps: int = 0
    responses: int = 0
    response_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of prompts, whose keys and values were there already
    updates: int = 0  # weight transfers


class EngineDead(RuntimeError):
    """Says that the engine has ended, by `close` or by the error in the message: it serves nothing any more."""


class ResponseFailed(RuntimeError):
    """Answers a request that the engine ended for a reason of its own: it can be asked again."""


class Aborted(RuntimeError):
    """Answers a request that was ended because nobody waits for it."""


class PoolEmpty(RuntimeError):
    """Says that no member is left and none will come, and why."""


class InferenceEngine(Protocol):
    """Samples responses, scores sequences and takes new weights; its methods may be called from any thread.

    `submit` returns at once; `on_done` is called from the engine's own thread, once per request.
    """

    def submit(self, requests: Sequence[Request], on_done: Callable[[Completion | BaseException], None]) -> None:
        """Queues all requests before the next engine step, so that a batch submitted whole is scheduled the same way every time."""
        ...

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns log-probs at temperature 1 of tokens 1.. of each sequence given those before (length len(sequence) - 1)."""
        ...

    def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """Joins the weight group; blocks until all members have, WeightSyncError after timeout_s."""
        ...

    def receive_weights(self, manifest: WeightManifest, timeout_s: float) -> int:
        """Receives one version, loads it, drops cached prefixes and returns the checksum. Nothing is served meanwhile.

        An engine whose weights are asleep wakes them first, so that a transfer always has the memory it writes to.
        """
        ...

    def sleep(self) -> None:
        """Frees the GPU: weights go to host memory, the KV cache is dropped. Ends what is under way, as `abort` does."""
        ...

    def wake(self, memory: Memory) -> None:
        """Takes a part of the GPU's memory again: the weights as they were, or an empty KV cache. Nothing where it is there."""
        ...

    def abort(self, ids: Collection[str] | None = None) -> None:
        """Ends the responses of these request ids, without ids everything under way; each is answered with Aborted."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None: ...
