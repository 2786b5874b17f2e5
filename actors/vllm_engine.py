"""vLLM behind the `InferenceEngine` protocol: one engine in this process, built and stepped by one thread of its own.

Everything that touches vLLM happens on that thread. `submit`, `score` and the weight calls put work in its inbox; it
empties the inbox between two engine steps, so a batch submitted whole is scheduled the same way every time and weights
change between two tokens, never within one. The thread speaks to vLLM's engine core directly: the input and output
processors around it (tokenizing, text, streaming) cost as much per response as a small model's forward pass.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from actors.inference import Completion, Request
from actors.settings import VLLMSettings
from learner.weights.protocol import Rendezvous, WeightManifest, WeightSyncError

T = TypeVar("T")
log = logging.getLogger(__name__)
CPU_BATCHED_TOKENS = 16384
_set_num_threads = torch.set_num_threads  # vLLM replaces torch's by one that does nothing; a later engine needs it too


class EngineDead(RuntimeError):
    """The engine's thread has ended, by `close` or by the error in the message; it serves nothing any more."""


@dataclass(slots=True)
class _Response:
    """One request inside the engine."""

    request: Request
    on_done: Callable[[Completion | BaseException], None]
    version_min: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Score:
    """One sequence being scored: prompt log-probs for all tokens but the last; the sampler is asked about that one."""

    last: int
    result: Future[list[float]]


