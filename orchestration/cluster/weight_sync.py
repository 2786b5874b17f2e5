"""Replaces dead generators, sends them the learner's weights, and repairs a transfer that broke.

The loop says when; learner/weights/ is how. A transfer needs every member of the weight group: before each one, generators that
no longer answer are replaced, and the group is formed anew with their replacements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.pool import MemberDied
from learner.weights.checksum import verify_checksums
from learner.weights.protocol import Backend, Rendezvous, WeightManifest, WeightSyncError, make_rendezvous


class WeightSender(Protocol):
    """Sends weights: rank 0 of the learner, or all ranks where a call is a collective."""

    async def listen(self, timeout_s: float) -> int: ...

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None: ...

    async def manifest(self, version: int, timeout_s: float) -> WeightManifest: ...

    async def publish(self, manifest: WeightManifest, timeout_s: float) -> int:
        """Returns the checksum of what was sent."""
        ...


class WeightReceiver(Protocol):
    """Receives weights: one generator."""

    name: str

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None: ...

    async def receive_weights(self, manifest: WeightManifest, timeout_s: float) -> int:
        """Returns the checksum of what was received."""
        ...


class Receivers(Protocol):
    """Holds the generators of the policy, and replaces those that died."""

    def weight_receivers(self) -> Sequence[WeightReceiver]: ...

    async def bury_silent_generators(self) -> bool:
        """Takes generators whose process is gone out of service; True if any is to be replaced."""
        ...

    async def replace_dead_generators(self, version: int) -> bool:
        """Starts a replacement for each dead generator, to serve from `version` on; True if there were any."""
        ...


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Describes the weight group. host: of learner rank 0; shards: tensor-parallel size of a generator; timeout_s: of a phase."""

    host: str
    backend: Backend
    shards: int
    timeout_s: float


class WeightBroadcast:
    """Sends the learner's weights to every generator, one version at a time."""

    def __init__(
        self, sender: WeightSender, receivers: Receivers, group: WeightGroup, on_event: Callable[[str], None]
    ) -> None:
        self._sender, self._receivers, self._group, self._on_event = sender, receivers, group, on_event
        self._epoch = 0  # how many groups there were

    async def join(self) -> None:
        """Forms a new group of learner rank 0 and every generator; an older one is closed."""
        group, members = self._group, self._receivers.weight_receivers()
        self._epoch += 1
        port = await self._sender.listen(group.timeout_s)
        engines = [(m.name, group.shards) for m in members]
        own, *others = make_rendezvous(group.host, port, engines, group.backend, self._epoch)
        await asyncio.gather(
            self._sender.connect_weights(own, group.timeout_s),
            *(m.connect_weights(r, group.timeout_s) for m, r in zip(members, others, strict=True)),
        )

    async def sync(self, version: int) -> WeightManifest:
        """Sends the learner's weights to every generator as `version`.

        A transfer that breaks because a generator died is made again, once, with a replacement. Any other failure is raised:
        WeightSyncError, or MemberDied.
        """
        # A call costs a millisecond; a transfer to a dead process costs weights.timeout_s.
        await self._receivers.bury_silent_generators()
        await self._replace(version)
        try:
            return await self._transfer(version)
        except (MemberDied, WeightSyncError) as error:
            if not await self._receivers.bury_silent_generators():
                raise
            self._on_event(
                f"weight transfer of version {version} broke ({error}); generators are replaced and it is made again"
            )
        await self._replace(version)
        return await self._transfer(version)

    async def _replace(self, version: int) -> None:
        if await self._receivers.replace_dead_generators(version):
            await self.join()

    async def _transfer(self, version: int) -> WeightManifest:
        timeout = self._group.timeout_s
        manifest = await self._sender.manifest(version, timeout)
        members = self._receivers.weight_receivers()
        sent, *received = await asyncio.gather(
            self._sender.publish(manifest, timeout * 2),
            *(m.receive_weights(manifest, timeout) for m in members),
            return_exceptions=True,  # all have to be heard: the first error alone may not name the culprit
        )
        errors = [r for r in (sent, *received) if isinstance(r, BaseException)]
        if errors:
            raise next((e for e in errors if isinstance(e, WeightSyncError)), errors[0])
        checksums = {m.name: r for m, r in zip(members, received, strict=True) if isinstance(r, int)}
        if isinstance(sent, int):
            verify_checksums(version, sent, checksums)
        return manifest
