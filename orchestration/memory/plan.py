"""Computes, before anything starts, what memory a run will need: from the configuration and the model's folder. Pure.

What follows from shapes is exact up to allocators, and activations are an estimate. docs/memory.md has what both come to, and
tests/benchmarks/RESULTS.md how far what processes really took was from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestration.config.run_config import RunConfig
from orchestration.memory.learner_rank import BYTES, FLOAT, adapter_elements, rank_need
from orchestration.memory.model_size import ModelSize, model_size
from orchestration.memory.need import Need
from orchestration.memory.shapes import published_size
from orchestration.text import size

# Resident bytes, on a CPU: of an engine beside weights, KV cache and the copy that it maps, at its peak (with SmolLM2-135M; what it
# takes for a step and for loading a layer is in it), of a verifier, and of the rest of a run, the driver and Ray's own processes.
ENGINE_LIBRARIES, VERIFIER_LIBRARIES, BESIDE = 1250 * 2**20, 100 * 2**20, 800 * 2**20


def memory_plan(config: RunConfig, gpu_bytes: int | None = None) -> list[Need] | None:
    """Returns what every kind of actor needs; None where the model's size is not known here.

    gpu_bytes: the memory of a GPU, of which an engine takes its share whatever it needs.
    """
    model = known_size(config.model.path)
    return None if model is None else needs_of(config, model, gpu_bytes)


def known_size(model: str) -> ModelSize | None:
    """Returns the size of a local folder, or of a published model by its name; None where neither is known."""
    return model_size(model) or published_size(model)


def needs_of(config: RunConfig, model: ModelSize, gpu_bytes: int | None = None) -> list[Need]:
    """Returns what a learner rank, a generator and a verifier need, in this order."""
    verifier = Need("verifier", config.verifiers.count, False, {"libraries": VERIFIER_LIBRARIES})
    return [rank_need(config, model), generator_need(config, model, gpu_bytes), verifier]


def host_need(needs: list[Need]) -> int:
    """Returns the certain bytes of host memory of all actors, on one node, with the run's own processes."""
    return BESIDE + sum(need.on_host() for need in needs)


def generator_need(config: RunConfig, model: ModelSize, gpu_bytes: int | None = None) -> Need:
    """Returns what one engine needs on each of its GPUs, or on the host."""
    g, b = config.generators, BYTES[config.engine_dtype]
    on_gpu = g.gpus > 0
    weights = b * -(-model.parameters // g.tensor_parallel)
    weights += FLOAT * model.hidden * model.vocabulary if config.fp32_head and b == 2 else 0
    weights += FLOAT * (adapter := adapter_elements(config, model))
    everything = FLOAT * adapter if adapter else BYTES[config.trainer_precision] * model.parameters
    mapped = everything if config.weights.shared_memory and not on_gpu and not config.learner.gpus else 0
    buffer = mapped or min(config.weights.bucket_mb * 2**20, everything)
    parts = {} if on_gpu else {"libraries": ENGINE_LIBRARIES}
    parts |= {"weights": weights, "KV cache": g.kv_cache_bytes or 0, "transfer buffers": buffer}
    if g.kv_cache_bytes is None and gpu_bytes is not None:
        parts["KV cache"] = max(0, int(g.memory_share * gpu_bytes) - weights)
    beside = {"libraries": ENGINE_LIBRARIES} if on_gpu else {}
    return Need("generator", g.least, on_gpu, parts, beside=beside, shared=mapped)


@dataclass(frozen=True, slots=True)
class Turns:
    """Holds what is on one GPU of a colocated run in each turn, and in host memory for all of them, in bytes, activations by half.

    training    the learner's own; generators have put theirs into host memory
    generating  the generator's own, and what of the learner's stays
    host        masters and moments while generators have the GPUs, or their weights while the learner has them; activations
                that are kept there, of which half is counted as on a GPU
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
    state = parts["masters"] + parts["moments"] + learner.away // 2
    host = learner.count * state + generator.count * generator.parts["weights"]
    return Turns(learner.least, generator.certain + stays, host)


def kv_tokens(config: RunConfig, model: ModelSize, cache: int) -> int:
    """Returns how many tokens the keys and values of a cache are of, over all layers."""
    a_token = 2 * model.layers * model.key_width * BYTES[config.engine_dtype] // config.generators.tensor_parallel
    return cache // a_token if a_token else 0


def misfit(config: RunConfig, needs: list[Need], host_bytes: int, gpu_bytes: int | None) -> str | None:
    """Returns a sentence where the plan does not fit one node's memory, with all actors on it; else None.

    gpu_bytes: of one GPU; actors share it where the configuration gives them shares of one. Activations are an estimate, of which
    half is counted: a run is refused that would fail, not one that might.
    """
    on_host = host_need(needs)
    if config.generators.colocated:
        both = turns(needs[0], needs[1])
        return _misfit_in_turn(both, host_bytes, gpu_bytes)
    if on_host > host_bytes:
        return (
            f"{_listed([n for n in needs if not n.on_gpu])} need {size(on_host)} of memory at least, with the run's own processes, "
            f"and this node has {size(host_bytes)}"
        )
    if gpu_bytes is None:
        return None
    on_gpu = [need for need in needs if need.on_gpu]
    if config.shares_gpus and sum(need.least for need in on_gpu) > gpu_bytes:
        together = sum(need.least for need in on_gpu)
        return f"{_listed(on_gpu)} on one GPU need {size(together)} at least and the GPU has {size(gpu_bytes)}"
    for need in on_gpu:
        if need.least > gpu_bytes:
            return f"a {need.kind} needs {size(need.least)} at least and the GPU has {size(gpu_bytes)}"
    return None


def _misfit_in_turn(both: Turns, host_bytes: int, gpu_bytes: int | None) -> str | None:
    """Returns the sentence where a turn of a colocated run does not fit the GPU, or what is away meanwhile the host; else None."""
    if both.host > host_bytes:
        return (
            f"learner and generators put {size(both.host)} into host memory when they leave their GPU to each other and this node "
            f"has {size(host_bytes)}"
        )
    if gpu_bytes is None:
        return None
    if both.training > gpu_bytes:
        return f"the learner needs {size(both.training)} at least while it trains and the GPU has {size(gpu_bytes)}"
    if both.generating > gpu_bytes:
        return (
            f"a generator and the learner's weights beside it need {size(both.generating)} at least and the GPU has "
            f"{size(gpu_bytes)}"
        )
    return None


def _listed(needs: list[Need]) -> str:
    names = [f"{need.count} {need.kind}{'s' if need.count > 1 else ''}" for need in needs]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
