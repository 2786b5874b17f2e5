"""Applies the run's one adapter inside vLLM's linear layers, and loads a version of it in place.

vLLM's own LoRA serves many adapters at once, and pays for it: on a CPU it gathers a copy of an adapter's matrices for every token,
on a GPU its kernels take no float32, and DoRA it refuses. Here every request has the same adapter, so that it is two products more
after a layer's own, in float32 as peft computes them, on any device, and in the graphs that vLLM captures. Layers get it by vLLM's
extension point for linear methods, a registered quantization configuration, though nothing is quantized.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# vLLM annotates its layers in part only.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from learner.adapters.names import LORA_A, LORA_B, OUTPUT_SCALE, split_name
from learner.settings import LoraSettings

NAME = "isentrope_adapter"


def register() -> None:
    """Tells vLLM of the linear method. Every process that builds an engine or a worker calls it, before a model is looked up."""
    if NAME not in QUANTIZATION_METHODS:
        register_quantization_config(NAME)(AdapterConfig)


def described(lora: LoraSettings) -> dict[str, Any]:
    """Returns what a model's configuration says to be served with an adapter: `AdapterConfig.from_config` reads it."""
    targets = None if lora.targets == "all-linear" else list(lora.targets)
    return {
        "quant_method": NAME,
        "rank": lora.rank,
        "scaling": lora.scaling,
        "dora": lora.dora,
        "targets": targets,
    }


class AdapterConfig(QuantizationConfig):
    """Gives linear layers `AdaptedLinear`, all of them or those that have a target."""

    def __init__(self, rank: int, scaling: float, dora: bool, targets: list[str] | None) -> None:
        super().__init__()
        self.rank, self.scaling, self.dora, self.targets = rank, scaling, dora, targets

    def get_name(self) -> Any:
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AdapterConfig:
        return cls(config["rank"], config["scaling"], config["dora"], config["targets"])

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        if not isinstance(layer, LinearBase):
            return None  # vLLM's own: embeddings, heads, experts, attention
        own = prefix.rpartition(".")[2]
        names = {own, *self.packed_modules_mapping.get(own, ())}
        if self.targets is None or any(target.rpartition(".")[2] in names for target in self.targets):
            return AdaptedLinear(self, joins=len(self.packed_modules_mapping.get(own, ())) > 1)
        return UnquantizedLinearMethod()


class AdaptedLinear(UnquantizedLinearMethod):
    """Computes a linear layer and its adapter: W x + scaling B A x + bias, of DoRA scale * (W x + scaling B A x) + bias.

    A layer that joins several of the checkpoint's (queries, keys, values) has an A and a B for each, of the rows that are its own.
    joins: it does; where the checkpoint joins them as well (Phi-3) it has one A and one B.
    """

    def __init__(self, config: AdapterConfig, joins: bool) -> None:
        super().__init__()
        self.config, self._joins = config, joins
        self.sizes: list[int] = []  # output features of each of the checkpoint's layers

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *rest: Any,
        **attributes: Any,
    ) -> None:
        super().create_weights(layer, input_size_per_partition, output_partition_sizes, *rest, **attributes)
        # Buffers of the layer, not of this method: vLLM's memory pools and compiler know those. Their addresses never change.
        self.sizes = list(output_partition_sizes) if self._joins else [sum(output_partition_sizes)]
        rank, rows = self.config.rank, sum(self.sizes)
        buffers = {
            "adapter_a": torch.zeros(len(self.sizes) * rank, input_size_per_partition, dtype=torch.float32),
            "adapter_b": torch.zeros(rows, rank, dtype=torch.float32),
        }
        if self.config.dora:
            buffers["adapter_scale"] = torch.ones(rows, dtype=torch.float32)
        for name, buffer in buffers.items():
            layer.register_buffer(name, buffer, persistent=False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        dora = self.config.dora
        y = super().apply(layer, x, None if dora else bias)
        rank = self.config.rank
        inner = linear(x.float(), layer.adapter_a).split(rank, dim=-1)
        outer = zip(inner, layer.adapter_b.split(self.sizes), strict=True)
        change = torch.cat([linear(h, b) for h, b in outer], dim=-1) * self.config.scaling
        if not dora:
            return (y.float() + change).to(y.dtype)
        y = ((y.float() + change) * layer.adapter_scale).to(y.dtype)
        return y if bias is None else y + bias


def is_adapted(model: nn.Module) -> bool:
    """Returns whether the model is served with an adapter."""
    return any(True for _ in _layers(model))


def _layers(model: nn.Module) -> Iterator[tuple[str, Any, AdaptedLinear]]:
    for name, layer in model.named_modules():
        if isinstance(layer, LinearBase) and isinstance(layer.quant_method, AdaptedLinear):
            yield name, layer, layer.quant_method


@torch.no_grad()
def load_adapter(model: nn.Module, tensors: Iterator[tuple[str, Tensor]]) -> set[str]:
    """Copies one version of the adapter into the layers. Returns what a layer that got a part of it still lacks, by name.

    Raises ValueError for a tensor that belongs to no layer, or has another shape than its place.
    """
    places = _places(model)
    renames = cast(Any, model).hf_to_vllm_mapper.get_rename_mapper() if _has_mapper(model) else None
    filled: set[str] = set()
    for name, tensor in tensors:
        module, kind = split_name(name)
        module = module if renames is None else renames.map_name(module)
        place = places.get(f"{module}.{kind}")
        if place is None:
            raise ValueError(
                f"vLLM's {type(model).__name__} has no linear layer for {name}: leave it out of lora.targets"
            )
        if place.shape != tensor.shape:
            raise ValueError(f"{name} is {list(tensor.shape)} and its place in vLLM's layer {list(place.shape)}")
        place.copy_(tensor)
        filled.add(f"{module}.{kind}")
    begun = {split_name(name)[0] for name in filled}
    return {name for name in places if split_name(name)[0] in begun} - filled


def _has_mapper(model: nn.Module) -> bool:
    return getattr(model, "hf_to_vllm_mapper", None) is not None


def _places(model: nn.Module) -> dict[str, Tensor]:
    """Returns where each tensor of the adapter goes, by the name of the checkpoint's layer and what it is there: views."""
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
    places: dict[str, Tensor] = {}
    for name, layer, method in _layers(model):
        parent, _, own = name.rpartition(".")
        parts = packed[own] if len(method.sizes) > 1 else [own]
        rank, at = method.config.rank, 0
        for i, (part, size) in enumerate(zip(parts, method.sizes, strict=True)):
            module = f"{parent}.{part}" if parent else part
            places[f"{module}.{LORA_A}"] = layer.adapter_a[i * rank : (i + 1) * rank]
            places[f"{module}.{LORA_B}"] = layer.adapter_b[at : at + size]
            if method.config.dora:
                places[f"{module}.{OUTPUT_SCALE}"] = layer.adapter_scale[at : at + size]
            at += size
    return places