class VLLMEngine:
    """One vLLM engine. The constructor returns when it is ready to serve; EngineDead if it could not be built.

    Log-probs are those of the distribution sampled from: after temperature and, with top_p < 1, of the truncated and
    renormalised distribution. Greedy responses (temperature 0) carry temperature-1 log-probs.
    """

    def __init__(self, settings: VLLMSettings, start_timeout_s: float = 600.0) -> None:
        self.settings = settings
        self.version = settings.version
        self._core: Any = None
        self._vocab_size = 0
        self._inbox: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._dead: BaseException | None = None
        self._live: dict[str, _Response | _Score] = {}
        self._scoring = 0
        self._ids = itertools.count()
        self._counts = {"steps": 0, "responses": 0, "response_tokens": 0, "prompt_tokens": 0, "updates": 0}
        self._step_s = 0.0
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="vllm-engine", daemon=True)
        self._thread.start()
        try:
            ready.result(start_timeout_s)
        except TimeoutError as error:
            raise EngineDead(f"vLLM was not ready within {start_timeout_s:g} s") from error

    # Callers' side: any thread.

    def submit(self, requests: Sequence[Request], on_done: Callable[[Completion | BaseException], None]) -> None:
        """See `InferenceEngine.submit`. ValueError (and nothing is queued) if a request cannot be served."""
        from vllm import SamplingParams

        batch = []
        for request in requests:
            self._validate(request)
            sampling = request.sampling
            params = SamplingParams(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop_token_ids=list(sampling.stop_token_ids),
                seed=request.seed,
                ignore_eos=True,  # the model's own end token counts only where the request lists it
                logprobs=0,  # the sampled token's alone
                detokenize=False,
                skip_clone=True,
            )
            batch.append((request, params))

        def add() -> None:
            for request, params in batch:
                key = str(next(self._ids))
                self._live[key] = _Response(request, on_done, self.version)
                self._add(key, list(request.prompt_ids), params)
                self._counts["prompt_tokens"] += len(request.prompt_ids)

        self._post(add)

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `InferenceEngine.score`. Computed afresh (no cached prefix), under one policy version."""
        from vllm import SamplingParams

        batch = []
        for tokens in sequences:
            self._validate_ids("a sequence to score", tokens)
            if len(tokens) > self.settings.generator.max_model_len:
                limit = self.settings.generator.max_model_len
                raise ValueError(f"a sequence to score has {len(tokens)} tokens, more than max_model_len {limit}")
            params = SamplingParams(
                max_tokens=1,
                temperature=1.0,
                prompt_logprobs=0,
                logprob_token_ids=[tokens[-1]],
                skip_reading_prefix_cache=True,
                ignore_eos=True,
                detokenize=False,
                skip_clone=True,
            )
            result: Future[list[float]] = Future()
            if len(tokens) == 1:
                result.set_result([])
            batch.append((list(tokens), params, result))

        def add() -> None:
            for tokens, params, result in batch:
                if not result.done():
                    key = str(next(self._ids))
                    self._live[key] = _Score(tokens[-1], result)
                    self._scoring += 1
                    self._add(key, tokens[:-1], params)

        self._post(add)
        return [result.result() for _, _, result in batch]  # the thread answers every future, also when it dies

    def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """See `InferenceEngine.connect_weights`. Nothing is sampled meanwhile."""

        def connect() -> None:
            for answer in self._core.collective_rpc("isentrope_connect", args=(rendezvous, timeout_s)):
                if isinstance(answer, WeightSyncError):
                    raise answer

        self._post(connect).result()

    def receive_weights(self, manifest: WeightManifest, timeout_s: float) -> int:
        """See `InferenceEngine.receive_weights`. `timeout_s` bounds each wait for the learner.

        Responses in flight keep the tokens they have and go on under the new weights. If the transfer fails
        (WeightSyncError) they end with that error: the model may hold a mixture of versions until one arrives whole.
        """

        def receive() -> int:
            while self._scoring:  # a score is of one version
                self._step()
            answers = self._core.collective_rpc("isentrope_receive", args=(manifest, timeout_s))
            failed = next((answer for answer in answers if isinstance(answer, WeightSyncError)), None)
            if failed is None and len(set(answers)) > 1:
                detail = f"the engine's workers received different bytes: {answers}"
                failed = WeightSyncError("an engine", f"checksum of version {manifest.version}", detail)
            # Also drops what was computed with a torn model, and makes running responses recompute their keys and values.
            self._core.reset_prefix_cache(reset_running_requests=True)
            if failed is not None:
                self._core.abort_requests(list(self._live))
                self._fail_live(failed)
                raise failed
            self.version = manifest.version
            self._counts["updates"] += 1
            for work in self._live.values():
                if isinstance(work, _Response) and not work.ids:
                    work.version_min = self.version
            return answers[0]

        return self._post(receive).result()

    def stats(self) -> dict[str, Any]:
        """Counters since the start; `step_s` is the time spent in engine steps."""
        return {
            "version": self.version,
            "in_flight": len(self._live),
            "alive": self._dead is None,
            "step_s": self._step_s,
            **self._counts,
        }

    def close(self) -> None:
        """End the thread and free the engine; responses in flight end with EngineDead. May be called twice."""
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
            self._core, self._vocab_size = _build(self.settings)
            ready.set_result(None)
            while self._work():
                pass
        except BaseException as error:  # the declared boundary: whatever happened goes to those who wait
            cause = error
            log.exception("the vLLM engine thread ended")
        finally:
            self._bury(cause, ready)

    def _work(self) -> bool:
        """One turn: what is in the inbox, then one step. False when it is time to end."""
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
        if self._live:
            self._step()
        return True

    def _add(self, key: str, prompt: list[int], params: Any) -> None:
        from vllm.v1.engine import EngineCoreRequest

        self._core.add_request(
            EngineCoreRequest(
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
        )

    def _step(self) -> None:
        begun = time.perf_counter()
        outputs = self._core.get_output().outputs
        self._step_s += time.perf_counter() - begun
        self._counts["steps"] += 1
        for output in outputs:
            work = self._live.get(output.request_id)
            if work is None:  # aborted when a weight transfer failed
                continue
            if isinstance(work, _Score):
                if output.finish_reason is not None:
                    del self._live[output.request_id]
                    self._scoring -= 1
                    work.result.set_result(_scores(output))
                continue
            work.ids.extend(output.new_token_ids)
            if output.new_logprobs is not None:
                work.logprobs.extend(output.new_logprobs.logprobs[:, 0].tolist())
            if output.finish_reason is not None:
                del self._live[output.request_id]
                work.on_done(self._completion(work, str(output.finish_reason)))

    def _completion(self, work: _Response, reason: str) -> Completion | BaseException:
        if reason not in ("stop", "length"):
            return RuntimeError(f"vLLM ended request {work.request.id} with {reason!r}")
        self._counts["responses"] += 1
        self._counts["response_tokens"] += len(work.ids)
        finish: Literal["stop", "length"] = "stop" if reason == "stop" else "length"
        return Completion(
            work.request.id, tuple(work.ids), tuple(work.logprobs), finish, work.version_min, self.version
        )

    def _fail_live(self, error: BaseException) -> None:
        live, self._live, self._scoring = list(self._live.values()), {}, 0
        for work in live:
            if isinstance(work, _Score):
                work.result.set_exception(error)
            else:
                work.on_done(error)

    def _bury(self, cause: BaseException, ready: Future[None]) -> None:
        """Answer everyone who waits, refuse whoever comes, free vLLM."""
        with self._wake:
            self._dead = cause
            left = [result for _, result in self._inbox]
            self._inbox.clear()
        error = _dead(cause)
        for result in left:
            result.set_exception(error)
        try:
            self._fail_live(error)
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


def _scores(output: Any) -> list[float]:
    prompt = output.new_prompt_logprobs_tensors
    head = prompt.logprobs[:, 0].tolist() if prompt is not None else []
    return [*head, float(output.new_logprobs.logprobs[0, 1])]  # column 0 is the sampled token, 1 the one asked for


def _build(settings: VLLMSettings) -> tuple[Any, int]:
    """vLLM's engine core client for `settings`, and the vocabulary size."""
    cpu = not torch.cuda.is_available()
    _prepare_environment(cpu)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    options: dict[str, Any] = {}
    g = settings.generator
    if cpu:
        # Chunked prefill with a seed crashes on CPU: vLLM rewinds the offset of the request's random generator, which
        # CPU generators do not have. Without chunks a whole sequence has to fit into one step.
        options["enable_chunked_prefill"] = False
        options["max_num_batched_tokens"] = max(CPU_BATCHED_TOKENS, g.max_model_len)
    if g.kv_cache_bytes is not None:
        options["kv_cache_memory_bytes"] = g.kv_cache_bytes
    if not cpu:  # with a cache of a given size it is still what vLLM wants to find free at its start
        options["gpu_memory_utilization"] = g.memory_share
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=settings.model,
            dtype=settings.dtype,
            hf_overrides={"head_dtype": "float32"} if settings.fp32_head else {},
            max_model_len=g.max_model_len,
            max_num_seqs=g.max_num_seqs,
            tensor_parallel_size=g.tensor_parallel,
            # Several workers are processes on this node: inside a Ray actor vLLM would otherwise look for bundles of its own.
            distributed_executor_backend="mp" if g.tensor_parallel > 1 else None,
            enforce_eager=g.enforce_eager,
            enable_prefix_caching=g.prefix_caching,
            seed=settings.seed,
            skip_tokenizer_init=True,
            generation_config="vllm",  # no sampling defaults and no end tokens from the model folder
            logprobs_mode="processed_logprobs",
            async_scheduling=False,  # no step may be in flight when weights change
            disable_log_stats=True,
            use_tqdm_on_load=False,
            worker_extension_cls="actors.vllm_worker.WeightReceiver",
            **options,
        )
    )
    return engine.engine_core, engine.model_config.get_vocab_size()


def _prepare_environment(cpu: bool) -> None:
    """vLLM reads these when it is imported; what the user has set stays, but for the first."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    defaults = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if cpu:
        # Compiling one small sampler op would take 13 s; more threads than cores to run on cost a factor of ten.
        defaults |= {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    else:
        # FlashInfer's sampler does not give the log-probs of what it truncates to, which are what we always ask for, and is
        # compiled at first use.
        defaults |= {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
        # Attention of an fp32 engine is Triton's, whose float32 products are TF32 unless told otherwise: 10 bits of mantissa.
        defaults |= {"TRITON_F32_DEFAULT": "ieee"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if cpu:
        # torch may have read its environment already, and the number belongs to the calling thread, the engine's.
        _set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
