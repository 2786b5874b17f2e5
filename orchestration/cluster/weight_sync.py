"""Sends the learner's weights to every generator, and goes on without those that a transfer breaks at.

The loop says when; learner/weights/ is how. A transfer needs every member of the weight group: where generators have come or gone
since the last one, the group is formed anew first. Who died is replaced elsewhere (members.py), and joins with a later one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, cast

from actors.health.lifeline import LearnerDied, MemberDied
from learner.weights.protocol import (
    Backend,
    Rendezvous,
    WeightManifest,
    WeightSyncError,
    make_rendezvous,
    verify_checksums,
)

T = TypeVar("T")
R = TypeVar("R")

GRACE_S = 15.0  # for a generator to answer after the learner has met everybody, or has given up
ATTEMPTS = 3  # at a transfer that breaks at no generator that can be named, or at every one


class WeightSender(Protocol):
    """Sends weights: rank 0 of the learner, or all ranks where a call is a collective."""

    async def listen(self, timeout_s: float) -> int: ...

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None: ...

    async def absent(self, generator: str) -> None:
        """Ends the wait for a generator that is gone, in what is under way."""
        ...

    async def manifest(self, version: int, timeout_s: float) -> WeightManifest: ...

    async def publish(
        self, manifest: WeightManifest, sequences: Sequence[Sequence[int]]
    ) -> tuple[int, list[list[float]]]:
        """Returns the checksum of what was sent, and the log-probs of these sequences under it."""
        ...


class WeightReceiver(Protocol):
    """Receives weights: one generator."""

    name: str

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None: ...

    async def receive_weights(
        self, manifest: WeightManifest, timeout_s: float, sequences: Sequence[Sequence[int]]
    ) -> int:
        """Returns the checksum of what was received. sequences: what it will be asked to score, which it may begin."""
        ...


class Receivers(Protocol):
    """Holds the generators of the policy."""

    async def weight_receivers(self) -> Sequence[WeightReceiver]:
        """Returns the generators in service and those that join; waits for one where there is none. Raises PoolEmpty."""
        ...

    def lost(self, death: MemberDied) -> None:
        """Takes a generator that a transfer broke at out of service."""
        ...


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Describes the weight group. host: of learner rank 0; shards: tensor-parallel size of a generator; timeout_s: of a phase."""

    host: str
    backend: Backend
    shards: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """Says what was sent, and which generators have it.

    logprobs: by the learner's weights that were sent, at temperature 1 of tokens 1.. of each sequence that it was asked about.
    """

    manifest: WeightManifest
    names: list[str]
    logprobs: list[list[float]]


class WeightBroadcast:
    """Sends the learner's weights to every generator, one version at a time."""

    def __init__(
        self, sender: WeightSender, receivers: Receivers, group: WeightGroup, on_event: Callable[[str], None]
    ) -> None:
        self._sender, self._receivers, self._group, self._on_event = sender, receivers, group, on_event
        self._epoch = 0  # how many groups there were
        self._joined: list[str] = []  # the generators in the present group; none: it has to be formed
        self._described: WeightManifest | None = None  # what was sent last, unless that broke

    def renewed(self) -> None:
        """Notes that the learner is another one in the same processes, whose tensors may be others."""
        self._described = None

    async def sync(self, version: int, sequences: Sequence[Sequence[int]] = ()) -> Transfer:
        """Sends the learner's weights as `version`. sequences: what the learner scores while the generators load,
        and what these score next.

        A transfer that breaks at generators is made again without them. One that breaks at none that can be named, or at
        every one, is made again with a new group, a few times: then no generator is to blame, and its error is raised. A learner
        that dies is LearnerDied.
        """
        left = ATTEMPTS
        while True:
            members = await self._receivers.weight_receivers()
            names = [member.name for member in members]
            try:
                if names != self._joined:
                    await self._join(members)
                manifest, logprobs = await self._transfer(version, members, sequences)
            except _Broken as broken:
                self._joined, self._described = [], None
                left -= len(broken.deaths) in (0, len(members))
                if not left or broken.final:
                    raise broken.first from None
                for death in broken.deaths:
                    self._receivers.lost(death)
                self._on_event(f"the weight transfer of version {version} broke ({broken.first}); it is made again")
            else:
                self._joined = names
                return Transfer(manifest, names, logprobs)

    async def _join(self, members: Sequence[WeightReceiver]) -> None:
        """Forms a new group of learner rank 0 and the generators; an older one is closed."""
        group = self._group
        self._epoch += 1
        port = await self._sender.listen(group.timeout_s)
        own, *others = make_rendezvous(
            group.host, port, [(m.name, group.shards) for m in members], group.backend, self._epoch
        )
        await _together(
            self._sender,
            members,
            self._sender.connect_weights(own, group.timeout_s),
            [m.connect_weights(r, group.timeout_s) for m, r in zip(members, others, strict=True)],
            GRACE_S,
        )

    async def _transfer(
        self, version: int, members: Sequence[WeightReceiver], sequences: Sequence[Sequence[int]]
    ) -> tuple[WeightManifest, list[list[float]]]:
        timeout, known = self._group.timeout_s, self._described
        # From one version to the next it is the same. The learner compares every tensor with it as it packs: one that is not what
        # the manifest says breaks the transfer, and the next attempt asks for a new one.
        manifest = await self._sender.manifest(version, timeout) if known is None else replace(known, version=version)
        (sent, logprobs), received = await _together(
            self._sender,
            members,
            self._sender.publish(manifest, sequences),
            [m.receive_weights(manifest, timeout, sequences) for m in members],
            timeout,
        )
        checksums = {m.name: value for m, value in zip(members, received, strict=True)}
        try:
            verify_checksums(version, sent, checksums)
        except WeightSyncError as error:
            wrong = [name for name, value in checksums.items() if value != sent]
            raise _Broken(error, [MemberDied(name, str(error)) for name in wrong]) from error
        self._described = manifest
        return manifest, logprobs


