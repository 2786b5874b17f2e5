"""Computes, before anything starts, what memory every actor will need: from the configuration and the model's folder. Pure.

Weights, gradients, optimiser, KV cache and transfer buffers are exact up to allocators; activations are an estimate, and the
libraries a process loads are left out (on a CPU about half a GiB each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestration.config.model_size import ModelSize, adapter_size, model_size
from orchestration.config.run_config import RunConfig
from orchestration.text import size

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "float32": 4, "bfloat16": 2, "float16": 2}
MASTER = MOMENTS = 4  # bytes an element: both are float32; of moments AdamW has two
HEAD_ROWS = 1024  # rows of logits that exist at once, see learner/logprobs.py
# Elements that a layer keeps for its backward, in widths of the residual stream and of the MLP: inputs of two norms, queries and
# output of attention, inputs of its projections; gate, up, their product, the activation. Attention itself keeps no T x T matrix.
RESIDUALS, INNERS = 8, 4
AFTER = 3  # widths of the residual stream behind the layers: input and output of the last norm, and the head's input


@dataclass(frozen=True, slots=True)
class Need:
    """Holds what one actor needs, in bytes. parts: certain. estimate: of activations."""

    kind: str
    count: int
    on_gpu: bool
    parts: Mapping[str, int] = field(default_factory=dict[str, int])
    estimate: int = 0

    @property
    def certain(self) -> int:
        """Returns the bytes without the estimate."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size(count)}" for name, count in self.parts.items() if count)
        more = f", activations about {size(self.estimate)}" if self.estimate else ""
        return f"{size(self.certain + self.estimate)}: {parts}{more}"


def memory_plan(config: RunConfig, gpu_bytes: int | None = None) -> list[Need] | None:
    """Returns what a learner rank and a generator need; None where the model's size is not known here, as of a hub name.

    gpu_bytes: the memory of a GPU, of which an engine takes its share whatever it needs.
    """
    model = model_size(config.model.path)
    return None if model is None else [learner_need(config, model), generator_need(config, model, gpu_bytes)]


