"""Sends one version of the policy's weights from learner rank 0."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from learner.weights.channel import Channel, buffer_device
from learner.weights.checksum import Checksum
from learner.weights.choice import Medium, OutletChoice
from learner.weights.protocol import Bucket, Rendezvous, TensorSpec, WeightManifest, WeightSyncError, spec_of


class Publisher:
    """Sends weights from learner rank 0, by the best medium that it shares with every engine.

    device   where buckets are packed that travel over the network; None: where the backend sends from
    sharded  whether the tensors given to `publish` are gathered from ranks as they are asked for
    memory   whether engines on this host may read the weights out of its memory
    source   where the learner's tensors are: engines may share that GPU
    gone     the engines that are not waited for; it may grow at any time
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        timeout_s: float,
        *,
        listener: socket.socket | None = None,
        device: torch.device | None = None,
        sharded: bool = False,
        memory: bool = True,
        source: torch.device | None = None,
        gone: Collection[str] = (),
    ) -> None:
        self.channel = Channel(rendezvous, timeout_s, listener, gone)
        self._choice = OutletChoice(
            self.channel,
            device or buffer_device(rendezvous),
            # NCCL: it was not proven that a broadcast may go on beside the next gather, on the same device.
            overlap=not sharded or rendezvous.backend == "gloo",
            memory=memory,
            gpu=source if source is not None and source.type == "cuda" else None,
        )
        self.sent = 0  # buckets so far

    @property
    def medium(self) -> Medium:
        """Returns how the last version travelled."""
        return self._choice.medium

    def publish(self, manifest: WeightManifest, tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
        """Sends every tensor of `manifest`, taken from `tensors` in manifest order; returns the checksum.

        In memory that engines share it is of a part of every page (checksum.py). WeightSyncError if a member is missing or slow,
        or if a tensor is not the one the manifest names; such a bucket is not sent.
        """
        version, channel, buckets = manifest.version, self.channel, manifest.buckets()
        start = f"start of version {version}"
        outlet = self._choice.outlet(buckets, channel.begin(manifest.digest, start, channel.timeout_s), start)
        source, index = iter(tensors), 0
        try:
            with _Summing(pages=self.medium == "memory") as total:
                for index, bucket in enumerate(buckets):
                    phase = f"bucket {index + 1} of {len(buckets)} of version {version}"
                    buffer = outlet.room(index, bucket, phase)
                    self._pack(bucket, buffer, source, phase)
                    outlet.send(index, buffer, phase)
                    total.add(buffer)
                    self.sent += 1
                outlet.finish()
                if (extra := next(source, None)) is not None:
                    detail = f"{extra[0]} was given but is not in the manifest"
                    raise WeightSyncError(channel.rendezvous.member, f"end of version {version}", detail)
                return total.value
        except BaseException as error:
            outlet.abandon(index, str(error))  # or the engines would wait for their limit
            channel.close()
            raise

    def close(self) -> None:
        self._choice.close()
        self.channel.close()

    def _pack(
        self, bucket: Bucket, buffer: torch.Tensor, source: Iterator[tuple[str, torch.Tensor]], phase: str
    ) -> None:
        try:
            pack(bucket, buffer, source)
        except ValueError as error:
            raise WeightSyncError(self.channel.rendezvous.member, f"packing {phase}", str(error)) from error


class _Summing:
    """Adds buckets up in a thread, while the next one is packed; at most one is under way, so that buffers can be used in turn."""

    def __init__(self, pages: bool) -> None:
        self._pages = pages
        self._pool = ThreadPoolExecutor(1, "weights-checksum")
        self._last: Future[None] | None = None
        self._checksum: Checksum | None = None

    def add(self, buffer: torch.Tensor) -> None:
        """Adds a bucket, once the one before it is done."""
        checksum = self._checksum = self._checksum or Checksum(buffer.device, self._pages)
        self._wait()
        if buffer.device.type == "cpu":
            self._last = self._pool.submit(checksum.update, buffer)
        else:
            checksum.update(buffer)  # in the stream that packed it

    @property
    def value(self) -> int:
        self._wait()
        return 0 if self._checksum is None else self._checksum.value

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> _Summing:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def pack(bucket: Bucket, buffer: torch.Tensor, source: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Copies the bucket's tensors into `buffer`, padding zeroed. ValueError if the source gives something else."""
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
