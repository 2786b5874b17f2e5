"""Receives one version of the policy's weights in a generator."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from learner.weights.channel import Channel, bucket_buffer, buffer_device
from learner.weights.checksum import Checksum
from learner.weights.protocol import Rendezvous, WeightManifest


class Subscriber:
    """Receives weights in a generator, with one reusable bucket buffer on `device`."""

    def __init__(self, rendezvous: Rendezvous, timeout_s: float, *, device: torch.device | None = None) -> None:
        self.channel = Channel(rendezvous, timeout_s)
        self.device = device or buffer_device(rendezvous)
        self.checksum = 0  # of the version received last, once its iterator is exhausted
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self.device)

    def receive(self, manifest: WeightManifest, timeout_s: float | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor) in manifest order; when the iterator ends, `checksum` is that of the bytes received.

        The tensors are views of the bucket buffer, valid until the first tensor of the NEXT bucket is asked for: a
        consumer that keeps one beyond that must copy it.
        """
        version, channel = manifest.version, self.channel
        limit = channel.timeout_s if timeout_s is None else timeout_s
        buckets, checksum = manifest.buckets(), Checksum(self.device)
        largest = max((bucket.nbytes for bucket in buckets), default=0)
        if len(self._buffer) < largest:
            self._buffer = bucket_buffer(largest, self.device)
        channel.begin(manifest.digest, f"start of version {version}", limit)
        for index, bucket in enumerate(buckets):
            buffer = self._buffer[: bucket.nbytes]
            phase = f"broadcast of bucket {index + 1} of {len(buckets)} of version {version}"
            channel.wait(channel.broadcast(buffer, limit), phase, limit)
            checksum.update(buffer)
            for slot in bucket.slots:
                view = buffer[slot.start : slot.stop].view(getattr(torch, slot.spec.dtype)).view(slot.spec.shape)
                yield slot.spec.name, view
        self.checksum = checksum.value

    def close(self) -> None:
        self.channel.close()
