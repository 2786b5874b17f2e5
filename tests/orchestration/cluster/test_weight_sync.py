"""When weights move, and how a broken transfer is repaired, on a learner and generators that only note what they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from actors.pool import MemberDied
from learner.weights.protocol import Rendezvous, WeightManifest, WeightSyncError
from orchestration.cluster.weight_sync import WeightBroadcast, WeightGroup

CHECKSUM = 7


class Learner:
    def __init__(self, events: list[str]) -> None:
        self.events = events

    async def listen(self, timeout_s: float) -> int:
        return 4000

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        self.events.append(f"group {rendezvous.epoch}: {', '.join(rendezvous.members)}")

    async def manifest(self, version: int, timeout_s: float) -> WeightManifest:
        return WeightManifest(version, ())

    async def publish(self, manifest: WeightManifest, timeout_s: float) -> int:
        self.events.append(f"sent {manifest.version}")
        return CHECKSUM


class Generator:
    def __init__(self, name: str, *faults: Exception | int) -> None:
        """Takes the outcomes of the next transfers; an integer is a checksum."""
        self.name, self.faults = name, list(faults)
        self.versions: list[int] = []

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None: ...

    async def receive_weights(self, manifest: WeightManifest, timeout_s: float) -> int:
        fault = self.faults.pop(0) if self.faults else CHECKSUM
        if isinstance(fault, Exception):
            raise fault
        self.versions.append(manifest.version)
        return fault


class Group:
    """Stands for the generators; `silent` lists those whose process has died by each next check, one set per check."""

    def __init__(self, members: list[Generator], *silent: set[str]) -> None:
        self.members, self.silent, self.dead = members, list(silent), set[str]()

    def weight_receivers(self) -> Sequence[Generator]:
        return self.members

    async def bury_silent_generators(self) -> bool:
        self.dead = self.silent.pop(0) if self.silent else set()
        self.members = [m for m in self.members if m.name not in self.dead]
        return bool(self.dead)

    async def replace_dead_generators(self, version: int) -> bool:
        dead, self.dead = self.dead, set()
        self.members += [Generator(f"{name} again") for name in sorted(dead)]
        return bool(dead)


def sync(group: Group, version: int = 3) -> tuple[list[str], Exception | None]:
    """Returns (events in order, error)."""
    events: list[str] = []
    broadcast = WeightBroadcast(Learner(events), group, WeightGroup("10.0.0.1", "gloo", 1, 5.0), events.append)

    async def work() -> None:
        await broadcast.join()
        assert (await broadcast.sync(version)).version == version

    try:
        asyncio.run(work())
    except (MemberDied, WeightSyncError) as error:
        return events, error
    return events, None


def test_a_transfer_reaches_every_generator_once() -> None:
    group = Group([Generator("g0"), Generator("g1")])
    assert sync(group) == (["group 1: learner, g0, g1", "sent 3"], None)
    assert [m.versions for m in group.members] == [[3], [3]]


def test_a_generator_that_died_before_is_replaced_and_the_group_is_formed_anew() -> None:
    group = Group([Generator("g0"), Generator("g1")], {"g1"})
    assert sync(group) == (["group 1: learner, g0, g1", "group 2: learner, g0, g1 again", "sent 3"], None)
    assert [m.versions for m in group.members] == [[3], [3]]


@pytest.mark.parametrize("error", [MemberDied("g0", "killed"), WeightSyncError("g0", "bucket 1", "no answer")])
def test_a_transfer_that_breaks_with_a_death_is_made_again_once(error: Exception) -> None:
    group = Group([Generator("g0", error), Generator("g1")], set(), {"g0"})
    events, raised = sync(group)
    assert raised is None
    assert events[1] == "sent 3"
    assert events[2].startswith("weight transfer of version 3 broke (") and "g0" in events[2]
    assert events[3:] == ["group 2: learner, g1, g0 again", "sent 3"]
    assert [(m.name, m.versions) for m in group.members] == [("g1", [3, 3]), ("g0 again", [3])]


def test_a_transfer_that_breaks_without_a_death_is_the_runs_error() -> None:
    error = WeightSyncError("g0", "bucket 1", "no answer")
    assert sync(Group([Generator("g0", error)])) == (["group 1: learner, g0", "sent 3"], error)


def test_a_second_break_is_raised() -> None:
    again = WeightSyncError("g1", "bucket 2", "no answer")
    group = Group([Generator("g0", MemberDied("g0", "killed")), Generator("g1", CHECKSUM, again)], set(), {"g0"})
    assert sync(group)[1] is again


def test_the_error_that_names_the_culprit_is_raised_before_others() -> None:
    named = WeightSyncError("g1", "bucket 1", "no answer")
    assert sync(Group([Generator("g0", MemberDied("g0", "no answer")), Generator("g1", named)]))[1] is named


def test_another_checksum_than_the_learners_is_an_error_with_the_members_name() -> None:
    raised = sync(Group([Generator("g0"), Generator("g1", CHECKSUM + 1)]))[1]
    assert isinstance(raised, WeightSyncError)
    assert "g1 has 0000000000000008" in str(raised) and "g0" not in str(raised)
