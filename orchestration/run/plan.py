"""Describes what a run will need before anything starts, and refuses one that this node's memory cannot hold."""

from __future__ import annotations

import os

from orchestration.cluster import node_memory, placement
from orchestration.config.run_config import RunConfig
from orchestration.errors import PlacementError
from orchestration.memory.alternatives import Machine, remedy
from orchestration.memory.model_size import ModelSize
from orchestration.memory.need import Need
from orchestration.memory.plan import BESIDE, host_need, known_size, kv_tokens, misfit, needs_of, turns
from orchestration.text import size


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
    model = known_size(config.model.path)
    sentence = None if model is None else _refusal(config, model)
    if sentence is not None:
        raise PlacementError(sentence)


def _refusal(config: RunConfig, model: ModelSize) -> str | None:
    """Returns why the run does not fit this node, and what would; None where it fits."""
    machine = _machine()
    sentence = misfit(config, needs_of(config, model, machine.gpu), machine.host, machine.gpu)
    return None if sentence is None else f"{sentence}: {remedy(config, model, machine)}"


def _machine() -> Machine:
    gpus = node_memory.gpus_bytes()
    return Machine(node_memory.host_bytes(), min(gpus, default=None), len(gpus))


def _memory(config: RunConfig) -> list[str]:
    model, machine = known_size(config.model.path), _machine()
    if model is None:
        return [f"memory: not known before {config.model.path} is on this machine"]
    needs = needs_of(config, model, machine.gpu)
    lines = [f"memory of each actor: {model.parameters:,} parameters"]
    lines += [f"  {need.kind:<14} {need}" for need in needs]
    lines += _cards(config, needs, machine)
    lines += _cache(config, needs[1], kv_tokens(config, model, needs[1].parts["KV cache"]))
    sentence = _refusal(config, model)
    return [*lines, f"  does not fit this node: {sentence}"] if sentence else lines


def _cards(config: RunConfig, needs: list[Need], machine: Machine) -> list[str]:
    """Says what comes together on a GPU, and on a node that has all actors."""
    has = "" if machine.gpu is None else f" of {size(machine.gpu)}"
    lines: list[str] = []
    if config.generators.colocated:
        lines.append(f"  on each GPU    {turns(needs[0], needs[1])}{has and f'; the GPU has {has[4:]}'}")
    elif config.shares_gpus:
        lines.append(f"  on a GPU       {size(sum(n.total for n in needs if n.on_gpu))}{has}: all that share one")
    else:
        lines += [f"  on a GPU       {size(n.total)}{has}: a {n.kind}" for n in needs if n.on_gpu]
    return [
        *lines,
        f"  on this node   {size(host_need(needs))} of {size(machine.host)} of host memory, {size(BESIDE)} for driver and Ray",
    ]


def _cache(config: RunConfig, generator: Need, tokens: int) -> list[str]:
    """Says how many responses the KV cache of a generator holds; nothing where its size is not known."""
    if not tokens or not generator.parts["KV cache"]:
        return []
    longest, at_once = config.generators.max_model_len, config.generators.max_num_seqs
    return [
        f"  the KV cache is for {tokens:,} tokens: {min(at_once, tokens // longest):,} of {at_once:,} responses at once "
        f"(generators.max_num_seqs) if each has {longest:,}"
    ]
