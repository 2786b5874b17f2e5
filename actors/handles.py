"""Provides typed handles to the actors: one method for each remote call, each wait bounded.

A wait is bounded by a time of its own, or by the progress of the actor: `health/monitor.py` gives up one that makes none, and every
call of it raises MemberDied.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ray.actor import ActorProxy

from actors.health.lifeline import LearnerDied, Lifeline, MemberDied
from actors.health.stacks import Whereabouts
from actors.inference import Completion, Memory, Request
from actors.remote import BaseActor, GeneratorActor, LearnerActor, RewardModelActor, VerifierActor
from actors.verifier import EnvSpec, ScoreRequest
from envs.types import Observation, Verdict
from learner.tracing.spans import Recorded
from learner.weights.protocol import Rendezvous, WeightManifest

if TYPE_CHECKING:
    from actors.generator import GeneratorStats
    from learner.rank_settings import LearnerStage, RankPlace, RankSettings
    from learner.types import ModelCheck, RankBatch, StepMetrics

T = TypeVar("T")


class RemoteMember:
    """Calls what every actor has. Not built by itself: a subclass knows the actor's own methods."""

    def __init__(self, name: str, actor: ActorProxy[Any]) -> None:
        self.name = name
        self.whereabouts: Whereabouts | None = None  # once it has answered
        self._line = Lifeline(name)
        self._any: ActorProxy[BaseActor] = actor

    @property
    def busy(self) -> bool:
        """Returns whether calls are under way that have to make progress."""
        return self._line.work > 0

    def give_up(self, death: MemberDied) -> None:
        """Ends every call under way, and every later one, with `death`."""
        self._line.cut(death)

    async def ready(self, timeout_s: float) -> None:
        """Returns once the actor was built. Raises MemberDied."""
        self.whereabouts = await self._line.answer(self._any.ready.remote(), timeout_s, "cluster.start_timeout_s")

    async def beat(self) -> int:
        """Returns a count of what the actor has done so far; waits until it is given up. Raises MemberDied."""
        return await self._line.answer(self._any.beat.remote(), None)

    async def stacks(self) -> str:
        """Returns the stack of every thread of the actor's process; who asks bounds the wait. Raises MemberDied."""
        return await self._line.answer(self._any.stacks.remote(), None)

    async def spans(self) -> Recorded:
        """Returns what the actor recorded since the last call; who asks bounds the wait. Raises MemberDied."""
        return await self._line.answer(self._any.spans.remote(), None)


class RemoteGenerator(RemoteMember):
    """Calls one generator: a GeneratorMember of a pool, and the weight calls."""

    def __init__(self, name: str, actor: ActorProxy[GeneratorActor], timeout_s: float) -> None:
        """timeout_s: of a short call without a limit of its own."""
        super().__init__(name, actor)
        self.timeout_s = timeout_s
        self._actor = actor
        self._receiving = 0

    @property
    def busy(self) -> bool:
        """Returns whether calls are under way that have to make progress; none has to while weights come, which has limits of its
        own and may take longer than a generator may be without an engine step."""
        return super().busy and not self._receiving

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """Yields completions as they finish, for as long as the engine makes progress. Raises MemberDied."""
        # Ray's types have no streaming calls: what it returns for one yields a reference for each item.
        stream = cast("AsyncIterator[Awaitable[list[Completion]]]", self._actor.stream.remote(requests))
        with self._line.working():
            while True:
                reference = await self._line.answer(_next(stream), None)
                if reference is None:
                    return
                yield await self._line.answer(reference, None)

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns log-probs at temperature 1 of tokens 1.. of each sequence."""
        with self._line.working():
            return await self._line.answer(self._actor.sequence_logprobs.remote(sequences), None)

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """Joins the weight group. Who waits for all of its members bounds the wait, as in `receive_weights`."""
        await self._line.answer(self._actor.connect_weights.remote(rendezvous, timeout_s), None)

    async def receive_weights(
        self, manifest: WeightManifest, timeout_s: float, sequences: Sequence[Sequence[int]]
    ) -> int:
        """Loads one version; returns the checksum of what came. timeout_s: of each wait for the learner. sequences: what
        `sequence_logprobs` will be asked about next."""
        self._receiving += 1
        try:
            return await self._line.answer(self._actor.receive_weights.remote(manifest, timeout_s, sequences), None)
        finally:
            self._receiving -= 1

    async def sleep(self) -> None:
        """Frees the GPU, and ends what is under way; the generator serves nothing until `wake` was called for both parts."""
        await self._line.answer(self._actor.sleep.remote(), self.timeout_s, "generators.timeout_s")

    async def wake(self, memory: Memory) -> None:
        """Takes a part of the GPU's memory again."""
        await self._line.answer(self._actor.wake.remote(memory), self.timeout_s, "generators.timeout_s")

    async def abort(self, ids: Collection[str]) -> None:
        """Ends responses that nobody waits for any more. Raises MemberDied."""
        await self._line.answer(self._actor.abort.remote(ids), self.timeout_s)

    async def mark_current(self, version: int, timeout_s: float) -> None:
        await self._line.answer(self._actor.mark_current.remote(version), timeout_s)

    async def forget(self, timeout_s: float) -> None:
        """Ends what is under way; the generator serves nothing until its next weights, of whatever version."""
        await self._line.answer(self._actor.forget.remote(), timeout_s)

    async def stats(self) -> GeneratorStats:
        return await self._line.answer(self._actor.stats.remote(), self.timeout_s)


