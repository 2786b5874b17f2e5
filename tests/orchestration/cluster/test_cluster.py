"""The cluster's own bookkeeping, on actors that only note what they are asked. Placed for real in tests/integration."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from support.builders import config_data

from actors.handles import RemoteVerifier
from actors.health.lifeline import NO_ANSWER, CouldNotStart, LearnerDied, MemberDied
from learner.weights.protocol import WeightManifest
from orchestration.cluster.actor_makers import START_ATTEMPTS, ActorMakers
from orchestration.cluster.cluster import MAX_WRONG, Cluster
from orchestration.cluster.turns import Turns
from orchestration.cluster.weight_sync import Transfer
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError, NumericsError, PlacementError
from orchestration.run.protocols import TrainingCluster


class Verifier(RemoteVerifier):
    """Raises what it is given when it is asked whether it is there, and names `fault` when it builds its environments."""

    def __init__(self, name: str, events: list[str], lost: Exception | None = None, fault: str | None = None) -> None:
        super().__init__(name, cast("Any", None))
        self.events, self.lost, self.fault = events, lost, fault

    async def ready(self, timeout_s: float) -> None:
        self.events.append(f"{self.name}: ready")
        if self.lost is not None:
            raise self.lost

    async def prepare(self, timeout_s: float) -> str | None:
        self.events.append(f"{self.name}: prepare")
        return self.fault


class Slots:
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def vacate(self, name: str) -> None:
        self.events.append(f"{name}: ended")


def start(*outcomes: Exception | None, fault: str | None = None) -> tuple[list[str], Any]:
    """Starts a verifier whose attempts end so. Returns (events in order, the verifier or the error)."""
    events: list[str] = []
    made = iter(Verifier(f"verifier {i}", events, lost, fault) for i, lost in enumerate(outcomes))
    makers = ActorMakers(validate(config_data()), cast("Any", Slots(events)), cast("Any", None))
    try:
        return events, asyncio.run(makers.started("verifier", 0, lambda: next(made)))
    except (MemberDied, ConfigError) as error:
        return events, error


def test_a_verifier_builds_its_environments_before_it_judges() -> None:
    events, verifier = start(None)
    assert isinstance(verifier, Verifier)
    assert events == ["verifier 0: ready", "verifier 0: prepare"]


def test_a_verifier_that_cannot_build_them_says_so() -> None:
    _, error = start(None, fault="on 10.0.0.7: no module 'mine'")
    assert isinstance(error, ConfigError)
    assert str(error).startswith(
        "verifier 0 cannot build the environments, on 10.0.0.7: no module 'mine'; files of your own"
    )


def test_a_process_that_is_lost_at_its_start_is_started_again_and_one_that_refuses_is_not() -> None:
    lost = MemberDied("verifier", "its process was killed or crashed")
    events, verifier = start(lost, None)
    assert isinstance(verifier, Verifier) and verifier.name == "verifier 1"
    assert events == ["verifier 0: ready", "verifier 0: ended", "verifier 1: ready", "verifier 1: prepare"]
    assert start(*[lost] * START_ATTEMPTS, None)[1] is lost
    refused = CouldNotStart("verifier", "ValueError: no such model")
    assert start(refused, None)[1] is refused


# --- comparison of engines and trainer ----------------------------------------------------------------------------------


class Scorer:
    def __init__(self, name: str, score: float | Exception) -> None:
        self.name, self.score = name, score

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        if isinstance(self.score, Exception):
            raise self.score
        return [[self.score] for _ in sequences]


class Members:
    """Stands for the generators; a lost one is replaced by one like it."""

    def __init__(self, *scorers: Scorer) -> None:
        self.members = list(scorers)
        self.generators = self  # one object plays the pool, too
        self.deaths: list[MemberDied] = []

    def lost(self, death: MemberDied) -> None:
        self.deaths.append(death)


def cluster_of(*scorers: Scorer) -> tuple[Cluster, Members]:
    cluster = Cluster(validate(config_data()), lambda text: None)
    members = Members(*scorers)
    cluster.members = cast("Any", members)
    return cluster, members


def test_a_generator_that_is_not_the_trainer_is_replaced_and_the_run_goes_on() -> None:
    cluster, members = cluster_of(Scorer("g0", -1.0), Scorer("g1", -1.7), Scorer("g2", MemberDied("g2", "killed")))
    assert asyncio.run(cluster.probe([[1, 2]], [[-1.0]]))["sync/logprob_gap_max"] == 0.0
    assert [d.name for d in members.deaths] == ["g2", "g1"]


def test_one_that_is_wrong_again_and_again_ends_the_run_and_so_does_a_wrong_one_alone() -> None:
    cluster, members = cluster_of(Scorer("g0", -1.0), Scorer("g1", -1.7))
    for _ in range(MAX_WRONG):
        asyncio.run(cluster.probe([[1, 2]], [[-1.0]]))
    with pytest.raises(NumericsError, match=f"log-probs of g1 .*; {MAX_WRONG} such generators were replaced"):
        asyncio.run(cluster.probe([[1, 2]], [[-1.0]]))
    assert len(members.deaths) == MAX_WRONG
    with pytest.raises(NumericsError, match="1 of 1 generators"):
        asyncio.run(cluster_of(Scorer("g0", -1.7))[0].probe([[1, 2]], [[-1.0]]))


# --- the start of the learner -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deaths", "places", "error"),
    [
        ([], 1, None),
        (["its process was killed"], 2, None),
        (["its process was killed"] * START_ATTEMPTS, START_ATTEMPTS, LearnerDied),
        ([f"{NO_ANSWER} 300 s (cluster.start_timeout_s)"], 1, PlacementError),
    ],
)
def test_a_rank_that_is_lost_at_its_start_is_placed_again_and_one_without_a_place_is_not(
    monkeypatch: pytest.MonkeyPatch, deaths: list[str], places: int, error: type[Exception] | None
) -> None:
    cluster = Cluster(validate(config_data()), lambda text: None)
    placed: list[int] = []

    async def place(start: Any) -> None:
        placed.append(1)
        cluster.learner = cast("Any", type("Learner", (), {"ranks": []}))
        if len(placed) <= len(deaths):
            raise LearnerDied("learner rank 0", deaths[len(placed) - 1])

    monkeypatch.setattr(cluster, "_place_learner", place)
    raised: Exception | None = None
    try:
        asyncio.run(cluster._start_learner(cast("Any", None)))
    except (LearnerDied, PlacementError) as found:
        raised = found
    assert len(placed) == places
    assert type(raised) is (error or type(None))


def test_a_learner_that_is_lost_at_every_attempt_of_the_first_start_is_no_reason_to_begin_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(validate(config_data()), lambda text: None)

    async def start_(start: Any) -> None:
        raise LearnerDied("learner rank 1", "its process was killed")

    monkeypatch.setattr(cluster, "_start", start_)
    for _ in range(2):
        with pytest.raises(PlacementError, match="the learner could not be started: learner rank 1 is gone"):
            asyncio.run(cluster.begin(cluster.config, cast("Any", None)))


# --- transfers to generators that join ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("joining", "serving", "updated", "sent"),
    [(True, False, False, True), (False, False, False, False), (True, True, False, False), (True, False, True, False)],
)
def test_who_joins_gets_weights_at_once_only_where_nobody_samples_and_none_are_due(
    joining: bool, serving: bool, updated: bool, sent: bool
) -> None:
    """Weights that were trained since the last transfer are another version than the one that replacements are to have."""
    cluster = Cluster(validate(config_data()), lambda text: None)
    cluster.version = 4
    calls: list[int] = []

    class Broadcast:
        async def sync(self, version: int, sequences: Sequence[Sequence[int]]) -> Transfer:
            calls.append(version)
            return Transfer(WeightManifest(version, ()), ["g1"], [])

    class Held(Members):
        joining: dict[str, int]

        def serve(self, names: list[str], version: int) -> None:
            calls.append(-version)

    Held.joining = {"g1": 1} if joining else {}
    cluster.members = cast("Any", Held(*([Scorer("g0", 0.0)] if serving else [])))
    cluster.learner = cast("Any", type("Learner", (), {"updated": updated}))
    cluster._weights = cast("Any", Broadcast())
    asyncio.run(cluster._fetch())
    assert calls == ([4, -4] if sent else [])


def test_the_loop_needs_of_a_cluster_only_what_its_protocol_has() -> None:
    """Pyright reports an error in the first line if the cluster lacks a method of the protocol."""
    cluster: TrainingCluster = Cluster(validate(config_data()), print)
    assert cluster.version == 0


# --- turns of a colocated run ---------------------------------------------------------------------------------------------


class Shared:
    """Plays members, the one generator, learner and transfer of a colocated run; notes what they are told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.engine_starts = asyncio.Lock()
        self.generators, self.name, self.updated, self.aborted, self.begun = self, "g0", False, 0, 0
        self.members: list[Any] = [self]
        self.joining: dict[str, Any] = {}
        self.replaced = 0
        self.cluster = Cluster(
            validate(config_data(generators={"gpus": 1, "colocated": True}, learner={"gpus": 1})), self.events.append
        )
        held: Any = self
        self.cluster.members = self.cluster.learner = self.cluster._weights = held
        self.cluster._turns = Turns(held, lambda: self.cluster.learner, True)

    def present(self) -> list[Any]:
        return [*self.members, *self.joining.values()]

    def serve(self, names: list[str], version: int) -> None:
        self.members += [self.joining.pop(name) for name in names if name in self.joining]
        self.events.append(f"serve {version}")

    async def sleep(self) -> None:
        self.events.append("sleep")

    async def wake(self, memory: str) -> None:
        self.events.append(f"wake {memory}")

    async def offload(self) -> None:
        self.events.append("offload")

    async def reload(self) -> None:
        self.events.append("reload")

    async def begin_stage(self, stage: Any) -> None:
        self.events.append("begin stage")

    async def sync(self, version: int, sequences: Sequence[Sequence[int]]) -> Transfer:
        self.events.append(f"transfer {version}")
        return Transfer(WeightManifest(version, ()), [one.name for one in self.present()], [])


