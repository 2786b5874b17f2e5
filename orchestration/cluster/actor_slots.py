"""Reserves a placement group, starts one actor per slot, and shuts them down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar, cast

import ray
from ray.actor import ActorClass, ActorHandle, ActorProxy
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.remote import BaseActor
from orchestration.cluster import placement
from orchestration.errors import PlacementError

CLOSE_S = 20.0  # for actors to end by themselves

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


class ActorSlots:
    """Holds one actor per slot. A slot's kind and number are its role ("generator 0"); an actor that takes a dead one's slot
    has a name of its own."""

    def __init__(self, slots: Sequence[placement.Slot]) -> None:
        self._slots = list(slots)
        self._group: PlacementGroup | None = None
        self._actors: list[ActorProxy[BaseActor]] = []
        self._taken: dict[
            str, tuple[int, ActorProxy[BaseActor]]
        ] = {}  # name -> (the slot's number within its kind, actor)
        self._last_number: dict[str, int] = {}  # kind -> the number in the newest name

    @property
    def reserved(self) -> bool:
        return self._group is not None

    async def reserve(self, limit: float) -> None:
        """Reserves room for all actors. PlacementError if the cluster has none free within `limit` seconds."""
        group = placement_group([s.bundle or {"CPU": 0.001} for s in self._slots], strategy="PACK")
        self._group = group  # also where it is never ready: `close` gives it back
        try:
            await asyncio.wait_for(group.ready(), limit)
        except TimeoutError:
            asked, free = placement.totals(self._slots), ray.available_resources()
            raise PlacementError(
                f"the cluster is large enough but was busy for cluster.start_timeout_s = {limit:g} s: the run asks for "
                f"{asked['CPU']:g} CPU and {asked['GPU']:g} GPU; free are {free.get('CPU', 0):g} and {free.get('GPU', 0):g}"
            ) from None

    def next_name(self, kind: str) -> str:
        """Returns the name of the next actor of its kind; none is used twice."""
        number = self._last_number[kind] = self._last_number.get(kind, -1) + 1
        return f"{kind.replace('-', ' ')} {number}"

    def place(self, position: Position, cls: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> ActorProxy[A]:
        """Starts an actor of `cls`, built from the further arguments, in its slot. Raises PlacementError before `reserve`."""
        if self._group is None:
            raise PlacementError("actors are placed after room was reserved for them")
        role = f"{position.kind} {position.number}"
        index = next(i for i, slot in enumerate(self._slots) if slot.role == role)
        # The name is for those who look at processes: Ray calls them all by their class.
        variables = {
            "ISENTROPE_NAME": position.name,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **position.env,
        }
        concurrency = {} if position.max_concurrency is None else {"max_concurrency": position.max_concurrency}
        options: dict[str, Any] = {
            "num_cpus": self._slots[index].cpus,
            "num_gpus": self._slots[index].gpus,
            "runtime_env": {"env_vars": variables},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index),
            **concurrency,
        }
        remote_class: ActorClass[A] = ray.remote(cast("type[A]", cls))
        actor = remote_class.options(**options).remote(*args, **kwargs)
        self._actors.append(known := cast("ActorProxy[BaseActor]", actor))  # Ray's handles are invariant in their class
        self._taken[position.name] = position.number, known
        return actor

    def vacate(self, name: str) -> int:
        """Ends a process that is dead or does not answer; returns the number of its slot."""
        number, actor = self._taken.pop(name)
        _kill(actor)
        return number

    async def close(self) -> None:
        """Ends every actor: first by its `close`, so that subprocesses go with their owners; then the processes themselves."""
        closing = [actor.close.remote() for actor in self._actors]
        if closing:
            await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=CLOSE_S)
        for actor in self._actors:
            _kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)


def _kill(actor: ActorProxy[BaseActor]) -> None:
    ray.kill(cast("ActorHandle[BaseActor]", actor))  # a proxy is a handle that has its class's methods in its type
