"""When weights move, and how a broken transfer is repaired, on a learner and generators that only note what they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from actors.health.lifeline import LearnerDied, MemberDied
from learner.weights.protocol import Rendezvous, TensorSpec, WeightManifest, WeightSyncError
from orchestration.cluster import weight_sync
from orchestration.cluster.weight_sync import ATTEMPTS, WeightBroadcast, WeightGroup

CHECKSUM = 7
HANGS = "hangs"
Outcome = Exception | int | str


class Learner:
    def __init__(self, events: list[str], *faults: Exception) -> None:
        self.events, self.faults = events, list(faults)
        self.gone: list[str] = []
        self.told, self.waits = asyncio.Event(), False
        self.manifests, self.tensor = 0, TensorSpec("w", (4,), "float32")

    async def listen(self, timeout_s: float) -> int:
        return 4000

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        self.events.append(f"group {rendezvous.epoch}: {', '.join(rendezvous.members)}")

    async def absent(self, generator: str) -> None:
        self.gone.append(generator)
        self.told.set()

    async def manifest(self, version: int, timeout_s: float) -> WeightManifest:
        self.manifests += 1
        return WeightManifest(version, (self.tensor,))

    async def publish(
        self, manifest: WeightManifest, sequences: Sequence[Sequence[int]]
    ) -> tuple[int, list[list[float]]]:
        self.events.append(f"sent {manifest.version}")
        if self.waits:
            await self.told.wait()
        if self.faults:
            raise self.faults.pop(0)
        if manifest.tensors != (self.tensor,):
            raise WeightSyncError("learner", f"packing bucket 1 of 1 of version {manifest.version}", "another tensor")
        return CHECKSUM, [[float(manifest.version)] * (len(ids) - 1) for ids in sequences]


class Generator:
    def __init__(self, name: str, *faults: Outcome) -> None:
        """Takes the outcomes of the next transfers; an integer is a checksum."""
        self.name, self.faults = name, list(faults)
        self.versions: list[int] = []

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None: ...

    async def receive_weights(
        self, manifest: WeightManifest, timeout_s: float, sequences: Sequence[Sequence[int]]
    ) -> int:
        fault = self.faults.pop(0) if self.faults else CHECKSUM
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, str):
            await asyncio.sleep(3600)
        self.versions.append(manifest.version)
        return CHECKSUM if isinstance(fault, str) else fault


class Group:
    """Stands for the generators; a lost one is replaced at once by a generator of the name "... again"."""

    def __init__(self, *members: Generator, replace: bool = True) -> None:
        self.members, self.replace = list(members), replace
        self.deaths: list[MemberDied] = []

    async def weight_receivers(self) -> Sequence[Generator]:
        return self.members

    def lost(self, death: MemberDied) -> None:
        self.deaths.append(death)
        self.members = [m for m in self.members if m.name != death.name]
        if self.replace:
            self.members.append(Generator(f"{death.name} again"))


def sync(group: Group, *faults: Exception, times: int = 1) -> tuple[list[str], Exception | None]:
    """Returns (events in order, error). faults: of the learner."""
    events: list[str] = []
    broadcast = WeightBroadcast(Learner(events, *faults), group, WeightGroup("10.0.0.1", "gloo", 1, 0.2), events.append)

    async def work() -> None:
        for version in range(3, 3 + times):
            sent = await broadcast.sync(version, [[1, 2, 3], [4, 5]])
            assert sent.manifest.version == version
            assert sent.names == [m.name for m in group.members]
            assert sent.logprobs == [[version, version], [version]]

    try:
        asyncio.run(work())
    except (MemberDied, WeightSyncError) as error:
        return events, error
    return events, None


def test_a_transfer_reaches_every_generator_once_and_the_group_stays() -> None:
    group = Group(Generator("g0"), Generator("g1"))
    assert sync(group, times=2) == (["group 1: learner, g0, g1", "sent 3", "sent 4"], None)
    assert [m.versions for m in group.members] == [[3, 4], [3, 4]]


def test_what_is_sent_is_described_once_until_a_transfer_breaks() -> None:
    """The learner packs nothing that a manifest does not describe, so one that no longer holds breaks the transfer."""
    events: list[str] = []
    learner = Learner(events)
    broadcast = WeightBroadcast(learner, Group(Generator("g0")), WeightGroup("10.0.0.1", "gloo", 1, 5.0), events.append)

    async def work() -> list[WeightManifest]:
        same = [(await broadcast.sync(version)).manifest for version in (1, 2)]
        assert learner.manifests == 1
        learner.tensor = TensorSpec("w", (5,), "float32")
        return [*same, (await broadcast.sync(3)).manifest]

    sent = asyncio.run(work())
    assert [(m.version, m.tensors[0].shape) for m in sent] == [(1, (4,)), (2, (4,)), (3, (5,))]
    assert learner.manifests == 2
    broadcast.renewed()
    asyncio.run(broadcast.sync(4))
    assert learner.manifests == 3
    assert any("the weight transfer of version 3 broke" in event for event in events)


def test_the_group_is_formed_anew_where_generators_came_or_went() -> None:
    group = Group(Generator("g0"), Generator("g1"))
    events: list[str] = []
    broadcast = WeightBroadcast(Learner(events), group, WeightGroup("10.0.0.1", "gloo", 1, 5.0), events.append)

    async def work() -> None:
        await broadcast.sync(1)
        group.members = [group.members[1], Generator("g2")]
        await broadcast.sync(2)

    asyncio.run(work())
    assert events == ["group 1: learner, g0, g1", "sent 1", "group 2: learner, g1, g2", "sent 2"]


def test_a_transfer_that_breaks_with_a_death_is_made_again_without_the_dead() -> None:
    group = Group(Generator("g0", MemberDied("g0", "killed")), Generator("g1"))
    events, raised = sync(group)
    assert raised is None
    assert events[2] == "the weight transfer of version 3 broke (g0 is gone: killed); it is made again"
    assert events[3:] == ["group 2: learner, g1, g0 again", "sent 3"]
    assert [(m.name, m.versions) for m in group.members] == [("g1", [3, 3]), ("g0 again", [3])]


def test_the_learner_does_not_wait_for_a_generator_that_is_known_to_be_gone() -> None:
    """It would for weights.timeout_s: it cannot see who lives."""
    events: list[str] = []
    learner = Learner(events, WeightSyncError("g0", "start of version 3", "g0 is gone"))
    learner.waits = True
    group = Group(Generator("g0", MemberDied("g0", "killed")), Generator("g1"))
    broadcast = WeightBroadcast(learner, group, WeightGroup("10.0.0.1", "gloo", 1, 0.2), events.append)
    asyncio.run(asyncio.wait_for(broadcast.sync(3), 5))
    assert learner.gone == ["g0"]
    assert [d.name for d in group.deaths] == ["g0"]


def test_as_many_die_as_there_are_and_the_rest_goes_on() -> None:
    faults = [Generator(f"g{i}", *[CHECKSUM] * i, MemberDied(f"g{i}", "killed")) for i in range(5)]
    group = Group(*faults, Generator("g5"), replace=False)
    assert sync(group)[1] is None
    assert [m.name for m in group.members] == ["g5"]


def test_a_generator_that_hangs_in_a_transfer_is_the_one_that_is_lost() -> None:
    """Its process answers, and the thread that takes the weights does not end."""
    broken = WeightSyncError("learner", "bucket 1", "not done within 0.2 s, or a member was lost")
    group = Group(Generator("g0"), Generator("g1", HANGS))
    events, raised = sync(group, broken)
    assert raised is None
    assert [d.name for d in group.deaths] == ["g1"]
    assert "no answer 0.2 s after the learner had ended its part" in str(group.deaths[0])
    assert events[-2:] == ["group 2: learner, g0, g1 again", "sent 3"]


def test_whom_the_learner_names_as_absent_is_lost_though_the_others_only_waited_in_vain() -> None:
    absent = WeightSyncError("g1, g2 shard 1", "start of version 3", "g1, g2 shard 1 did not arrive within 5 s")
    waited = WeightSyncError("g0", "start of version 3", "no answer from the learner within 5 s")
    group = Group(Generator("g0", waited), Generator("g1", waited), Generator("g2", waited))
    assert sync(group, absent)[1] is None
    assert [d.name for d in group.deaths] == ["g1", "g2"]


def test_a_break_with_nobody_to_name_is_tried_again_and_then_raised() -> None:
    error = WeightSyncError("g0", "bucket 1", "no answer")
    group = Group(Generator("g0", error), Generator("g1"))
    assert sync(group)[1] is None
    assert group.deaths == []
    events, raised = sync(Group(Generator("g0", *[error] * ATTEMPTS)))
    assert raised is error
    assert events.count("sent 3") == ATTEMPTS


def test_names_that_a_model_does_not_know_and_a_learner_that_dies_are_raised_at_once() -> None:
    refused = WeightSyncError("g0", "load of version 3", "nothing is called w13")
    assert sync(Group(Generator("g0", refused)))[1] is refused
    dead = LearnerDied("learner rank 1", "killed")
    group = Group(Generator("g0", WeightSyncError("g0", "bucket 1", "no answer")))
    assert sync(group, dead)[1] is dead
    assert group.deaths == []


def test_who_has_another_checksum_than_the_learner_is_lost() -> None:
    group = Group(Generator("g0"), Generator("g1", CHECKSUM + 1))
    assert sync(group)[1] is None
    (death,) = group.deaths
    assert death.name == "g1" and "g1 has 0000000000000008" in str(death) and "g0" not in str(death)


def test_an_error_of_another_kind_is_not_taken_for_a_broken_transfer() -> None:
    with pytest.raises(KeyError):
        sync(Group(Generator("g0", KeyError("x"))))


def test_a_generator_has_a_grace_of_its_own_to_meet_the_others() -> None:
    assert weight_sync.GRACE_S > 0


def test_a_transfer_that_breaks_at_every_generator_again_and_again_is_raised() -> None:
    """Where nothing reaches a port, each replacement ends in the same way."""

    class Blocked(Group):
        def lost(self, death: MemberDied) -> None:
            self.deaths.append(death)
            name = f"{death.name}+"
            self.members = [Generator(name, MemberDied(name, "did not arrive within 5 s"))]

    group = Blocked(Generator("g", MemberDied("g", "did not arrive within 5 s")))
    _, raised = sync(group)
    assert "did not arrive" in str(raised)
    assert len(group.deaths) == ATTEMPTS - 1
