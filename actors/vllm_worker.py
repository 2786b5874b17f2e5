"""Loads weights inside vLLM's worker process: from the channel into the model that is being served.

vLLM mixes `WeightReceiver` into its worker class (`worker_extension_cls`); its methods are reached by `collective_rpc`.
They RETURN a `WeightSyncError` instead of raising it: executors that run workers in other processes pass a raised
exception on as a bare string.
"""
# pyright: reportUnknownVariableType=false
# vLLM's reload functions are annotated in part only.

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from actors.vllm_models import adapter, qwen3_5
from learner.weights.protocol import Rendezvous, WeightManifest, WeightSyncError
from learner.weights.subscriber import Subscriber

# It warns at every update of what was rightly not sent (a tied head, rotary tables); load_in_place checks for itself.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)

READ_IN_PLACE = 2**16  # bytes of a tensor that is not worth a copy


qwen3_5.register()  # vLLM imports this file in every worker, before it looks the model up
adapter.register()


class WeightReceiver:
    """Adds weight transfer to vLLM's worker, which has `rank` (within this engine), `device`, `model_config` and `get_model`."""

    isentrope_subscriber: Subscriber | None = None

    def isentrope_connect(self, rendezvous: Rendezvous, timeout_s: float) -> WeightSyncError | None:
        """Joins the weight group, as this engine's first rank plus the worker's own rank within the engine."""
        worker = cast(Any, self)
        if self.isentrope_subscriber is not None:
            self.isentrope_subscriber.close()
            self.isentrope_subscriber = None
        try:
            model_device = torch.device(worker.device)
            device = (
                model_device if rendezvous.backend == "nccl" else torch.device("cpu")
            )  # what the backend sends from
            self.isentrope_subscriber = Subscriber(
                rendezvous.shard(worker.rank), timeout_s, device=device, model_device=model_device
            )
        except WeightSyncError as error:
            return error
        return None

    def isentrope_receive(self, manifest: WeightManifest, timeout_s: float) -> int | WeightSyncError:
        """Receives one version and loads it; returns the checksum of the bytes. After an error the model is torn."""
        worker = cast(Any, self)
        subscriber = self.isentrope_subscriber
        if subscriber is None:
            phase = f"start of version {manifest.version}"
            return WeightSyncError(f"engine worker {worker.rank}", phase, "connect_weights was not called before")
        try:
            model, tensors = worker.get_model(), own_tensors(subscriber, manifest, timeout_s, worker)
            adapted = adapter.is_adapted(model)
            missing = adapter.load_adapter(model, tensors) if adapted else load_in_place(model, tensors, worker)
        except WeightSyncError as error:
            return error
        except (AssertionError, AttributeError, KeyError, RuntimeError, ValueError) as error:  # vLLM's weight loaders
            subscriber.close()  # the learner must not go on sending to a member that has stopped listening
            detail = f"{type(error).__name__}: {error}"
            return WeightSyncError(subscriber.channel.rendezvous.member, f"load of version {manifest.version}", detail)
        if missing:
            detail = f"the manifest has nothing for {', '.join(sorted(missing))}"
            return WeightSyncError(subscriber.channel.rendezvous.member, f"load of version {manifest.version}", detail)
        return subscriber.checksum

    def isentrope_disconnect(self) -> None:
        """Leaves the weight group."""
        if self.isentrope_subscriber is not None:
            self.isentrope_subscriber.close()
            self.isentrope_subscriber = None


