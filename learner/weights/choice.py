"""Agrees on the medium of a transfer: what learner and engines share decides, and whether an engine could open it.

Every engine says at the start of a transfer where it is. The learner offers the best medium that all of them could have; where one
cannot open it, the next best is offered, and what was refused is not offered to this group again. The network is always left.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch

from learner.weights.channel import Channel
from learner.weights.cuda_ipc import SLOTS, SlotsInlet, SlotsOutlet, handle_of, open_slots, visible_gpus
from learner.weights.host_memory import OpenSegment, Segment, SegmentOffer, host_id
from learner.weights.media import Inlet, MemoryInlet, MemoryOutlet, NetworkInlet, NetworkOutlet, Outlet
from learner.weights.protocol import Bucket

log = logging.getLogger(__name__)

Medium = Literal["gpu", "memory", "network"]
REFUSED = "no"


def greeting(device: torch.device) -> str:
    """Returns what an engine says of itself: its host, and the GPUs it sees if its model is on one."""
    gpus = visible_gpus() if device.type == "cuda" else []
    return json.dumps({"host": host_id(), "gpus": gpus})


class OutletChoice:
    """Chooses, at learner rank 0, where buckets are packed and how they travel.

    device: where buckets are packed that travel over the network. overlap: see NetworkOutlet.
    gpu: the learner's GPU, if engines may be on it; None without. memory: whether the host's memory may be shared.
    """

    def __init__(
        self, channel: Channel, device: torch.device, *, overlap: bool, memory: bool, gpu: torch.device | None
    ) -> None:
        self._channel, self._device, self._overlap, self._gpu = channel, device, overlap, gpu
        wanted: dict[Medium, bool] = {"gpu": gpu is not None, "memory": memory}
        # NCCL finds the way between whole GPUs itself.
        self._offered: list[Medium] = [
            m for m, there in wanted.items() if there and channel.rendezvous.backend == "gloo"
        ]
        self._outlet: Outlet = NetworkOutlet(channel, device, overlap)
        self.medium: Medium = "network"
        self._agreed = ""  # the last offer that every engine could open

    def outlet(self, buckets: Sequence[Bucket], greetings: Mapping[int, str], phase: str) -> Outlet:
        """Returns the outlet for a version that is divided into these buckets, once every engine can receive from it."""
        members = {rank: json.loads(text) for rank, text in greetings.items()}
        for attempt in itertools.count():
            medium = self._best(members)
            try:
                text = self._offer(medium, buckets, list(members))
            except (OSError, RuntimeError) as error:
                text = REFUSED
                self._refuse(medium, str(error))
            self._channel.say(f"medium/{attempt}", text)
            if text == REFUSED:
                continue
            if text != self._agreed and not self._opened(medium, attempt, phase):
                continue
            self._agreed = text
            break
        self._outlet.begin(buckets)
        return self._outlet

    def _opened(self, medium: Medium, attempt: int, phase: str) -> bool:
        """Asks every engine whether it could open what was offered, and tells them all what that comes to."""
        answers = self._channel.gather(f"opened/{attempt}", "", phase, self._channel.timeout_s)
        refused = {rank: answer for rank, answer in answers.items() if answer}
        self._channel.say(f"decided/{attempt}", REFUSED if refused else "")
        if refused:
            self._refuse(medium, "; ".join(f"{self._name(rank)}: {answer}" for rank, answer in refused.items()))
        else:
            log.info("weights travel by %s", medium)
        return not refused

    def close(self) -> None:
        self._outlet.close()

    def _best(self, members: Mapping[int, Mapping[str, Any]]) -> Medium:
        here, gpus = host_id(), visible_gpus() if self._gpu is not None else []
        for medium in self._offered:
            if not here or any(member["host"] != here for member in members.values()):
                continue
            own = None if self._gpu is None or not gpus else gpus[self._gpu.index or 0]
            if medium == "memory" or all(own in member["gpus"] for member in members.values()):
                return medium
        return "network"

    def _offer(self, medium: Medium, buckets: Sequence[Bucket], ranks: Sequence[int]) -> str:
        """Prepares a medium and returns what the engines are told of it. OSError or RuntimeError where it cannot be had."""
        if medium == "memory":
            return self._offer_memory(buckets)
        if medium == "gpu":
            return self._offer_gpu(buckets, ranks)
        self._change(medium, lambda: NetworkOutlet(self._channel, self._device, self._overlap))
        return json.dumps({"medium": medium})

    def _offer_memory(self, buckets: Sequence[Bucket]) -> str:
        nbytes = sum(bucket.nbytes for bucket in buckets)
        outlet = self._outlet
        if not isinstance(outlet, MemoryOutlet) or outlet.segment.nbytes < nbytes:
            segment = Segment(nbytes)
            self._change("memory", lambda: MemoryOutlet(self._channel, segment))
            outlet = self._outlet
        assert isinstance(outlet, MemoryOutlet)
        return json.dumps({"medium": "memory", "segment": asdict(outlet.segment.offer)})

    def _offer_gpu(self, buckets: Sequence[Bucket], ranks: Sequence[int]) -> str:
        nbytes = max((bucket.nbytes for bucket in buckets), default=0)
        outlet = self._outlet
        if not isinstance(outlet, SlotsOutlet) or len(outlet.slots[0]) < nbytes:
            slots = [torch.empty(nbytes, dtype=torch.uint8, device=self._gpu) for _ in range(SLOTS)]
            gpus = visible_gpus()
            self._handles = {rank: [handle_of(slot, gpus) for slot in slots] for rank in ranks}
            self._change("gpu", lambda: SlotsOutlet(self._channel, slots))
        return json.dumps({"medium": "gpu", "slots": self._handles})

    def _change(self, medium: Medium, make: Callable[[], Outlet]) -> None:
        if medium != self.medium or medium != "network":
            self._outlet.close()
            self._outlet, self.medium = make(), medium

    def _refuse(self, medium: Medium, reason: str) -> None:
        self._offered = [m for m in self._offered if m != medium]
        log.warning("weights cannot travel by %s (%s): the next best is taken", medium, reason)

    def _name(self, rank: int) -> str:
        members = self._channel.rendezvous.members
        return members[rank] if members else f"rank {rank}"


class InletChoice:
    """Opens, in an engine, what the learner offers. device: where buckets are received that travel over the network."""

    def __init__(self, channel: Channel, device: torch.device) -> None:
        self._channel, self._device = channel, device
        self._agreed = ""
        self._inlet: Inlet = NetworkInlet(channel, device)

    def inlet(self, buckets: Sequence[Bucket], phase: str, timeout_s: float) -> Inlet:
        """Returns the inlet of a version that is divided into these buckets. Raises WeightSyncError."""
        for attempt in itertools.count():
            text = self._channel.hear(f"medium/{attempt}", phase, timeout_s)
            if text == REFUSED:
                continue
            if text != self._agreed:
                try:
                    self._change(json.loads(text))
                    reason = ""
                except (OSError, RuntimeError, ValueError) as error:
                    reason = f"{type(error).__name__}: {error}"
                self._channel.gather(f"opened/{attempt}", reason, phase, timeout_s)
                if self._channel.hear(f"decided/{attempt}", phase, timeout_s) == REFUSED:
                    continue
            self._agreed = text
            break
        self._inlet.begin(buckets)
        return self._inlet

    def close(self) -> None:
        self._inlet.close()

    def _change(self, offer: Mapping[str, Any]) -> None:
        """Opens a medium. OSError, RuntimeError or ValueError where this process cannot."""
        self._inlet.close()
        if offer["medium"] == "memory":
            self._inlet = MemoryInlet(self._channel, OpenSegment(SegmentOffer(**offer["segment"])))
        elif offer["medium"] == "gpu":
            slots = open_slots(offer["slots"][str(self._channel.rendezvous.rank)])
            self._inlet = SlotsInlet(self._channel, slots)
        else:
            self._inlet = NetworkInlet(self._channel, self._device)
