"""Builds a vLLM engine from settings: its arguments, and the environment variables that it reads when it is imported."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, cast

import torch

from actors.inference import EngineDead
from actors.settings import KEEPS_MEMORY, keeps_memory

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs

    from actors.settings import VLLMSettings

log = logging.getLogger(__name__)

CPU_BATCHED_TOKENS = 16384
CPU_BLOCK_TOKENS = 32  # the smallest that vLLM's kernels for CPUs are made for
_set_num_threads = torch.set_num_threads  # vLLM replaces torch's by one that does nothing; a later engine needs it too


def build_core(settings: VLLMSettings) -> tuple[Any, int]:
    """Returns vLLM's engine core client for `settings`, and the vocabulary size."""
    cpu = not torch.cuda.is_available()
    if settings.generator.colocated and (found := keeps_memory(os.environ)):
        raise EngineDead(f"{found}: {KEEPS_MEMORY}")
    prepare_environment(cpu)
    if cpu:
        _import_without_inductor()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from actors.vllm_models import adapter, qwen3_5

    qwen3_5.register()
    adapter.register()
    arguments = EngineArgs(**engine_arguments(settings, cpu))
    try:
        _suit(arguments, cpu)
        _meet_in_memory()
        engine = LLMEngine.from_engine_args(arguments)
    except EngineDead:
        raise
    except Exception as error:
        raise EngineDead(f"vLLM cannot serve {settings.model}: {build_reason(error)}") from error
    return engine.engine_core, engine.model_config.get_vocab_size()


def _import_without_inductor() -> None:
    """Imports vLLM without torch's compiler backend, which takes a seventh of an engine's start and compiles nothing on a CPU.

    vLLM imports it to change a list in it, and goes on where it cannot.
    """
    name = "torch._inductor.lowering"
    if os.environ.get("TORCHDYNAMO_DISABLE") != "1" or name in sys.modules:
        return
    hidden: dict[str, Any] = cast("dict[str, Any]", sys.modules)
    hidden[name] = None  # an import of it raises ImportError
    try:
        importlib.import_module("vllm")
    finally:
        del hidden[name]


def engine_arguments(settings: VLLMSettings, cpu: bool) -> dict[str, Any]:
    """Returns the arguments of vLLM's EngineArgs."""
    g = settings.generator
    options: dict[str, Any] = {}
    if cpu:
        # Chunked prefill with a seed crashes on CPU: vLLM rewinds the offset of the request's random generator, which
        # CPU generators do not have. Without chunks a whole sequence has to fit into one step.
        options["enable_chunked_prefill"] = False
        options["max_num_batched_tokens"] = max(CPU_BATCHED_TOKENS, g.max_model_len)
    if g.max_num_batched_tokens is not None:
        options["max_num_batched_tokens"] = g.max_num_batched_tokens
    if g.kv_cache_bytes is not None:
        options["kv_cache_memory_bytes"] = g.kv_cache_bytes
    if not cpu:  # vLLM wants this share to be free at its start even where the cache has a given size
        options["gpu_memory_utilization"] = g.memory_share
        if g.colocated:
            options["enable_sleep_mode"] = True
    if g.quantization is not None:
        options["quantization"] = g.quantization
    overrides: dict[str, Any] = {"head_dtype": "float32"} if settings.fp32_head else {}
    if settings.lora is not None:
        from actors.vllm_models.adapter import described

        overrides["quantization_config"] = described(settings.lora)
    return {
        "model": settings.model,
        "dtype": settings.dtype,
        "hf_overrides": overrides,
        "max_model_len": g.max_model_len,
        "max_num_seqs": g.max_num_seqs,
        "tensor_parallel_size": g.tensor_parallel,
        # Several workers are processes on this node: inside a Ray actor vLLM would otherwise look for bundles of its own.
        "distributed_executor_backend": "mp" if g.tensor_parallel > 1 else None,
        "enforce_eager": g.eager,
        "enable_prefix_caching": g.prefix_caching,
        "kv_cache_dtype": g.kv_cache_dtype,
        "seed": settings.seed,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # no sampling defaults and no end tokens from the model folder
        "logprobs_mode": "processed_logprobs",
        "async_scheduling": g.async_scheduling,  # if so, a transfer waits for the step in flight: drain of vllm_requests.py
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": "actors.vllm_worker.WeightReceiver",
        **options,
    }