def own_tensors(
    subscriber: Subscriber, manifest: WeightManifest, timeout_s: float, worker: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    """Meets the learner, and returns an iterator of one version's tensors on the worker's device, each of them valid until the
    version is loaded. No layer is touched before all members are there.

    vLLM holds a layer's tensors until the layer is complete, which may be some buckets later. Those that last that long are read
    where they are, if they are on the device and large: what vLLM writes to in place (gpt-oss: biases) is small.
    """
    device, received = torch.device(worker.device), subscriber.receive(manifest, timeout_s)

    def own(tensor: torch.Tensor) -> torch.Tensor:
        stays = subscriber.lasting and tensor.device.type == device.type and tensor.nbytes >= READ_IN_PLACE
        return tensor if stays else tensor.to(device, copy=True)

    return ((name, own(tensor)) for name, tensor in received)


@torch.no_grad()
def load_in_place(model: nn.Module, tensors: Iterator[tuple[str, torch.Tensor]], worker: Any) -> set[str]:
    """Loads Hugging Face tensors into a vLLM model, keeping the addresses that captured graphs refer to.

    Returns the names of vLLM parameters that no tensor was loaded into (tied heads left out).
    """
    expected = {name for name, _ in model.named_parameters()}
    tied_head = _tied_head(model)
    kernels = _forget_expert_kernels(model) if torch.device(worker.device).type == "cpu" else {}
    # A plain load_weights is not enough: engines repack weights at load time (CPU linears even drop the originals), so
    # each layer is put back into checkpoint layout, filled, processed again and copied to where it was.
    initialize_layerwise_reload(model)
    # Now the model is as before its first load: what is gone was made from other parameters then (MLA's absorbed products).
    expected &= {name for name, _ in model.named_parameters()}
    try:
        with _default_device(torch.device(worker.device)):
            loaded: set[str] = cast(Any, model).load_weights(tensors)
        stale = _written_past(model, loaded)
    finally:  # also after a failure, so that a later complete transfer finds the layers in their usual state
        with _default_device(torch.device(worker.device)):
            finalize_layerwise_reload(model, worker.model_config)
        for method, kernel in kernels.items():
            if method.moe_kernel is None:  # nothing was loaded into this layer
                method.moe_kernel = kernel
    if stale:
        raise ValueError(
            f"vLLM's {type(model).__name__} writes {', '.join(sorted(stale)[:3])} and {len(stale)} parameters in all past its own "
            "reload, so that they would stay what they were: this family cannot be trained with this vLLM"
        )
    if tied_head is not None:
        # Trap: nothing is loaded into a tied head, so the reload skips it; but on CPU it has a packed copy of the OLD
        # embedding. Without this line it stays silently stale.
        tied_head.quant_method.process_weights_after_loading(tied_head)
    return expected - loaded - {"lm_head.weight"} if tied_head is not None else expected - loaded


def _default_device(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which tensors are made on this device.

    torch asks such a context at every call: where it is the device they are made on anyway, a fifth of a small model's load.
    """
    return nullcontext() if device == torch.get_default_device() else device


def _written_past(model: nn.Module, loaded: set[str]) -> set[str]:
    """Returns parameters that a model says it has loaded while their layer was given nothing.

    Trap: during a reload parameters have no storage, and only what goes through their weight loaders is kept. A model that copies
    into its parameters itself (gpt-oss: experts and attention sinks) writes into nothing, without an error. A shard of an embedding
    that has no row of the vocabulary, where that is shorter than the padding, is rightly given nothing.
    """
    stale: set[str] = set()
    for prefix, layer in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        info = get_layerwise_info(layer)
        if isinstance(layer, VocabParallelEmbedding) and not _rows(layer):
            continue
        if info.can_load() and not info.load_numel:
            names = {f"{prefix}.{name}".lstrip(".") for name, _ in layer.named_parameters(recurse=False)}
            stale |= names & loaded
    return stale


def _rows(layer: VocabParallelEmbedding) -> int:
    """Returns how many rows of the vocabulary this shard has."""
    return layer.shard_indices.num_org_elements + layer.shard_indices.num_added_elements


def _tied_head(model: nn.Module) -> Any | None:
    """Returns the LM head module if its weight is an embedding's own, else None.

    Embeddings are found by class: their names are the family's own (embed_tokens, wte, word_embeddings).
    """
    modules = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding) and hasattr(m, "weight")]
    embeddings = {id(m.weight) for m in modules if not isinstance(m, ParallelLMHead)}
    for module in modules:
        if isinstance(module, ParallelLMHead) and id(module.weight) in embeddings:
            return module
    return None


def _forget_expert_kernels(model: nn.Module) -> dict[Any, Any]:
    """Makes the layers of experts build their kernels anew when they are reloaded; returns the present ones, by quant method.

    Trap: at first load vLLM packs the experts' weights into the layout of the CPU's grouped product. At a reload it leaves that out
    (its other kernels need no packing, and graphs may hold their addresses), and then copies plain weights over packed ones of the
    same size: the checksums agree and the model is 1 to 2 nats off. Without a kernel it does what it did at first load.
    """
    methods = [getattr(m, "quant_method", None) for m in model.modules()]
    kernels = {
        m: m.moe_kernel for m in methods if isinstance(m, UnquantizedFusedMoEMethod) and m.moe_kernel is not None
    }
    for method in kernels:
        method.moe_kernel = None
    return kernels
