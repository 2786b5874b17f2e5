"""Serves a tiny random model by an engine and connects it to a trainer: the bench of weight_sync_cases.py."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from actors.inference import Completion, Request, SamplingParams
from actors.settings import EngineDtype, GeneratorSettings, VLLMSettings
from actors.vllm_engine import VLLMEngine
from learner.weights.network import listen
from learner.weights.protocol import Backend, make_manifest, make_rendezvous
from learner.weights.publisher import Publisher

VOCAB = 64
MAX_LEN = 96
TIMEOUT = 60.0
TOLERANCE = float(os.environ.get("ISENTROPE_TOLERANCE", "1e-5"))  # a GPU's kernels round otherwise: tests/gpu sets it
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
QWEN2_SIZES: dict[str, Any] = {k: v for k, v in SIZES.items() if k != "head_dim"}  # it derives it: 64 / 2 heads = 32
QWEN2_SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1}
CONFIGS = {
    "qwen2": lambda tied: hf.Qwen2Config(**QWEN2_SIZES, tie_word_embeddings=tied),
    "qwen3": lambda tied: hf.Qwen3Config(**SIZES, tie_word_embeddings=tied),
    "llama": lambda tied: hf.LlamaConfig(**SIZES, tie_word_embeddings=tied),
    "gemma": lambda tied: hf.GemmaConfig(**SIZES, tie_word_embeddings=tied),
    "gemma2": lambda tied: hf.Gemma2Config(**SIZES, tie_word_embeddings=tied),
    "gemma3": lambda tied: hf.Gemma3TextConfig(**SIZES, tie_word_embeddings=tied),
}


@dataclass
class Bench:
    """Holds a served model, its twin on the trainer's side and the learner's end of the weight channel."""

    model: torch.nn.Module
    engine: VLLMEngine
    publisher: Publisher
    version: int = 0

    def perturb(self, scale: float = 0.03) -> None:
        random_numbers = torch.Generator().manual_seed(self.version)  # vLLM draws from the global one too
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=random_numbers))

    def update(self, bucket_bytes: int = 2**14) -> None:
        """Publishes the weights of the twin; small buckets split layers, so that a kept view would outlive its bucket."""
        self.version += 1
        tensors = sendable(self.model)
        manifest = make_manifest(tensors, self.version, bucket_bytes)
        received = in_thread(lambda: self.engine.receive_weights(manifest, TIMEOUT))
        assert self.publisher.publish(manifest, tensors) == received.result(TIMEOUT)

    def logprobs(self, tokens: Sequence[int], model: torch.nn.Module | None = None) -> torch.Tensor:
        """Returns fp32 log-probs of Hugging Face, [len(tokens) - 1, VOCAB]: row t predicts token t + 1."""
        with torch.no_grad():
            logits = (model or self.model)(torch.tensor([list(tokens)])).logits[0, :-1]
        return torch.log_softmax(logits.float(), dim=-1)

    def worst_score(self, sequences: Sequence[Sequence[int]]) -> float:
        worst = 0.0
        for tokens, scores in zip(sequences, self.engine.sequence_logprobs(sequences), strict=True):
            expected = self.logprobs(tokens).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
            worst = max(worst, float((torch.tensor(scores) - expected).abs().max()))
        return worst

    def worst_sample(self, requests: Sequence[Request], responses: Sequence[Completion]) -> float:
        """Returns the largest difference between sampled log-probs and the twin's, at each request's temperature and top_p."""
        worst = 0.0
        for request, response in zip(requests, responses, strict=True):
            tokens = (*request.prompt_ids, *response.response_ids)
            table = self.logprobs(tokens)[len(request.prompt_ids) - 1 :]
            table = truncated(torch.log_softmax(table / request.sampling.temperature, dim=-1), request.sampling.top_p)
            expected = table.gather(1, torch.tensor(response.response_ids)[:, None])[:, 0]
            worst = max(worst, float((torch.tensor(response.logprobs) - expected).abs().max()))
        return worst

    def sample(self, requests: Sequence[Request]) -> list[Completion]:
        done: Future[None] = Future()
        responses: dict[str, Completion] = {}

        def on_done(response: Completion | BaseException) -> None:
            if isinstance(response, BaseException):
                done.set_exception(response)
                return
            responses[response.id] = response
            if len(responses) == len(requests):
                done.set_result(None)

        self.engine.submit(requests, on_done)
        done.result(TIMEOUT)
        return [responses[request.id] for request in requests]


def truncated(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Returns log-probs of the smallest set of most likely tokens whose probability reaches top_p, renormalised."""
    if top_p >= 1:
        return logprobs
    ordered, order = logprobs.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(dim=-1) - ordered.exp()
    kept = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.log_softmax(torch.empty_like(kept).scatter(-1, order, kept), dim=-1)


def sendable(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Returns the state dict, without a head that is tied to the embedding."""
    pointers: set[int] = set()
    return [
        (n, t) for n, t in model.state_dict().items() if not (t.data_ptr() in pointers or pointers.add(t.data_ptr()))
    ]


def in_thread(work) -> Future:
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@contextmanager
def bench(
    folder: str,
    family: str,
    tied: bool,
    dtype: EngineDtype = "float32",
    fp32_head: bool = False,
    *,
    shards: int = 1,
    backend: Backend = "gloo",
    sender: torch.device | None = None,
    start_timeout_s: float = 180,
    **generator_settings: Any,
) -> Iterator[Bench]:
    """shards, backend: of the engine's weight group; sender: the device that weights are sent from, see Publisher."""
    torch.set_num_threads(1)  # the twin shares two cores with the engine
    torch.manual_seed(0)
    config = CONFIGS[family](tied)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the usual init is so small that every token is equally likely
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = Path(folder) / f"{family}-{tied}"
    model.save_pretrained(path)
    generator = GeneratorSettings(
        max_model_len=MAX_LEN,
        max_num_seqs=64,
        kv_cache_mb=32,
        gpu_memory_utilization=0.2,  # of a GPU that others may be on
        tensor_parallel=shards,
        **generator_settings,
    )
    settings = VLLMSettings(model=str(path), generator=generator, dtype=dtype, fp32_head=fp32_head)
    engine = VLLMEngine(settings, start_timeout_s)
    listener = listen("127.0.0.1")
    learner, generator = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", shards)], backend, 0)
    joined = in_thread(lambda: engine.connect_weights(generator, TIMEOUT))
    publisher = Publisher(learner, TIMEOUT, listener=listener, device=sender)
    joined.result(TIMEOUT)
    try:
        yield Bench(model, engine, publisher)
    finally:
        publisher.close()
        engine.close()


def prompts(count: int, length: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(2, VOCAB) for _ in range(length)) for _ in range(count)]


def requests_for(count: int, sampling: SamplingParams, seed: int = 0) -> list[Request]:
    return [Request(f"r{i}", ids, sampling, seed * 1000 + i) for i, ids in enumerate(prompts(count, 9, seed))]
