"""Sends one version of the policy's weights from learner rank 0."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from learner.weights.channel import Channel, bucket_buffer, buffer_device
from learner.weights.checksum import Checksum
from learner.weights.protocol import Bucket, Rendezvous, TensorSpec, WeightManifest, WeightSyncError, spec_of


class Publisher:
    """Sends weights from learner rank 0, with two bucket buffers on `device`: one is packed while the other is sent.

    overlap  False if the iterator given to `publish` runs collectives of its own (a sharded gather): then each
             broadcast ends before the next tensor is asked for, and the two groups never interleave.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        timeout_s: float,
        *,
        listener: socket.socket | None = None,
        device: torch.device | None = None,
        overlap: bool = True,
    ) -> None:
        self.channel = Channel(rendezvous, timeout_s, listener)
        self.device = device or buffer_device(rendezvous)
        self.overlap = overlap
        self._buffers = [torch.empty(0, dtype=torch.uint8, device=self.device)] * 2

    def publish(self, manifest: WeightManifest, tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
        """Sends every tensor of `manifest`, taken from `tensors` in manifest order; returns the checksum.

        WeightSyncError if a member is missing or slow, or if a tensor is not the one the manifest names; such a
        bucket is not sent.
        """
        version, channel = manifest.version, self.channel
        channel.begin(manifest.digest, f"start of version {version}", channel.timeout_s)
        buckets, checksum, source = manifest.buckets(), Checksum(self.device), iter(tensors)
        flying: tuple[dist.Work, str] | None = None
        for index, bucket in enumerate(buckets):
            phase = f"bucket {index + 1} of {len(buckets)} of version {version}"
            buffer = self._buffer(index % 2, bucket.nbytes)
            try:
                _pack(bucket, buffer, source)
            except ValueError as error:
                channel.close()
                raise WeightSyncError(channel.rendezvous.member, f"packing {phase}", str(error)) from error
            if flying is not None:
                channel.wait(*flying)
            flying = channel.broadcast(buffer), f"broadcast of {phase}"
            checksum.update(buffer)
            if not self.overlap:
                channel.wait(*flying)
                flying = None
        if flying is not None:
            channel.wait(*flying)
        extra = next(source, None)
        if extra is not None:
            channel.close()
            detail = f"{extra[0]} was given but is not in the manifest"
            raise WeightSyncError(channel.rendezvous.member, f"end of version {version}", detail)
        return checksum.value

    def close(self) -> None:
        self.channel.close()

    def _buffer(self, slot: int, nbytes: int) -> torch.Tensor:
        if len(self._buffers[slot]) < nbytes:
            self._buffers[slot] = bucket_buffer(nbytes, self.device)
        return self._buffers[slot][:nbytes]


def _pack(bucket: Bucket, buffer: torch.Tensor, source: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Copy the bucket's tensors into `buffer`, padding zeroed. ValueError if the source gives something else."""
    ends = [*(slot.start for slot in bucket.slots[1:]), bucket.nbytes]
    for slot, end in zip(bucket.slots, ends, strict=True):
        item = next(source, None)
        if item is None:
            raise ValueError(f"the tensors ended before {slot.spec.name}")
        spec = spec_of(*item)
        if spec != slot.spec:
            raise ValueError(f"the manifest says {_describe(slot.spec)}, but {_describe(spec)} was given")
        target = buffer[slot.start : slot.stop].view(item[1].dtype).view(item[1].shape)
        target.copy_(item[1].detach())
        buffer[slot.stop : end].zero_()


def _describe(spec: TensorSpec) -> str:
    return f"{spec.name} {list(spec.shape)} {spec.dtype}"
