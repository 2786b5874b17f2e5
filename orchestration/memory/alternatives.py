"""Finds settings with which a run that does not fit would: one change where one is enough, else several together.

Changes are tried from the cheapest on: first what costs time alone, then what costs a measurement, then what trains something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from pydantic import BaseModel

from learner.settings import LoraSettings
from orchestration.config.run_config import RunConfig
from orchestration.memory.model_size import ModelSize
from orchestration.memory.need import Need
from orchestration.memory.plan import host_need, misfit, needs_of, turns
from orchestration.text import size

MOST = 3  # alternatives that are named
AT_ONCE = 4  # changes that are tried together
SMALLEST_MICRO_BATCH = 1024  # slots: with fewer a pass is mostly what it costs beside them
RANK = 32  # of the adapter that is proposed


@dataclass(frozen=True, slots=True)
class Machine:
    """Says what there is: bytes of the host, bytes of a GPU (None without one), and how many GPUs."""

    host: int
    gpu: int | None = None
    gpus: int = 0


Change = dict[str, Any]  # full keys -> values that are set together


def remedy(config: RunConfig, model: ModelSize, machine: Machine) -> str:
    """Returns what would fit, as the end of a sentence: "learner.zero_stage=3, or learner.lora.rank=32 would fit"."""
    found = would_fit(config, model, machine)
    if found:
        return f"{', or '.join(_said(change) for change in found)} would fit"
    smallest, change = least(config, model, machine)
    return (
        f"nothing that was tried fits; the least need is {size(smallest)}, with {_said(change)}: take a smaller model"
    )


def would_fit(config: RunConfig, model: ModelSize, machine: Machine) -> list[Change]:
    """Returns up to MOST alternatives that fit with whole activations, the fewest changes of the cheapest kinds first."""
    options = _options(config, machine)
    for count in range(1, AT_ONCE + 1):
        found: list[Change] = []
        for chosen in combinations(options, count):
            for values in product(*chosen):  # the mildest value of each first
                change = {key: value for part in values for key, value in part.items()}
                if _fits(config, change, model, machine) and _allowed(config, change):
                    found.append(change)
                    break
            if len(found) == MOST:
                return found
        if found:
            return found
    return []


def least(config: RunConfig, model: ModelSize, machine: Machine) -> tuple[int, Change]:
    """Returns the least need, on what does not fit, that all changes together come to, and these."""
    change: Change = {}
    for option in _options(config, machine):
        tried = {**change, **option[-1]}
        if _allowed(config, tried) and _need(config, tried, model, machine) < _need(config, change, model, machine):
            change = tried
    return _need(config, change, model, machine), change


def _options(config: RunConfig, machine: Machine) -> list[list[Change]]:
    """Returns the kinds of changes, the cheapest first; of each kind its values, the mildest first."""
    c, g = config.learner, config.generators
    slots = [
        {"learner.micro_batch_tokens": n}
        for n in (16384, 8192, 4096, 2048, SMALLEST_MICRO_BATCH)
        if n < c.micro_batch_tokens
    ]
    stages = [{"learner.zero_stage": n} for n in (1, 2, 3) if n > c.zero_stage and c.ranks > 1]
    kinds: list[list[Change]] = [
        slots,
        [{"learner.gradient_checkpointing": True}] if not c.gradient_checkpointing else [],
        stages,
        _more_ranks(config, machine),
        [{"learner.ledger_share": 0.0}] if c.ledger_share else [],
        [{"generators.count": 1}] if g.count > 1 and not g.gpus and g.min is None and g.max is None else [],
        _smaller_cache(config),
        [{"generators.tensor_parallel": n} for n in (2, 4, 8) if g.gpus == 1 and _room(config, machine, n)],
        [{"learner.offload_activations": True}] if c.gpus and not c.offload_activations else [],
        _offload(config),
        [{"learner.optimiser_bits": 8}] if c.optimiser_bits == 32 and not c.offload_optimiser else [],
        [{"precision.mode": "bf16"}]
        if config.precision.mode == "fp32" and c.precision is None and g.dtype is None
        else [],
        [{"learner.lora": LoraSettings(rank=RANK)}] if c.lora is None else [],
    ]
    return [kind for kind in kinds if kind]


def _more_ranks(config: RunConfig, machine: Machine) -> list[Change]:
    """Returns more ranks of whole GPUs with ZeRO-3, as far as there are GPUs; colocated, generators come with them."""
    c, g = config.learner, config.generators
    if c.gpus != 1:
        return []
    found: list[Change] = []
    others = 0 if g.colocated else int(g.gpus * g.tensor_parallel * g.least)
    for ranks in (2, 4, 8):
        if c.ranks < ranks <= machine.gpus - others:
            with_it = {"generators.count": ranks} if g.colocated else {}
            found.append({"learner.ranks": ranks, "learner.zero_stage": 3, **with_it})
    return found


def _smaller_cache(config: RunConfig) -> list[Change]:
    """Returns smaller KV caches: in MB where that is set, else as a smaller share of the GPU."""
    g = config.generators
    if g.kv_cache_mb is not None:
        return [{"generators.kv_cache_mb": g.kv_cache_mb // n} for n in (2, 4) if g.kv_cache_mb >= n]
    if g.gpus:
        return [{"generators.gpu_memory_utilization": s} for s in (0.4, 0.3, 0.2) if s < g.memory_share]
    return []


def _room(config: RunConfig, machine: Machine, shards: int) -> bool:
    """Returns whether the machine has the GPUs for engines of so many shards."""
    c, g = config.learner, config.generators
    return g.tensor_parallel < shards and c.gpus * c.ranks + shards * g.least <= machine.gpus


def _offload(config: RunConfig) -> list[Change]:
    c = config.learner
    if c.offload_optimiser or not c.gpus or config.generators.colocated:
        return []
    return [{"learner.offload_optimiser": True, **({} if c.zero_stage else {"learner.zero_stage": 2})}]


def _with(config: RunConfig, change: Change) -> RunConfig:
    """Returns the configuration with a change, not validated."""
    for key, value in change.items():
        section, name = key.split(".")
        part: BaseModel = getattr(config, section)
        config = config.model_copy(update={section: part.model_copy(update={name: value})})
    return config


def _allowed(config: RunConfig, change: Change) -> bool:
    try:
        RunConfig.model_validate(_with(config, change).model_dump())
    except ValueError:
        return False
    return True


def _fits(config: RunConfig, change: Change, model: ModelSize, machine: Machine) -> bool:
    changed = _with(config, change)
    needs = [_whole(need) for need in needs_of(changed, model, machine.gpu)]
    return misfit(changed, needs, machine.host, machine.gpu) is None


def _whole(need: Need) -> Need:
    """Returns the need with its activations counted in full: what is proposed should fit as planned."""
    return Need(
        need.kind,
        need.count,
        need.on_gpu,
        {**need.parts, "activations": need.estimate},
        beside={**need.beside, "activations": need.away},
        first_only=need.first_only,
        shared=need.shared,
    )


def _need(config: RunConfig, change: Change, model: ModelSize, machine: Machine) -> int:
    """Returns the bytes on what is too small: the GPU where one is planned for, else the host."""
    changed = _with(config, change)
    needs = [_whole(need) for need in needs_of(changed, model, machine.gpu)]
    on_gpu = [need.certain for need in needs if need.on_gpu]
    if machine.gpu is None or not on_gpu:
        return host_need(needs)
    if changed.generators.colocated:
        both = turns(needs[0], needs[1])
        return max(both.training, both.generating)
    return sum(on_gpu) if changed.shares_gpus else max(on_gpu)


def _said(change: Change) -> str:
    """Writes a change as it is given on the command line."""
    return " ".join(_words(change)) or "the settings as they are"


def _words(change: Change) -> Iterator[str]:
    for key, value in change.items():
        if isinstance(value, LoraSettings):
            yield f"{key}.rank={value.rank}"
        else:
            yield f"{key}={str(value).lower() if isinstance(value, bool) else value}"
