"""Processes in their places: a placement group, who sits where in it, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestration.cluster import placement
from orchestration.errors import PlacementError

CLOSE_S = 20.0  # for actors to end by themselves


class ActorSlots:
    """One actor a slot. A slot's kind and number are its role ("generator 0"); an actor that takes a dead one's slot has a name
    of its own."""

    def __init__(self, slots: Sequence[placement.Slot]) -> None:
        self._slots = list(slots)
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []
        self._taken: dict[str, tuple[int, Any]] = {}  # name -> (the slot's number within its kind, actor)
        self._born: dict[str, int] = {}

    @property
    def reserved(self) -> bool:
        return self._group is not None

    async def reserve(self, limit: float) -> None:
        """Room for all. PlacementError if the cluster has none free within `limit` seconds."""
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

    def name(self, kind: str) -> str:
        """For the next of its kind; none is used twice."""
        number = self._born[kind] = self._born.get(kind, -1) + 1
        return f"{kind.replace('-', ' ')} {number}"

    def place(
        self, name: str, kind: str, number: int, cls: Any, *args: Any, env: dict[str, str], **options: Any
    ) -> Any:
        """An actor of `cls` in the slot, known as `name`. env: variables of its process."""
        if self._group is None:
            raise PlacementError("actors are placed after room was reserved for them")
        index = next(i for i, slot in enumerate(self._slots) if slot.role == f"{kind} {number}")
        # The name is for whoever looks at processes: Ray calls them all by their class.
        variables = {
            "ISENTROPE_NAME": name,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **env,
        }
        actor = cls.options(
            num_cpus=self._slots[index].cpus,
            num_gpus=self._slots[index].gpus,
            runtime_env={"env_vars": variables},
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index),
            **options,
        ).remote(*args)
        self._actors.append(actor)
        self._taken[name] = number, actor
        return actor

    def vacate(self, name: str) -> int:
        """End a process that is dead or as good as dead; the number of its slot."""
        number, actor = self._taken.pop(name)
        ray.kill(actor)
        return number

    async def close(self) -> None:
        """End every actor. A polite close first, so that subprocesses go with their owners; then the processes themselves."""
        polite = [a.call.remote("close") if hasattr(a, "call") else a.close.remote() for a in self._actors]
        if polite:
            await asyncio.to_thread(ray.wait, polite, num_returns=len(polite), timeout=CLOSE_S)
        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
