"""Carries packed buckets from the learner to the engines: over the network, or through memory that they share.

An outlet is the learner's end and an inlet an engine's. Both take the buckets in manifest order, and both wait no longer than the
channel allows. What says that a bucket is there, and who is missing, is the channel's in every medium.

    network  a broadcast of every bucket: gloo or NCCL
    memory   one segment of the host's memory with room for a whole version: written once, read in place by every engine
    gpu      two buckets of the GPU that learner and engines share, in turn (cuda_ipc.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from learner.weights.channel import Channel, bucket_buffer
from learner.weights.host_memory import OpenSegment, Segment
from learner.weights.protocol import Bucket, WeightSyncError

ENDED = "!"  # before the reason why no bucket comes any more


class Outlet(Protocol):
    """Carries buckets away from learner rank 0."""

    def begin(self, buckets: Sequence[Bucket]) -> None:
        """Prepares for a version that is divided into these buckets. The engines are done with the one before."""
        ...

    def room(self, index: int, bucket: Bucket, phase: str) -> Tensor:
        """Returns where bucket `index` is to be packed, [nbytes] uint8; waits until nobody needs what is there."""
        ...

    def send(self, index: int, buffer: Tensor, phase: str) -> None:
        """Starts sending the bucket that was packed. The buffer stays as it is until `room` gives it out again."""
        ...

    def finish(self) -> None:
        """Returns when this end has nothing more to do for the version."""
        ...

    def abandon(self, index: int, reason: str) -> None:
        """Tells the engines that bucket `index` will not come."""
        ...

    def close(self) -> None: ...


class Inlet(Protocol):
    """Brings buckets to an engine.

    lasting: whether what `take` returns is the learner's own memory: it stays as it is until the next version, and not only until
    the next bucket is taken.
    """

    lasting: bool

    def begin(self, buckets: Sequence[Bucket]) -> None:
        """Prepares for a version that is divided into these buckets."""
        ...

    def take(self, index: int, bucket: Bucket, phase: str, timeout_s: float) -> Tensor:
        """Returns bucket `index`, [nbytes] uint8, once it is there."""
        ...

    def close(self) -> None: ...


class NetworkOutlet:
    """Broadcasts buckets: one is packed while the other is sent.

    overlap: False where a broadcast has to end before the next bucket is packed.
    """

    def __init__(self, channel: Channel, device: torch.device, overlap: bool) -> None:
        self._channel, self._device, self._overlap = channel, device, overlap
        self._buffers = [torch.empty(0, dtype=torch.uint8, device=device)] * 2
        self._flying: tuple[dist.Work, str] | None = None

    def begin(self, buckets: Sequence[Bucket]) -> None:
        largest = max((bucket.nbytes for bucket in buckets), default=0)
        if len(self._buffers[0]) < largest:
            self._buffers = [bucket_buffer(largest, self._device) for _ in range(2)]

    def room(self, index: int, bucket: Bucket, phase: str) -> Tensor:
        return self._buffers[index % 2][: bucket.nbytes]

    def send(self, index: int, buffer: Tensor, phase: str) -> None:
        self.finish()
        self._flying = self._channel.broadcast(buffer), f"broadcast of {phase}"
        if not self._overlap:
            self.finish()

    def finish(self) -> None:
        flying, self._flying = self._flying, None
        if flying is not None:
            self._channel.wait(*flying)

    def abandon(self, index: int, reason: str) -> None:
        self._flying = None  # closing the channel breaks the connections: that is what the engines see

    def close(self) -> None:
        self._flying = None


class NetworkInlet:
    """Receives broadcasts into one reusable buffer."""

    lasting = False

    def __init__(self, channel: Channel, device: torch.device) -> None:
        self._channel = channel
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)

    def begin(self, buckets: Sequence[Bucket]) -> None:
        largest = max((bucket.nbytes for bucket in buckets), default=0)
        if len(self._buffer) < largest:
            self._buffer = bucket_buffer(largest, self._buffer.device)

    def take(self, index: int, bucket: Bucket, phase: str, timeout_s: float) -> Tensor:
        buffer = self._buffer[: bucket.nbytes]
        self._channel.wait(self._channel.broadcast(buffer, timeout_s), f"broadcast of {phase}", timeout_s)
        return buffer

    def close(self) -> None: ...


def starts(buckets: Sequence[Bucket]) -> list[int]:
    """Returns where each bucket begins if they lie one after the other, and at last where they end."""
    return list(accumulate((bucket.nbytes for bucket in buckets), initial=0))


class MemoryOutlet:
    """Packs buckets into a segment of the host's memory, which holds a whole version."""

    def __init__(self, channel: Channel, segment: Segment) -> None:
        self._channel, self.segment = channel, segment
        self._at = [0]

    def begin(self, buckets: Sequence[Bucket]) -> None:
        self._at = starts(buckets)

    def room(self, index: int, bucket: Bucket, phase: str) -> Tensor:
        return self.segment.data[self._at[index] : self._at[index + 1]]

    def send(self, index: int, buffer: Tensor, phase: str) -> None:
        self._channel.say(f"bucket/{index}", "")

    def finish(self) -> None: ...

    def abandon(self, index: int, reason: str) -> None:
        self._channel.say(f"bucket/{index}", ENDED + reason)

    def close(self) -> None:
        self.segment.close()


class MemoryInlet:
    """Reads buckets in place, out of the learner's segment."""

    lasting = True

    def __init__(self, channel: Channel, segment: OpenSegment) -> None:
        self._channel, self.segment = channel, segment
        self._at = [0]

    def begin(self, buckets: Sequence[Bucket]) -> None:
        self._at = starts(buckets)

    def take(self, index: int, bucket: Bucket, phase: str, timeout_s: float) -> Tensor:
        await_bucket(self._channel, index, phase, timeout_s)
        return self.segment.data[self._at[index] : self._at[index + 1]]

    def close(self) -> None:
        self.segment.close()


def await_bucket(channel: Channel, index: int, phase: str, timeout_s: float) -> None:
    """Returns when the learner says that bucket `index` is there. Raises WeightSyncError if it does not come."""
    phase = f"broadcast of {phase}"
    said = channel.hear(f"bucket/{index}", phase, timeout_s)
    if said.startswith(ENDED):
        channel.close()
        raise WeightSyncError(
            channel.rendezvous.member, phase, f"the learner sends no more: {said.removeprefix(ENDED)}"
        )
