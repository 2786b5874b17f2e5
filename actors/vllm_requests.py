"""Keeps what is under way inside vLLM: the parameters of a request, what it has so far, what becomes of it, and steps in flight."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actors.inference import Completion, Request, ResponseFailed
from actors.inference import SamplingParams as Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest


@dataclass(slots=True)
class LiveResponse:
    """Collects one response as it is sampled.

    version_min: the oldest policy version of its tokens. began: when the engine step of its first token began, None until then.
    """

    request: Request
    on_done: Callable[[Completion | BaseException], None]
    version_min: int
    ids: list[int] = field(default_factory=list[int])
    # Of each engine step, [tokens, 1].
    logprobs: list[NDArray[np.float32]] = field(default_factory=list["NDArray[np.float32]"])
    began: float | None = None

    def extend(self, output: Any, step_began: float) -> None:
        """Appends the tokens of one engine step; `output`: vLLM's EngineCoreOutput."""
        if self.began is None:
            self.began = step_began
        self.ids.extend(output.new_token_ids)
        if output.new_logprobs is not None:
            self.logprobs.append(output.new_logprobs.logprobs)

    def stops(self, decode: Callable[[Sequence[int]], str]) -> bool:
        """Returns whether the newest token has brought a text that ends the response.

        Only the end of the response is decoded. A character has up to four tokens, and one more keeps out what a tokenizer
        strips at the beginning.
        """
        stop = self.request.sampling.stop
        if not stop:
            return False
        text = decode(self.ids[-(4 * max(map(len, stop)) + 1) :])
        return any(end in text for end in stop)

    def completion(self, reason: str, version: int, now: float) -> Completion | ResponseFailed:
        """Returns the finished response; an error where vLLM ended it for a reason of its own. now: by the clock of `began`."""
        if reason != "stop" and reason != "length":
            return ResponseFailed(f"vLLM ended request {self.request.id} with {reason!r}")
        logprobs = tuple(np.concatenate(self.logprobs)[:, 0].tolist()) if self.logprobs else ()
        seconds = 0.0 if self.began is None else now - self.began
        return Completion(self.request.id, tuple(self.ids), logprobs, reason, self.version_min, version, seconds)


@dataclass(slots=True)
class LiveScore:
    """Holds one sequence being scored: prompt log-probs for all tokens but the last; the sampler is asked about that one."""

    result: Future[list[float]]

    def finish(self, output: Any) -> None:
        """Sets the result from vLLM's EngineCoreOutput."""
        prompt = output.new_prompt_logprobs_tensors
        scores: list[float] = [] if prompt is None else prompt.logprobs[:, 0].tolist()
        last = float(output.new_logprobs.logprobs[0, 1])  # column 0 is the sampled token, 1 the one asked for
        self.result.set_result([*scores, last])


def sampling_params(request: Request) -> SamplingParams:
    """Returns vLLM's parameters of a request."""
    params = copy.copy(_without_seed(request.sampling))
    params.seed = request.seed
    return params


@lru_cache(maxsize=64)
def _without_seed(sampling: Sampling) -> SamplingParams:
    """Returns vLLM's parameters of requests that differ in their seeds alone. To make and check them takes twelve times as long as
    to copy them."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # the model's own end token counts only where the request lists it
        logprobs=0,  # the sampled token's alone
        detokenize=False,
        skip_clone=True,
    )


def scoring_params(last_token: int) -> SamplingParams:
    """Returns vLLM's parameters for scoring a sequence that ends in `last_token`, which is not in its prompt."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=1,
        temperature=1.0,
        prompt_logprobs=0,
        logprob_token_ids=[last_token],
        skip_reading_prefix_cache=True,
        ignore_eos=True,
        detokenize=False,
        skip_clone=True,
    )


def core_request(key: str, prompt: list[int], params: SamplingParams) -> EngineCoreRequest:
    """Returns what vLLM's engine core is given. `key` is unique within the engine."""
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=key,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def drain(core: Any, step: Callable[[], None]) -> None:
    """Finishes the steps that an engine with async scheduling has begun, and begins no other; nothing without it.

    core: vLLM's client of an engine core in this process. step: takes one engine step, and what it yields.
    """
    engine = core.engine_core
    if not engine.batch_queue:
        return
    from vllm.v1.core.sched.interface import PauseState

    engine.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    try:
        while engine.batch_queue:
            step()
    finally:
        engine.scheduler.set_pause_state(PauseState.UNPAUSED)
