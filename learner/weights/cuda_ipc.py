"""Lends two buckets of the learner's GPU to the engines that are on the same one, through CUDA's inter-process memory.

The learner packs one bucket while the engines read the other; it takes one back when every engine has said that it is done with
it. A process knows its GPUs by numbers of its own, so a device travels as its UUID. Handles travel as JSON, never as pickles.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch.multiprocessing.reductions has no types.

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learner.weights.channel import Channel
from learner.weights.media import ENDED, await_bucket
from learner.weights.protocol import Bucket

SLOTS = 2
# What torch.multiprocessing's rebuild_cuda_tensor takes, in its order, but for the tensor's class, storage class and type.
_FIELDS = (
    "size",
    "stride",
    "offset",
    "device",
    "handle",
    "storage_bytes",
    "storage_offset",
    "requires_grad",
    "counter",
    "counter_offset",
    "event",
    "event_sync",
)


def visible_gpus() -> list[str]:
    """Returns the UUIDs of the GPUs that this process sees, in the order of its own numbers."""
    if not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def handle_of(tensor: Tensor, gpus: Sequence[str]) -> str:
    """Returns the text from which ONE other process opens `tensor`, 1-d uint8 on a GPU; torch counts who does.

    gpus: `visible_gpus` of this process.
    """
    from torch.multiprocessing.reductions import reduce_tensor

    arguments: Any = reduce_tensor(tensor)[1]
    _, size, stride, offset, _, _, device, *rest = arguments
    values = (list(size), list(stride), offset, gpus[device], *rest)
    return json.dumps({k: v.hex() if isinstance(v, bytes) else v for k, v in zip(_FIELDS, values, strict=True)})


def open_handle(text: str, gpus: Sequence[str]) -> Tensor:
    """Opens what `handle_of` describes. ValueError where this process does not see that GPU; RuntimeError where CUDA refuses."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    found: dict[str, Any] = json.loads(text)
    if found["device"] not in gpus:
        raise ValueError(f"GPU {found['device']} is not visible here, only {', '.join(gpus) or 'none'}")
    return rebuild_cuda_tensor(
        torch.Tensor,
        torch.Size(found["size"]),
        tuple(found["stride"]),
        found["offset"],
        torch.storage.TypedStorage,
        torch.uint8,
        gpus.index(found["device"]),
        bytes.fromhex(found["handle"]),
        found["storage_bytes"],
        found["storage_offset"],
        found["requires_grad"],
        bytes.fromhex(found["counter"]),
        found["counter_offset"],
        bytes.fromhex(found["event"]),
        found["event_sync"],
    )


def synchronise(device: torch.device) -> None:
    """Waits until a device has done what it was given: the other process sees memory, not streams."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class SlotsOutlet:
    """Packs buckets into two slots in turn; a slot is packed anew once every engine has given it back."""

    def __init__(self, channel: Channel, slots: Sequence[Tensor]) -> None:
        self._channel, self.slots = channel, list(slots)

    def begin(self, buckets: Sequence[Bucket]) -> None: ...

    def room(self, index: int, bucket: Bucket, phase: str) -> Tensor:
        if index >= SLOTS:
            self._channel.await_all(f"done/{index - SLOTS}", f"broadcast of {phase}", self._channel.timeout_s)
        return self.slots[index % SLOTS][: bucket.nbytes]

    def send(self, index: int, buffer: Tensor, phase: str) -> None:
        synchronise(buffer.device)
        self._channel.say(f"bucket/{index}", "")

    def finish(self) -> None: ...  # the engines give the last slots back by coming to the next transfer

    def abandon(self, index: int, reason: str) -> None:
        self._channel.say(f"bucket/{index}", ENDED + reason)

    def close(self) -> None:
        self.slots.clear()


class SlotsInlet:
    """Reads buckets out of the learner's two slots."""

    lasting = False

    def __init__(self, channel: Channel, slots: Sequence[Tensor]) -> None:
        self._channel, self.slots = channel, list(slots)

    def begin(self, buckets: Sequence[Bucket]) -> None: ...

    def take(self, index: int, bucket: Bucket, phase: str, timeout_s: float) -> Tensor:
        if index:  # who asks for the next bucket is done with the one before
            synchronise(self.slots[0].device)
            self._channel.answer(f"done/{index - 1}")
        await_bucket(self._channel, index, phase, timeout_s)
        return self.slots[index % SLOTS][: bucket.nbytes]

    def close(self) -> None:
        self.slots.clear()


def open_slots(texts: Sequence[str]) -> list[Tensor]:
    """Opens the learner's slots in this process. Raises ValueError and RuntimeError, see `open_handle`."""
    gpus = visible_gpus()
    return [open_handle(text, gpus) for text in texts]
