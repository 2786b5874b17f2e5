"""Defines what both ends of a weight transfer have to agree on: members, tensors, buckets and errors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

BUCKET_BYTES = 64 * 2**20  # measured: larger buckets gain nothing, smaller ones pay a round trip each
_ALIGN = 16  # every tensor starts at a multiple of this, so that its bytes can be viewed as any dtype
Backend = Literal["gloo", "nccl"]
# Bytes of an element, by torch's name of its type: who only counts bytes, as the driver does, imports no torch.
ITEM_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}


class WeightSyncError(RuntimeError):
    """Reports a failed weight transfer. `member` is who failed, `phase` what was being done, `detail` one sentence."""

    def __init__(self, member: str, phase: str, detail: str) -> None:
        super().__init__(member, phase, detail)  # all three in args: that is what pickle rebuilds it from
        self.member, self.phase, self.detail = member, phase, detail

    def __str__(self) -> str:
        return f"weight sync failed at {self.member} during {self.phase}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Tells one member where to join the weight group, and under which rank and name. Rank 0 is learner rank 0 and owns the
    store at host:port.

    members  the name of every rank, so that rank 0 can say who did not come; may be empty
    Example: Rendezvous("10.0.0.5", 41013, 3, 1, "generator 0", "nccl", epoch=2)
    """

    host: str
    port: int
    world_size: int
    rank: int
    member: str
    backend: Backend
    epoch: int
    members: tuple[str, ...] = ()

    def shard(self, index: int) -> Rendezvous:
        """Returns the rendezvous of the same engine's worker `index` (its tensor-parallel rank): their ranks are consecutive."""
        if index == 0:
            return self
        return replace(self, rank=self.rank + index, member=f"{self.member} shard {index}")


def make_rendezvous(
    host: str, port: int, engines: Sequence[tuple[str, int]], backend: Backend, epoch: int, learner: str = "learner"
) -> tuple[Rendezvous, ...]:
    """Makes one `Rendezvous` for the learner, then one for each (name, tensor-parallel size) in `engines`."""
    first, members = [0], [learner]
    for name, shards in engines:
        first.append(len(members))
        members.extend(name if i == 0 else f"{name} shard {i}" for i in range(shards))
    names = tuple(members)
    return tuple(Rendezvous(host, port, len(names), rank, names[rank], backend, epoch, names) for rank in first)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Describes one tensor: its name (as in the trainer's state_dict), full shape and dtype ("float32", "bfloat16", ...)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Locates one tensor in its bucket, in bytes."""

    spec: TensorSpec
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Lists the tensors that travel in one broadcast; `nbytes` includes the padding between and after them (zeros)."""

    slots: tuple[TensorSlot, ...]
    nbytes: int


@dataclass(frozen=True)
class WeightManifest:
    """Lists what is sent for one policy version. Two equal manifests are divided into equal buckets, on any machine."""

    version: int
    tensors: tuple[TensorSpec, ...]
    bucket_bytes: int = BUCKET_BYTES

    def buckets(self) -> tuple[Bucket, ...]:
        """Groups consecutive tensors up to `bucket_bytes` each; a tensor larger than that gets a bucket of its own."""
        buckets: list[Bucket] = []
        slots: list[TensorSlot] = []
        end = 0
        for spec in self.tensors:
            if slots and end + spec.nbytes > self.bucket_bytes:
                buckets.append(Bucket(tuple(slots), end))
                slots, end = [], 0
            slots.append(TensorSlot(spec, end, end + spec.nbytes))
            end += -(-spec.nbytes // _ALIGN) * _ALIGN
        if slots:
            buckets.append(Bucket(tuple(slots), end))
        return tuple(buckets)

    @cached_property
    def digest(self) -> str:
        """Returns a hash that is equal at two members only if they were given the same manifest."""
        return hashlib.sha256(repr((self.version, self.tensors, self.bucket_bytes)).encode()).hexdigest()


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def make_manifest(
    tensors: Iterable[TensorSpec | tuple[str, torch.Tensor]], version: int, bucket_bytes: int = BUCKET_BYTES
) -> WeightManifest:
    """Makes a manifest of specs or of (name, tensor) pairs, in the order given. ValueError on a repeated name."""
    if bucket_bytes <= 0:
        raise ValueError(f"bucket_bytes must be positive, not {bucket_bytes}")
    specs = tuple(item if isinstance(item, TensorSpec) else spec_of(*item) for item in tensors)
    names = {spec.name for spec in specs}
    if len(names) != len(specs):
        twice = sorted({s.name for s in specs if sum(t.name == s.name for t in specs) > 1})
        raise ValueError(f"a manifest names each tensor once, but these are repeated: {', '.join(twice)}")
    return WeightManifest(version, specs, bucket_bytes)


def verify_checksums(version: int, sent: int, received: Mapping[str, int]) -> None:
    """Raises WeightSyncError naming every member of `received` whose checksum is not the learner's."""
    wrong = {member: value for member, value in received.items() if value != sent}
    if wrong:
        detail = ", ".join(f"{member} has {value:016x}" for member, value in wrong.items())
        raise WeightSyncError(
            ", ".join(wrong), f"checksum of version {version}", f"the learner sent {sent:016x}, {detail}"
        )