def _suit(arguments: EngineArgs, cpu: bool) -> None:
    """Changes the arguments to what the model's family needs; EngineDead where this machine cannot serve it."""
    described = arguments.create_model_config()
    config = described.hf_text_config
    if config.model_type == "cohere2":
        # vLLM's layers of Cohere 2 see one token more than sliding_window says; transformers', which train, do not.
        overrides = cast("dict[str, Any]", arguments.hf_overrides)
        arguments.hf_overrides = {**overrides, "sliding_window": config.sliding_window - 1}
    if cpu and "linear_attention" in (config.to_dict().get("layer_types") or ()) and described.dtype != torch.bfloat16:
        raise EngineDead("vLLM's linear attention on a CPU is bf16 only: set precision=bf16, or use a GPU")
    if cpu and arguments.enable_prefix_caching and described.has_inner_state:
        # vLLM keeps the state of such layers in chunks of the prompt, and chunks are off here.
        log.warning("%s is served without prefix caching: its layers need chunked prefill for it", arguments.model)
        arguments.enable_prefix_caching = False
    elif cpu and arguments.enable_prefix_caching:
        # Whole blocks are shared: at vLLM's 128 tokens most prompts of a group would be computed for each of its responses.
        arguments.block_size = CPU_BLOCK_TOKENS


def _meet_in_memory() -> None:
    """Lets vLLM's workers find each other through a file in this process's memory.

    vLLM takes a file vllm_dist_* in the temporary folder, which stays there when an engine is killed, as every engine of a run is
    at its end.
    """
    from vllm.v1.executor import multiproc_executor, uniproc_executor

    def method() -> str:
        return f"file:///proc/{os.getpid()}/fd/{os.memfd_create('vllm_rendezvous')}"

    modules: tuple[Any, ...] = (multiproc_executor, uniproc_executor)
    for executor in modules:
        executor.get_file_store_init_method = method


def build_reason(error: BaseException) -> str:
    """Returns one sentence for an engine that was not built: what vLLM says, or what lies under it.

    pydantic puts the sentence between a count of errors and an address of its own; and where vLLM looks at an architecture in
    a process of its own, what that process raised is in a log only, so the model is imported once more here.
    """
    text = str(error)
    if found := re.search(r"(?:Value error|Assertion failed), (.+?)(?: \[type=|$)", text, re.DOTALL):
        text = found.group(1)
    if found := re.search(r"Model architectures \[(.+?)\] failed to be inspected", text):
        from vllm.model_executor.models.registry import ModelRegistry

        for name in re.findall(r"'(\w+)'", found.group(1)):
            try:
                ModelRegistry.models[name].load_model_cls()
            except Exception as cause:  # noqa: BLE001 - whatever importing the model raises is the reason
                return f"its model file for {name} cannot be imported ({type(cause).__name__}: {_one_line(str(cause))})"
    return f"{type(error).__name__}: {_one_line(text)}" if text.strip() else type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def prepare_environment(cpu: bool) -> None:
    """Sets what vLLM reads when it is imported; what the user has set stays, except for VLLM_ENABLE_V1_MULTIPROCESSING."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    defaults = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if cpu:
        # Compiling one small sampler op would take 13 s; more threads than cores to run on cost a factor of ten.
        defaults |= {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    else:
        # FlashInfer's sampler does not give the log-probs of what it truncates to, which are what we always ask for, and is
        # compiled at first use.
        defaults |= {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
        # Attention of an fp32 engine is Triton's, whose float32 products are TF32 unless it is set otherwise: 10 bits of mantissa.
        defaults |= {"TRITON_F32_DEFAULT": "ieee"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if cpu:
        # torch may have read its environment already, and the number belongs to the calling thread, the engine's.
        _set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