async def _next(stream: AsyncIterator[Awaitable[T]]) -> Awaitable[T] | None:
    """Returns the next item of a stream, or None at its end: StopAsyncIteration cannot leave a task."""
    return await anext(stream, None)


class RemoteVerifier(RemoteMember):
    """Calls one verifier: a VerifierMember of a pool."""

    def __init__(self, name: str, actor: ActorProxy[VerifierActor]) -> None:
        super().__init__(name, actor)
        self._actor = actor

    async def prepare(self, timeout_s: float) -> str | None:
        """Returns what keeps an environment from being built on the verifier's node, or None."""
        return await self._line.answer(self._actor.prepare.remote(), timeout_s, "cluster.start_timeout_s")

    async def configure(self, specs: Sequence[EnvSpec], timeout_s: float) -> None:
        await self._line.answer(self._actor.configure.remote(specs), timeout_s, "cluster.start_timeout_s")

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        """Returns one answer a request."""
        with self._line.working():
            return await self._line.answer(self._actor.score.remote(requests), None)


class RemoteRewardModel(RemoteMember):
    """Calls one reward model, which is asked as a verifier is."""

    def __init__(self, name: str, actor: ActorProxy[RewardModelActor]) -> None:
        super().__init__(name, actor)
        self._actor = actor

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        with self._line.working():
            return await self._line.answer(self._actor.score.remote(requests), None)


class RemoteRank(RemoteMember):
    """Calls what every actor has, of one rank of the learner."""

    def __init__(self, name: str, actor: ActorProxy[LearnerActor]) -> None:
        super().__init__(name, actor)
        self.line = self._line = Lifeline(name, LearnerDied)


