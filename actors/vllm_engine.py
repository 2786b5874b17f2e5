"""Puts vLLM behind the `InferenceEngine` protocol: one engine in this process, built and stepped by one thread of its own.

Everything that touches vLLM happens on that thread. `submit`, `sequence_logprobs` and the weight calls put work in its inbox; it
empties the inbox between two engine steps, so a batch submitted whole is scheduled the same way every time and weights
change between two tokens, never within one. The thread speaks to vLLM's engine core directly: the input and output
processors around it (tokenizing, text, streaming) cost as much per response as a small model's forward pass.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from actors.inference import Aborted, Completion, EngineDead, EngineStats, Memory, Request, ResponseFailed
from actors.settings import VLLMSettings
from actors.vllm_build import build_core
from actors.vllm_requests import LiveResponse, LiveScore, core_request, drain, sampling_params, scoring_params
from learner.chat import decode, load_tokenizer
from learner.tracing.spans import Busy
from learner.weights.protocol import Rendezvous, WeightManifest, WeightSyncError

T = TypeVar("T")
# Level 2 would keep no copy of the weights. But then every turn of the learner, a checkpoint's too, would need a transfer after it,
# and tensors of a layer that are neither parameters nor buffers, which no transfer brings, would come back as whatever is there.
SLEEP_LEVEL = 1
log = logging.getLogger(__name__)


class VLLMEngine:
    """Runs one vLLM engine. The constructor returns when it is ready to serve; EngineDead if it could not be built.

    Log-probs are those of the distribution sampled from: after temperature and, with top_p < 1, of the truncated and
    renormalised distribution. Greedy responses (temperature 0) carry temperature-1 log-probs.
    """

    def __init__(self, settings: VLLMSettings, start_timeout_s: float = 600.0) -> None:
        self.settings = settings
        self.version = settings.version
        self._core: Any = None
        self._vocab_size = 0
        self._tokenizer: Any = None
        self._inbox: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._dead: BaseException | None = None
        self._live: dict[str, LiveResponse | LiveScore] = {}
        self._asleep: set[Memory] = set()
        self._scoring = 0
        self._ids = itertools.count()
        self._counts = {
            "steps": 0,
            "responses": 0,
            "response_tokens": 0,
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "updates": 0,
        }
        self._step_s = 0.0
        self._busy = Busy("generate")
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="vllm-engine", daemon=True)
        self._thread.start()
        try:
            ready.result(start_timeout_s)
        except TimeoutError as error:
            raise EngineDead(f"vLLM was not ready within {start_timeout_s:g} s") from error

    # Callers' side: any thread.

    def submit(self, requests: Sequence[Request], on_done: Callable[[Completion | BaseException], None]) -> None:
        """Queues all requests, see `InferenceEngine.submit`. ValueError (and nothing is queued) if one cannot be served."""
        for request in requests:
            self._validate(request)
        batch = [(request, sampling_params(request)) for request in requests]

        def add() -> None:
            for request, params in batch:
                key = str(next(self._ids))
                self._live[key] = LiveResponse(request, on_done, self.version)
                self._core.add_request(core_request(key, list(request.prompt_ids), params))
                self._counts["prompt_tokens"] += len(request.prompt_ids)

        self._post(add)

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Scores sequences, see `InferenceEngine`. Computed afresh (no cached prefix), under one policy version."""
        for tokens in sequences:
            self._validate_ids("a sequence to score", tokens)
            if len(tokens) > self.settings.generator.max_model_len:
                limit = self.settings.generator.max_model_len
                raise ValueError(f"a sequence to score has {len(tokens)} tokens, more than max_model_len {limit}")
        batch = [(list(tokens), scoring_params(tokens[-1]), Future[list[float]]()) for tokens in sequences]

        def add() -> None:
            for tokens, params, result in batch:
                if len(tokens) == 1:
                    result.set_result([])
                    continue
                key = str(next(self._ids))
                self._live[key] = LiveScore(result)
                self._scoring += 1
                self._core.add_request(core_request(key, tokens[:-1], params))

        self._post(add).result()
        return [result.result() for _, _, result in batch]  # the thread answers every future, also when it dies

    def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """Joins the weight group, see `InferenceEngine.connect_weights`. Nothing is sampled meanwhile."""

        def connect() -> None:
            for answer in self._core.collective_rpc("isentrope_connect", args=(rendezvous, timeout_s)):
                if isinstance(answer, WeightSyncError):
                    raise answer

        self._post(connect).result()

    def receive_weights(self, manifest: WeightManifest, timeout_s: float) -> int:
        """Loads one version, see `InferenceEngine.receive_weights`. `timeout_s` bounds each wait for the learner.

        Responses in flight keep the tokens they have and go on under the new weights. If the transfer fails
        (WeightSyncError) they end with ResponseFailed, to be asked again: the model may hold a mixture of versions until one
        arrives whole.
        """

        def receive() -> int:
            self._rouse("weights")
            while self._scoring:  # a score is of one version
                self._step()
            drain(self._core, self._step)
            answers = self._core.collective_rpc("isentrope_receive", args=(manifest, timeout_s))
            failed = next((answer for answer in answers if isinstance(answer, WeightSyncError)), None)
            if failed is None and len(set(answers)) > 1:
                detail = f"the engine's workers received different bytes: {answers}"
                failed = WeightSyncError("an engine", f"checksum of version {manifest.version}", detail)
            # Also drops what was computed with a torn model, and makes running responses recompute their keys and values.
            self._core.reset_prefix_cache(reset_running_requests=True)
            if failed is not None:
                self._core.abort_requests(list(self._live))
                torn = ResponseFailed(f"version {manifest.version} of the weights came in part: {failed}")
                self._fail(list(self._live), torn)
                raise failed
            self.version = manifest.version
            self._counts["updates"] += 1
            for work in self._live.values():
                if isinstance(work, LiveResponse) and not work.ids:
                    work.version_min = self.version
            return answers[0]

        return self._post(receive).result()

    def sleep(self) -> None:
        """Frees the GPU, see `InferenceEngine.sleep`."""

        def sleep() -> None:
            if len(self._asleep) == 2:
                return
            self._rouse("weights")  # vLLM would leave a cache awake whose weights sleep
            drain(self._core, self._step)
            self._fail(list(self._live), Aborted("it was ended: the engine goes to sleep"))
            self._core.sleep(SLEEP_LEVEL, "abort")  # which drops requests and cached prefixes
            self._asleep = {"weights", "kv_cache"}

        self._post(sleep).result()

    def wake(self, memory: Memory) -> None:
        """Takes memory again, see `InferenceEngine.wake`."""
        self._post(lambda: self._rouse(memory)).result()

    def abort(self, ids: Collection[str] | None = None) -> None:
        """Ends responses under way, see `InferenceEngine.abort`; without ids scores too."""

        def abort() -> None:
            chosen = [
                key
                for key, work in self._live.items()
                if ids is None or (isinstance(work, LiveResponse) and work.request.id in ids)
            ]
            self._core.abort_requests(chosen)
            self._fail(chosen, Aborted("it was ended: nobody waits for it any more"))

        self._post(abort).result()

    def stats(self) -> EngineStats:
        return EngineStats(self.version, self._dead is None, len(self._live), self._step_s, **self._counts)

    def close(self) -> None:
        """Ends the thread and frees the engine; responses in flight end with EngineDead. May be called twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout=60)
        if self._thread.is_alive():
            raise EngineDead("the engine thread did not end within 60 s: a step or a weight transfer is still running")

    def _post(self, work: Callable[[], T]) -> Future[T]:
        result: Future[T] = Future()
        with self._wake:
            if self._dead is not None or self._closing:
                raise EngineDead(f"the engine serves no more: {self._dead or 'it was closed'}") from self._dead
            self._inbox.append((work, result))
            self._wake.notify()
        return result

    def _validate(self, request: Request) -> None:
        self._validate_ids(f"the prompt of {request.id}", request.prompt_ids)
        prompt, response, limit = (
            len(request.prompt_ids),
            request.sampling.max_tokens,
            self.settings.generator.max_model_len,
        )
        if prompt + response > limit:
            raise ValueError(
                f"request {request.id} needs {prompt} prompt + {response} response = {prompt + response} tokens, "
                f"more than max_model_len {limit}"
            )

    def _validate_ids(self, what: str, ids: Sequence[int]) -> None:
        if not ids:
            raise ValueError(f"{what} is empty")
        if min(ids) < 0 or max(ids) >= self._vocab_size:  # would crash the engine, and every response with it
            raise ValueError(
                f"{what} has token ids {min(ids)}..{max(ids)}, outside the vocabulary 0..{self._vocab_size - 1}"
            )

    # The engine thread.

    def _run(self, ready: Future[None]) -> None:
        cause: BaseException = EngineDead("it was closed")
        try:
            self._core, self._vocab_size = build_core(self.settings)
            ready.set_result(None)
            while self._work():
                pass
        except BaseException as error:  # the declared boundary: whatever happened goes to those who wait
            cause = error
            log.exception("the vLLM engine thread ended")
        finally:
            self._bury(cause, ready)

    def _work(self) -> bool:
        """Takes one turn: what is in the inbox, then one step. False when it is time to end."""
        with self._wake:
            while not (self._inbox or self._live or self._closing):
                self._wake.wait()  # idle: bounded by nothing but work or close, both of which notify
            if self._closing:
                return False
            todo = list(self._inbox)
            self._inbox.clear()
        for index, (work, result) in enumerate(todo):
            try:
                result.set_result(work())
            except WeightSyncError as error:
                result.set_exception(error)
            except BaseException as error:
                self._inbox.extendleft(reversed(todo[index + 1 :]))
                result.set_exception(_dead(error))
                raise
        self._busy.now(bool(self._live))
        if self._live:
            self._step()
            self._busy.now(bool(self._live))
        return True

    def _rouse(self, memory: Memory) -> None:
        if memory in self._asleep:
            self._core.wake_up([memory])  # requests are taken again once both parts are there
            self._asleep.discard(memory)

    def _step(self) -> None:
        begun = time.perf_counter()
        outputs = self._core.get_output().outputs
        ended = time.perf_counter()
        self._step_s += ended - begun
        self._counts["steps"] += 1
        live, answers = self._live, list[tuple[LiveResponse, Completion | ResponseFailed]]()
        for output in outputs:
            work = live.get(output.request_id)
            if work is None:  # aborted when a weight transfer failed, or after a text that ends it
                continue
            finished = output.finish_reason is not None
            if finished:
                del live[output.request_id]
            if isinstance(work, LiveScore):
                if finished:
                    self._scoring -= 1
                    work.finish(output)
                continue
            work.extend(output, begun)
            if output.prefill_stats is not None:
                self._counts["cached_tokens"] += output.prefill_stats.num_cached_tokens
            stopped = work.stops(self._decode)
            if stopped and not finished:
                del live[output.request_id]
                self._core.abort_requests([output.request_id])
            if finished or stopped:
                done = work.completion("stop" if stopped else str(output.finish_reason), self.version, ended)
                if isinstance(done, Completion):
                    self._counts["responses"] += 1
                    self._counts["response_tokens"] += len(done.response_ids)
                answers.append((work, done))
        # One after the other, with nothing between them: who is woken by the first finds them all, and sends one message.
        for work, done in answers:
            work.on_done(done)

    def _decode(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens, with the model's tokenizer, which is loaded when a response may end at a text."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.settings.model)
        return decode(self._tokenizer, ids)

    def _fail(self, keys: Sequence[str], error: BaseException) -> None:
        """Answers what is under way under these keys with an error."""
        for work in [self._live.pop(key) for key in keys]:
            if isinstance(work, LiveScore):
                self._scoring -= 1
                work.result.set_exception(error)
            else:
                work.on_done(error)

    def _bury(self, cause: BaseException, ready: Future[None]) -> None:
        """Answers all callers that wait, refuses later ones, frees vLLM."""
        with self._wake:
            self._dead = cause
            left = [result for _, result in self._inbox]
            self._inbox.clear()
        error = _dead(cause)
        for result in left:
            result.set_exception(error)
        try:
            self._fail(list(self._live), error)
        finally:
            if not ready.done():
                ready.set_exception(error)
            core, self._core = self._core, None
            if core is not None:
                try:
                    core.collective_rpc("isentrope_disconnect")
                finally:
                    core.shutdown()


def _dead(cause: BaseException) -> EngineDead:
    if isinstance(cause, EngineDead):
        return cause
    error = EngineDead(f"{type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
