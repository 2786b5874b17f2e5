"""Describes what a run will need before anything starts, and refuses one that this node's memory cannot hold."""

from __future__ import annotations

import os

from orchestration.cluster import node_memory, placement
from orchestration.config.memory_plan import Need, kv_tokens, memory_plan, misfit, turns
from orchestration.config.model_size import model_size
from orchestration.config.run_config import RunConfig
from orchestration.errors import PlacementError


def describe_plan(config: RunConfig) -> str:
    """Describes the resolved configuration, the resources and the memory it needs, for --dry-run."""
    slots = placement.plan(config)
    lines = [f"  {slot.role:<14} {slot.cpus:g} CPU  {slot.gpus:g} GPU" for slot in slots]
    total = placement.totals(slots)
    lines.append(f"  total          {total['CPU']:g} CPU  {total['GPU']:g} GPU")
    return "\n".join([config.to_yaml(), "resources", *lines, "", *_memory(config)])


def check_memory(config: RunConfig) -> None:
    """Raises PlacementError where a cluster of our own, which is this node, cannot hold what the run certainly needs."""
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return  # its nodes are not looked at
    gpu = node_memory.gpu_bytes()
    needs = memory_plan(config, gpu)
    sentence = None if needs is None else misfit(config, needs, node_memory.host_bytes(), gpu)
    if sentence is not None:
        raise PlacementError(sentence)


def _memory(config: RunConfig) -> list[str]:
    model, gpu, host = model_size(config.model.path), node_memory.gpu_bytes(), node_memory.host_bytes()
    needs = memory_plan(config, gpu)
    if model is None or needs is None:
        return [f"memory: not known before {config.model.path} is on this machine"]
    lines = [f"memory of each actor, beside the libraries it loads: {model.parameters:,} parameters"]
    lines += [f"  {need.kind:<14} {need}" for need in needs]
    if config.generators.colocated:
        lines.append(f"  on each GPU    {turns(needs[0], needs[1])}")
    lines += _cache(config, needs[-1], kv_tokens(config, model, needs[-1].parts["KV cache"]))
    sentence = misfit(config, needs, host, gpu)
    return [*lines, f"  does not fit this node: {sentence}"] if sentence else lines


def _cache(config: RunConfig, generator: Need, tokens: int) -> list[str]:
    """Says how many responses the KV cache of a generator holds; nothing where its size is not known."""
    if not tokens or not generator.parts["KV cache"]:
        return []
    longest, at_once = config.generators.max_model_len, config.generators.max_num_seqs
    return [
        f"  the KV cache is for {tokens:,} tokens: {min(at_once, tokens // longest):,} of {at_once:,} responses at once "
        f"(generators.max_num_seqs) if each has {longest:,}"
    ]