def learner_need(config: RunConfig, model: ModelSize) -> Need:
    """Returns what the largest rank, the first, needs while it trains; stages of the run are not looked at."""
    c, b, p = config.learner, BYTES[config.trainer_precision], model.parameters
    stage, ranks = c.zero_stage, c.ranks
    share = -(-p // ranks)
    if c.lora is not None:
        return Need("learner rank", ranks, c.gpus > 0, _adapted_parts(config, p), _activations(config, model))
    masters = MASTER * (share if stage else p) if stage or b == 2 else 0  # DeepSpeed trains float32 weights themselves
    parts = {
        "weights": b * (share if stage == 3 else p),
        "gradients": b * (share if stage >= 2 else p),
        "masters": masters,
        "moments": 2 * MOMENTS * (share if stage else p),
        "reference": b * (share if stage == 3 else p) if _holds_reference(config) else 0,
        "transfer buffers": 2 * min(config.weights.bucket_mb * 2**20, b * p),
    }
    return Need("learner rank", ranks, c.gpus > 0, parts, _activations(config, model))


def _adapted_parts(config: RunConfig, parameters: int) -> dict[str, int]:
    """Returns what a rank holds that trains an adapter, in float32, of a frozen model, which is its own reference."""
    c, b, adapter = config.learner, BYTES[config.trainer_precision], adapter_elements(config)
    stage, share = c.zero_stage, -(-adapter // c.ranks)
    return {
        "weights": b * (-(-parameters // c.ranks) if stage == 3 else parameters),
        "adapter": MASTER * (share if stage == 3 else adapter),
        "gradients": MASTER * (share if stage >= 2 else adapter),
        "masters": MASTER * share if stage else 0,
        "moments": 2 * MOMENTS * (share if stage else adapter),
        "reference": 0,
        "transfer buffers": 2 * min(config.weights.bucket_mb * 2**20, MASTER * adapter),
    }


def adapter_elements(config: RunConfig) -> int:
    """Returns how many elements the adapter has; 0 without one."""
    lora = config.learner.lora
    if lora is None:
        return 0
    targets = None if lora.targets == "all-linear" else lora.targets
    return adapter_size(config.model.path, lora.rank, lora.dora, targets)


def generator_need(config: RunConfig, model: ModelSize, gpu_bytes: int | None = None) -> Need:
    """Returns what one engine needs on each of its GPUs, or on the host."""
    g, b = config.generators, BYTES[config.engine_dtype]
    weights = b * -(-model.parameters // g.tensor_parallel)
    weights += 4 * model.hidden * model.vocabulary if config.fp32_head and b == 2 else 0
    weights += MASTER * (adapter := adapter_elements(config))
    buffer = min(config.weights.bucket_mb * 2**20, MASTER * adapter if adapter else b * model.parameters)
    parts = {"weights": weights, "KV cache": g.kv_cache_bytes or 0, "transfer buffers": buffer}
    if g.kv_cache_bytes is None and gpu_bytes is not None:
        parts["KV cache"] = max(0, int(g.memory_share * gpu_bytes) - weights)
    return Need("generator", g.least, g.gpus > 0, parts)


@dataclass(frozen=True, slots=True)
class Turns:
    """Holds what is on one GPU of a colocated run in each turn, and in host memory for all of them, in bytes. All of it certain.

    training    the learner's own; generators have put theirs into host memory
    generating  the generator's own, and what of the learner's stays
    host        masters and moments while generators have the GPUs, or their weights while the learner has them
    """

    training: int
    generating: int
    host: int

    def __str__(self) -> str:
        return (
            f"{size(self.training)} while the learner trains, {size(self.generating)} while the generator has the GPU; "
            f"{size(self.host)} of host memory, which is kept in both"
        )


def turns(learner: Need, generator: Need) -> Turns:
    """Returns what the actors of a colocated run need in turn."""
    parts = learner.parts
    stays = parts["weights"] + parts.get("adapter", 0) + parts["reference"] + parts["transfer buffers"]
    host = learner.count * (parts["masters"] + parts["moments"]) + generator.count * generator.parts["weights"]
    return Turns(learner.certain, generator.certain + stays, host)


def kv_tokens(config: RunConfig, model: ModelSize, cache: int) -> int:
    """Returns how many tokens the keys and values of a cache are of, over all layers."""
    a_token = 2 * model.layers * model.key_width * BYTES[config.engine_dtype] // config.generators.tensor_parallel
    return cache // a_token if a_token else 0


def misfit(config: RunConfig, needs: list[Need], host_bytes: int, gpu_bytes: int | None) -> str | None:
    """Returns a sentence where what is certain does not fit one node's memory, with all actors on it; else None.

    gpu_bytes: of one GPU; actors share it where the configuration gives them shares of one.
    """
    if config.generators.colocated:
        return _misfit_in_turn(turns(needs[0], needs[1]), host_bytes, gpu_bytes)
    on_host = sum(need.certain * need.count for need in needs if not need.on_gpu)
    if on_host > host_bytes:
        return (
            f"{_listed([n for n in needs if not n.on_gpu])} need {size(on_host)} of memory at least and this node has "
            f"{size(host_bytes)}: take a smaller model, fewer generators or a smaller generators.kv_cache_mb"
        )
    if gpu_bytes is None:
        return None
    on_gpu = [need for need in needs if need.on_gpu]
    together = sum(n.certain for n in on_gpu) if config.shares_gpus else max((n.certain for n in on_gpu), default=0)
    if together > gpu_bytes:
        who = f"{_listed(on_gpu)} on one GPU" if config.shares_gpus else "an actor"
        return (
            f"{who} need {size(together)} at least and the GPU has {size(gpu_bytes)}: lower generators.gpu_memory_utilization or "
            "generators.kv_cache_mb, raise learner.zero_stage with more learner.ranks, or give each a GPU of its own"
        )
    return None


def _misfit_in_turn(both: Turns, host_bytes: int, gpu_bytes: int | None) -> str | None:
    """Returns the sentence where a turn of a colocated run does not fit the GPU, or what is away meanwhile the host; else None."""
    if both.host > host_bytes:
        return (
            f"learner and generators put {size(both.host)} into host memory when they leave their GPU to each other and this node "
            f"has {size(host_bytes)}: take a smaller model, or leave generators.colocated out and give each a GPU of its own"
        )
    if gpu_bytes is None:
        return None
    if both.training > gpu_bytes:
        return (
            f"the learner needs {size(both.training)} at least while it trains and the GPU has {size(gpu_bytes)}: raise "
            "learner.zero_stage with more learner.ranks and generators.count, or take a smaller model"
        )
    if both.generating > gpu_bytes:
        return (
            f"a generator and the learner's weights beside it need {size(both.generating)} at least and the GPU has "
            f"{size(gpu_bytes)}: lower generators.gpu_memory_utilization or generators.kv_cache_mb"
        )
    return None


def _listed(needs: list[Need]) -> str:
    return " and ".join(f"{need.count} {need.kind}{'s' if need.count > 1 else ''}" for need in needs)


def _holds_reference(config: RunConfig) -> bool:
    return any(config.at_stage(i).objective.kl.coefficient > 0 for i in range(max(1, len(config.stages))))


def _activations(config: RunConfig, model: ModelSize) -> int:
    """Estimates what forward and backward of a micro-batch hold; with checkpoints of one layer at a time, and its inputs of all."""
    b, tokens = BYTES[config.trainer_precision], config.learner.micro_batch_tokens
    layer = tokens * b * (RESIDUALS * model.hidden + INNERS * model.inner + 2 * model.key_width)
    inputs = tokens * b * model.hidden
    body = model.layers * inputs + layer if config.learner.gradient_checkpointing else model.layers * layer
    logits = 4 * min(tokens, HEAD_ROWS) * model.vocabulary
    return body + AFTER * inputs + 3 * logits  # with the probabilities, and the gradient
