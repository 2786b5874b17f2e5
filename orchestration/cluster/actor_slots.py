"""Reserves placement groups, starts one actor per slot, and shuts them down."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar, cast

import ray
from ray.actor import ActorClass, ActorHandle, ActorProxy
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.remote import HEALTH, BaseActor
from orchestration.cluster import placement
from orchestration.errors import PlacementError

CLOSE_S = 20.0  # for actors to end by themselves
END_S = 10.0  # for Ray to take orders at the end: a frozen one takes none

P = ParamSpec("P")
A = TypeVar("A", bound=BaseActor)


@dataclass(frozen=True, slots=True)
class Position:
    """Says where an actor goes and how its process starts. Example: Position("generator 2", "generator", 0)"""

    name: str  # the actor's own, in messages and in ISENTROPE_NAME
    kind: str
    number: int  # of the slot within its kind
    env: Mapping[str, str] = field(default_factory=dict[str, str])  # variables of the process
    max_concurrency: int | None = None  # calls under way at once; None: Ray's default for the class

    @property
    def role(self) -> str:
        """Names the slot: "generator 0"."""
        return f"{self.kind} {self.number}"


@dataclass(frozen=True, slots=True)
class _Room:
    """Says where a slot's resources are reserved."""

    slot: placement.Slot
    group: PlacementGroup
    bundle: int


class ActorSlots:
    """Holds one actor per slot. A slot's kind and number are its role ("generator 0"); an actor that takes a dead one's slot
    has a name of its own."""

    def __init__(self, slots: Sequence[placement.Slot], variables: Mapping[str, str] | None = None) -> None:
        """variables: of every actor's process, beside those of its position."""
        self._slots, self._variables = list(slots), dict(variables or {})
        self._core: PlacementGroup | None = None  # of the slots that a run needs from its start on
        self._rooms: dict[str, _Room] = {}  # by role
        self._taken: dict[str, tuple[Position, ActorProxy[BaseActor]]] = {}  # by the actor's name
        self._last_number: dict[str, int] = {}  # kind -> the number in the newest name

    async def reserve(self, limit: float) -> None:
        """Reserves room for all actors. PlacementError if the cluster has none free within `limit` seconds."""
        self._core = await self._group(self._slots, limit)

    async def extend(self, slot: placement.Slot, limit: float) -> None:
        """Reserves room for one more actor, which can be given back alone. Raises PlacementError as `reserve` does."""
        if slot.role not in self._rooms:
            await self._group([slot], limit)

    async def _group(self, slots: Sequence[placement.Slot], limit: float) -> PlacementGroup:
        reserved, at = placement.bundles(slots)
        group = placement_group([bundle or {"CPU": 0.001} for bundle in reserved], strategy="PACK")
        try:
            await asyncio.wait_for(group.ready(), limit)
        except TimeoutError:
            remove_placement_group(group)
            asked, free = placement.totals(slots), ray.available_resources()
            raise PlacementError(
                f"the cluster is large enough but was busy for cluster.start_timeout_s = {limit:g} s: the run asks for "
                f"{asked['CPU']:g} CPU and {asked['GPU']:g} GPU; free are {free.get('CPU', 0):g} and {free.get('GPU', 0):g}"
            ) from None
        self._rooms |= {slot.role: _Room(slot, group, at[slot.role]) for slot in slots}
        return group

    def release(self, role: str) -> None:
        """Gives the room of an empty slot back, where it was reserved by itself."""
        room = self._rooms.get(role)
        if room is not None and room.group is not self._core:
            del self._rooms[role]
            remove_placement_group(room.group)

    def next_name(self, kind: str) -> str:
        """Returns the name of the next actor of its kind; none is used twice."""
        number = self._last_number[kind] = self._last_number.get(kind, -1) + 1
        return f"{kind.replace('-', ' ')} {number}"

    def place(self, position: Position, cls: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> ActorProxy[A]:
        """Starts an actor of `cls`, built from the further arguments, in its slot. Raises PlacementError before `reserve`."""
        room = self._rooms.get(position.role)
        if room is None:
            raise PlacementError("actors are placed after room was reserved for them")
        # The name is for those who look at processes: Ray calls them all by their class.
        variables = {
            "ISENTROPE_NAME": position.name,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **self._variables,
            **position.env,
        }
        concurrency = {} if position.max_concurrency is None else {"max_concurrency": position.max_concurrency}
        options: dict[str, Any] = {
            "num_cpus": room.slot.cpus,
            "num_gpus": room.slot.gpus,
            "runtime_env": {"env_vars": variables},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                room.group, placement_group_bundle_index=room.bundle
            ),
            "concurrency_groups": {HEALTH: 1},
            **concurrency,
        }
        remote_class: ActorClass[A] = ray.remote(**options)(cast("type[A]", cls))
        actor = remote_class.remote(*args, **kwargs)
        known = cast("ActorProxy[BaseActor]", actor)  # Ray's handles are invariant in their class
        self._taken[position.name] = position, known
        return actor

    def name_at(self, role: str) -> str | None:
        """Returns the name of the actor in a slot; None where it is empty."""
        return next((name for name, (position, _) in self._taken.items() if position.role == role), None)

    def role_of(self, name: str) -> str | None:
        """Returns the slot of an actor; None where it has none any more."""
        return self._taken[name][0].role if name in self._taken else None

    def vacate(self, name: str) -> Position:
        """Ends a process that is dead or does not answer; returns the place it had."""
        position, actor = self._taken.pop(name)
        _kill(actor)
        return position

    async def close(self) -> None:
        """Ends every actor: first by its `close`, so that subprocesses go with their owners; then the processes themselves.

        Returns after CLOSE_S + END_S at the latest, also where Ray itself no longer answers.
        """
        actors = [actor for _, actor in self._taken.values()]
        self._taken.clear()
        groups = {id(room.group): room.group for room in self._rooms.values()}
        self._rooms.clear()

        def end() -> None:
            for actor in actors:
                _kill(actor)
            for group in groups.values():
                remove_placement_group(group)

        closing = [actor.close.remote() for actor in actors]
        for work, limit in (
            (lambda: ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S) if closing else None, CLOSE_S + 1),
            (end, END_S),
        ):
            # A thread that Ray never answers cannot be ended: it is a daemon, and no reason to wait.
            await _bounded(work, limit)


async def _bounded(work: Callable[[], object], limit: float) -> None:
    """Runs blocking work in a thread, and waits for it up to `limit` seconds."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            with contextlib.suppress(Exception):  # Ray's, of every kind: what is left to end is ended with its cluster
                work()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="closing", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), limit)


def _kill(actor: ActorProxy[BaseActor]) -> None:
    ray.kill(cast("ActorHandle[BaseActor]", actor))  # a proxy is a handle that has its class's methods in its type
