"""Receives one version of the policy's weights in a generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from learner.weights.channel import Channel, buffer_device
from learner.weights.checksum import Checksum
from learner.weights.choice import InletChoice, greeting
from learner.weights.protocol import Bucket, Rendezvous, WeightManifest


class Subscriber:
    """Receives weights in a generator, by what the learner offers.

    device: where buckets are received that travel over the network; None: where the backend receives. model_device: where the
    engine's model is; None: as `device`.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        timeout_s: float,
        *,
        device: torch.device | None = None,
        model_device: torch.device | None = None,
    ) -> None:
        self.channel = Channel(rendezvous, timeout_s)
        device = device or buffer_device(rendezvous)
        self._choice = InletChoice(self.channel, device)
        self._greeting = greeting(model_device or device)
        self.checksum = 0  # of the version received last, once its iterator is exhausted
        self.lasting = False  # whether the tensors of the version under way stay as they are until the next

    def receive(self, manifest: WeightManifest, timeout_s: float | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Meets the other members, and returns an iterator of (name, tensor) in manifest order; when it ends, `checksum` is that of
        the bytes received. The learner packs from the meeting on, so that its caller can prepare itself meanwhile.

        The tensors are views of a bucket, valid until the first tensor of the NEXT bucket is asked for: a consumer that keeps one
        beyond that must copy it, unless they are `lasting`, which is known when the first is there.
        """
        version, channel = manifest.version, self.channel
        limit = channel.timeout_s if timeout_s is None else timeout_s
        start, buckets = f"start of version {version}", manifest.buckets()
        channel.begin(manifest.digest, start, limit, self._greeting)
        return self._tensors(version, buckets, start, limit)

    def _tensors(
        self, version: int, buckets: Sequence[Bucket], start: str, limit: float
    ) -> Iterator[tuple[str, torch.Tensor]]:
        inlet = self._choice.inlet(buckets, start, limit)
        self.lasting, checksum = inlet.lasting, None
        for index, bucket in enumerate(buckets):
            buffer = inlet.take(index, bucket, f"bucket {index + 1} of {len(buckets)} of version {version}", limit)
            checksum = checksum or Checksum(buffer.device, pages=inlet.lasting)
            checksum.update(buffer)
            for slot in bucket.slots:
                view = buffer[slot.start : slot.stop].view(getattr(torch, slot.spec.dtype)).view(slot.spec.shape)
                yield slot.spec.name, view
        self.checksum = 0 if checksum is None else checksum.value

    def close(self) -> None:
        self._choice.close()
        self.channel.close()