class RemoteLearner:
    """Calls every rank of the learner group, or rank 0 where a call is not a collective.

    The first error of a collective call ends the wait for the other ranks. A rank that dies is LearnerDied: a group cannot go on
    without one of its ranks.
    """

    def __init__(self, actors: Sequence[ActorProxy[LearnerActor]], names: Sequence[str], timeout_s: float) -> None:
        """timeout_s: of a call that trains nothing."""
        self.timeout_s = timeout_s
        self._actors = list(actors)
        self.updated = False  # whether the weights were trained since the last transfer; who transfers them says so
        self.ranks = [RemoteRank(name, actor) for name, actor in zip(names, actors, strict=True)]

    @property
    def lost(self) -> bool:
        """Returns whether a rank is gone, and with it the group."""
        return any(rank.line.death is not None for rank in self.ranks)

    def give_up(self, death: MemberDied) -> None:
        """Ends every call of every rank with the death of one."""
        for rank in self.ranks:
            rank.give_up(LearnerDied(death.name, death.detail))

    async def ready(self, timeout_s: float) -> None:
        """Returns once every process was built."""
        await asyncio.gather(*(rank.ready(timeout_s) for rank in self.ranks))

    async def address(self, timeout_s: float) -> tuple[str, int]:
        """Returns the address of rank 0's node and a port that is free on it."""
        return await self._rank_0(self._actors[0].address.remote(), timeout_s)

    async def start(self, settings: RankSettings, placements: Sequence[RankPlace], timeout_s: float) -> None:
        """Builds every rank; `placements` in rank order. Returns once all have joined the group."""
        await self._all([a.start.remote(settings, p) for a, p in zip(self._actors, placements, strict=True)], timeout_s)

    async def train(self, batches: Sequence[RankBatch]) -> StepMetrics:
        """Runs one iteration on one batch per rank; returns its metrics, which are the same on every rank."""
        self.updated = True
        return (await self._all([a.train.remote(b) for a, b in zip(self._actors, batches, strict=True)]))[0]

    async def measure_start(self, batches: Sequence[RankBatch]) -> StepMetrics:
        """Gives the targets their start: the entropy of these responses. One batch per rank, without updates."""
        return (await self._all([a.measure_start.remote(b) for a, b in zip(self._actors, batches, strict=True)]))[0]

    async def begin_stage(self, stage: LearnerStage) -> None:
        await self._all([a.begin_stage.remote(stage) for a in self._actors])

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns log-probs at temperature 1 of tokens 1.. of each sequence; every rank takes part."""
        return (await self._all([a.sequence_logprobs.remote(sequences) for a in self._actors]))[0]

    async def check_model(self, sequences: Sequence[Sequence[int]]) -> ModelCheck:
        """Compares what is trained with the model's own forward (learner/model_check.py); every rank takes part."""
        return (await self._all([a.check_model.remote(sequences) for a in self._actors]))[0]

    async def scale_weights(self, factor: float) -> None:
        """Multiplies the weights on every rank, until the inverse factor is given."""
        await self._all([a.scale_weights.remote(factor) for a in self._actors])

    async def offload(self) -> None:
        """Moves optimiser state and gradients of every rank to host memory. Progress bounds the wait, as of `reload`."""
        await self._all([a.offload.remote() for a in self._actors])

    async def reload(self) -> None:
        """Brings back what `offload` moved."""
        await self._all([a.reload.remote() for a in self._actors])

    async def save(self, hf: Path, engine: Path) -> None:
        await self._all([a.save.remote(hf, engine) for a in self._actors])

    async def load(self, engine: Path) -> None:
        await self._all([a.load.remote(engine) for a in self._actors])

    async def state_dict(self) -> dict[str, object]:
        """Returns rank 0's state, which is the same on every rank."""
        return await self._rank_0(self._actors[0].state_dict.remote())

    async def load_state_dict(self, state: dict[str, Any]) -> None:
        await self._all([a.load_state_dict.remote(state) for a in self._actors])

    async def listen(self, timeout_s: float) -> int:
        """Returns a port of rank 0's node, held open for the next weight group."""
        return await self._rank_0(self._actors[0].listen.remote(), timeout_s)

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """Opens rank 0's channel to the generators; it waits for them up to `timeout_s`."""
        await self._rank_0(self._actors[0].connect_weights.remote(rendezvous, timeout_s), timeout_s * 2)

    async def absent(self, generator: str) -> None:
        """Ends the wait of a transfer under way, which the learner takes part in, for a generator that is gone."""
        await self._rank_0(self._actors[0].give_up.remote(generator))

    async def manifest(self, version: int, timeout_s: float) -> WeightManifest:
        return await self._rank_0(self._actors[0].manifest.remote(version), timeout_s)

    async def publish(
        self, manifest: WeightManifest, sequences: Sequence[Sequence[int]]
    ) -> tuple[int, list[list[float]]]:
        """Broadcasts the weights, a collective; returns the checksum of what rank 0 sent, and what `sequence_logprobs` does for
        these sequences, which are scored while the engines load. Progress bounds the wait."""
        (checksum, logprobs), *_ = await self._all([a.publish.remote(manifest, sequences) for a in self._actors])
        if checksum is None:
            raise RuntimeError("learner rank 0 has no channel to the generators: connect_weights comes before publish")
        return checksum, logprobs

    async def _all(self, calls: Sequence[Awaitable[T]], timeout_s: float | None = None) -> list[T]:
        """Waits for one call per rank; their answers in rank order. Without a time the ranks' progress bounds the wait."""

        async def one(rank: RemoteRank, call: Awaitable[T]) -> T:
            # Each by itself: who has ended its part makes no more progress, and is not to blame for the slowest.
            with rank.line.working() if timeout_s is None else contextlib.nullcontext():
                return await rank.line.answer(call, timeout_s)

        return await asyncio.gather(*(one(rank, call) for rank, call in zip(self.ranks, calls, strict=True)))

    async def _rank_0(self, call: Awaitable[T], timeout_s: float | None = None) -> T:
        return await self.ranks[0].line.answer(call, self.timeout_s if timeout_s is None else timeout_s)
