"""Gives every rank the weights that rank 0 has read, so that they are read once and a host holds them once.

Rank 0 loads the model as from_pretrained does. The others build it on the meta device, where it takes no memory, and get parameters
and buffers from rank 0, a parameter at a time.
"""

# pyright: reportUnknownMemberType=false
# torch leaves the results of its collectives untyped.

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from learner.settings import EngineSettings

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
Placed = Callable[[nn.Parameter], None]


class Place(Protocol):
    """Says which of a group's ranks this one is."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...


class Ranks(Protocol):
    """Does what `read_once` needs of DeepSpeedEngine."""

    device: torch.device
    settings: EngineSettings
    dtype: torch.dtype

    @property
    def placement(self) -> Place: ...

    def all_gather(self, value: Tensor) -> list[Tensor]: ...

    def partition(self, parameter: nn.Parameter) -> None: ...


def read_once(ranks: Ranks, load: Callable[..., Model]) -> Model:
    """Returns a model that rank 0 alone has read, and every rank has in the training precision: under ZeRO-3 a part of it.

    load: returns the model; with empty=True without its weights, on the meta device. A collective. Where the model that is built
    without its weights is another than the one that was read, every rank reads.
    """
    rank = ranks.placement.rank
    if ranks.placement.world_size == 1:
        return load(empty=False)
    try:
        model = load(empty=rank != 0)
        mine = structure(model)
    except NotImplementedError:  # a constructor that computes with values
        model, mine = None, torch.zeros(4, dtype=torch.int64)
    found = ranks.all_gather(mine.to(ranks.device))
    if model is None or any(not torch.equal(other, found[0]) for other in found):
        log.warning("every rank reads the model: it cannot be built without its weights")
        return model if model is not None and rank == 0 else load(empty=False)
    spread(model, rank, ranks.dtype, ranks.device, ranks.partition if ranks.settings.zero_stage == 3 else None)
    return model


def structure(model: nn.Module) -> Tensor:
    """Returns a hash [4] of names, shapes and kinds of all parameters and buffers: equal where `spread` can go through them."""
    parts = [("parameter", n, tuple(p.shape), p.requires_grad) for n, p in model.named_parameters()]
    parts += [("buffer", n, tuple(b.shape), str(b.dtype)) for n, b in model.named_buffers(remove_duplicate=False)]
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.int64)


def spread(model: nn.Module, rank: int, dtype: torch.dtype, device: torch.device, placed: Placed | None = None) -> None:
    """Gives this rank's model rank 0's parameters, as `dtype`, and buffers, as they are, on `device`. A collective.

    placed: takes each parameter over as soon as it is on the device, with room for rank 0's values, and has them broadcast.
    Without it all of them stay there, and are broadcast here.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # tied ones have several
        names.setdefault(parameter, []).append(name)
    for parameter in list(names):
        kind = dtype if parameter.is_floating_point() else parameter.dtype
        whole = parameter
        if rank == 0:
            parameter.data = parameter.data.to(device, kind)
        else:
            empty = torch.empty(parameter.shape, dtype=kind, device=device)
            whole = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            for name in names[parameter]:
                _put(model, name, whole)
        if placed is None:
            _broadcast(whole.data)
        else:
            placed(whole)
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        value = buffer.to(device) if rank == 0 else torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
        _broadcast(value)
        _put(model, name, value)


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, value)


def _broadcast(tensor: Tensor) -> None:
    if tensor.numel():
        # A view, whatever the type: NCCL and gloo know bytes. Rank 0's may be a stride of something larger.
        whole = tensor.contiguous()
        torch.distributed.broadcast(whole.view(-1).view(torch.uint8), 0)
        if whole.data_ptr() != tensor.data_ptr():
            tensor.copy_(whole)