class _Broken(Exception):
    """Carries the error of a transfer, and the deaths of those it broke at."""

    def __init__(self, first: Exception, deaths: Sequence[MemberDied]) -> None:
        super().__init__(first)
        self.first, self.deaths = first, list(deaths)

    @property
    def final(self) -> bool:
        """Returns whether another attempt would end in the same way: the learner is gone, or a model refuses the weights."""
        refused = isinstance(self.first, WeightSyncError) and self.first.phase.startswith("load of")
        return refused or isinstance(self.first, LearnerDied)


async def _tell(sender: WeightSender, members: Sequence[WeightReceiver], waiting: Sequence[asyncio.Future[R]]) -> None:
    """Tells the learner of every generator that dies, as soon as that is known: it waits for all of them."""
    names = dict(zip(waiting, (member.name for member in members), strict=True))
    while names:
        done, _ = await asyncio.wait(names, return_when=asyncio.FIRST_COMPLETED)
        for wait in done:
            name = names.pop(wait)
            if not wait.cancelled() and isinstance(wait.exception(), MemberDied):
                await sender.absent(name)


async def _together(
    sender: WeightSender,
    members: Sequence[WeightReceiver],
    own: Awaitable[T],
    others: Sequence[Awaitable[R]],
    grace_s: float,
) -> tuple[T, list[R]]:
    """Waits for the learner's part, whose every wait has a limit of its own, and then `grace_s` for each generator's. Raises
    _Broken.

    All are heard, since the first error alone may not name the culprit; a generator that does not answer even now is one.
    """
    waiting = [asyncio.ensure_future(other) for other in others]
    telling = asyncio.ensure_future(_tell(sender, members, waiting))
    try:
        (sent,) = await asyncio.gather(own, return_exceptions=True)
        if waiting:
            await asyncio.wait(waiting, timeout=grace_s)
    finally:
        for wait in (telling, *waiting):
            wait.cancel()
    received = await asyncio.gather(*waiting, return_exceptions=True)
    deaths: dict[str, MemberDied] = {}
    answers: list[R] = []
    errors = [] if not isinstance(sent, BaseException) else [sent]
    for member, answer in zip(members, received, strict=True):
        if isinstance(answer, asyncio.CancelledError):
            answer = MemberDied(
                member.name, f"no answer {grace_s:g} s after the learner had ended its part of a weight transfer"
            )
        if isinstance(answer, MemberDied):
            deaths[member.name] = answer
        if isinstance(answer, BaseException):
            errors.append(answer)
        else:
            answers.append(answer)
    if not errors and not isinstance(sent, BaseException):
        return sent, answers
    if isinstance(sent, WeightSyncError):
        # The learner's end knows who did not come; a generator's end knows only that it waited in vain.
        named = {part.split(" shard ")[0] for part in sent.member.split(", ")}
        deaths |= {m.name: MemberDied(m.name, sent.detail) for m in members if m.name in named and m.name not in deaths}
    for error in errors:
        if not isinstance(error, MemberDied | WeightSyncError):
            raise error
    refused = [e for e in errors if isinstance(e, WeightSyncError)]
    first = next((e for e in errors if isinstance(e, LearnerDied)), next(iter(refused), errors[0]))
    raise _Broken(cast("Exception", first), list(deaths.values()))