def test_a_transfer_is_between_the_weights_and_the_cache_and_ends_the_learners_turn() -> None:
    async def work() -> None:
        shared = Shared()
        cluster = shared.cluster
        await cluster.learners_turn()
        await cluster.sync(3)
        order = ["sleep", "reload", "offload", "wake weights", "transfer 3", "wake kv_cache", "serve 3"]
        assert shared.events == order
        await cluster.generators_turn()
        await cluster.sync(4)  # awake: a transfer alone, as for the check at the start
        assert shared.events[len(order) :] == ["transfer 4", "serve 4"]
        assert cluster.counts()["time/turns"] > 0

    asyncio.run(work())


def test_who_joins_while_nobody_is_left_is_sent_weights_once_it_is_the_generators_turn() -> None:
    """A turn of the learner need not end in a transfer: a checkpoint has none."""

    async def work() -> None:
        shared = Shared()
        cluster = shared.cluster
        cluster.version = 5
        await cluster.learners_turn()
        shared.members, shared.joining = [], {"g0": shared}
        await cluster._fetch()  # begun before the turn, and too late
        assert shared.events == ["sleep", "reload"]
        await cluster.generators_turn()
        assert shared.events[2:] == ["offload", "wake weights", "wake kv_cache", "transfer 5", "serve 5"]

    asyncio.run(work())


def test_a_run_with_gpus_for_each_has_no_turns() -> None:
    async def work() -> None:
        cluster, _ = cluster_of(Scorer("g0", -1.0))
        await cluster._moving.acquire()  # a transfer, beside which an asynchronous run goes on
        await cluster.learners_turn()
        await cluster.generators_turn()

    asyncio.run(asyncio.wait_for(work(), 10))
