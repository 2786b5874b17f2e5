"""Provides typed handles to the actors: one method for each remote call, each wait bounded.

A handle turns what Ray raises into our own errors: the death of a process becomes MemberDied, an error raised inside a method
comes out as itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ray.actor import ActorProxy
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.inference import Completion, EngineDead, Request
from actors.pool import MemberDied
from actors.remote import GeneratorActor, LearnerActor, RewardModelActor, VerifierActor
from actors.verifier import EnvSpec, ScoreRequest
from envs.types import Observation, Verdict
from learner.weights.protocol import Rendezvous, WeightManifest

if TYPE_CHECKING:
    from actors.generator import GeneratorStats
    from learner.deepspeed_engine import RankPlace
    from learner.model_check import ModelCheck
    from learner.rank_settings import LearnerStage, RankSettings
    from learner.types import RankBatch, StepMetrics

T = TypeVar("T")

# A member's own time-out names the phase it was in; the caller waits a little longer to hear it.
GRACE_S = 15.0


async def answer(name: str, reference: Awaitable[T], timeout_s: float) -> T:
    """Waits for a call of one member. Raises MemberDied when its process, or the engine in it, is gone or the time is up."""
    try:
        return await asyncio.wait_for(reference, timeout_s)
    except TimeoutError:
        raise MemberDied(name, f"no answer within {timeout_s:g} s") from None
    except (RayActorError, ObjectLostError) as error:
        raise MemberDied(name, str(error).strip().splitlines()[-1]) from error
    except RayTaskError as error:
        if isinstance(error.cause, EngineDead):
            raise MemberDied(name, str(error.cause)) from error
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise


class RemoteGenerator:
    """Calls one generator: a GeneratorMember of a pool, and the weight calls. `timeout_s` bounds each call without its own."""

    def __init__(self, name: str, actor: ActorProxy[GeneratorActor], timeout_s: float) -> None:
        self.name, self.timeout_s = name, timeout_s
        self._actor = actor

    async def ready(self, timeout_s: float) -> None:
        await answer(self.name, self._actor.ready.remote(), timeout_s)

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """Yields completions as they finish; `timeout_s` bounds the whole batch. Raises MemberDied."""
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        # Ray's types have no streaming calls: what it returns for one yields a reference for each item.
        stream = cast("AsyncIterator[Awaitable[list[Completion]]]", self._actor.stream.remote(requests))
        while True:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            try:
                reference = await asyncio.wait_for(anext(stream), left)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise MemberDied(self.name, f"a batch of responses took longer than {self.timeout_s:g} s") from None
            except RayActorError as error:
                raise MemberDied(self.name, str(error).strip().splitlines()[-1]) from error
            yield await answer(self.name, reference, max(1.0, left))

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return await answer(self.name, self._actor.sequence_logprobs.remote(sequences), self.timeout_s)

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        await answer(self.name, self._actor.connect_weights.remote(rendezvous, timeout_s), timeout_s + GRACE_S)

    async def receive_weights(self, manifest: WeightManifest, timeout_s: float) -> int:
        return await answer(self.name, self._actor.receive_weights.remote(manifest, timeout_s), timeout_s + GRACE_S)

    async def mark_current(self, version: int, timeout_s: float) -> None:
        await answer(self.name, self._actor.mark_current.remote(version), timeout_s)

    async def forget(self, timeout_s: float) -> None:
        await answer(self.name, self._actor.forget.remote(), timeout_s)

    async def stats(self) -> GeneratorStats:
        return await answer(self.name, self._actor.stats.remote(), self.timeout_s)


class RemoteVerifier:
    """Calls one verifier: a VerifierMember of a pool. `timeout_s` bounds the scoring of one response."""

    def __init__(self, name: str, actor: ActorProxy[VerifierActor], timeout_s: float) -> None:
        self.name, self.timeout_s = name, timeout_s
        self._actor = actor

    async def ready(self, timeout_s: float) -> None:
        await answer(self.name, self._actor.ready.remote(), timeout_s)

    async def prepare(self, timeout_s: float) -> str | None:
        """Returns what keeps an environment from being built on the verifier's node, or None."""
        return await answer(self.name, self._actor.prepare.remote(), timeout_s)

    async def configure(self, specs: Sequence[EnvSpec], timeout_s: float) -> None:
        await answer(self.name, self._actor.configure.remote(specs), timeout_s)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        """Returns one answer a request."""
        # At worst every response takes its limit twice, in a joint call and then alone, and the subprocess has to start.
        limit = 600.0 + 2 * self.timeout_s * len(requests)
        return await answer(self.name, self._actor.score.remote(requests), limit)


class RemoteRewardModel:
    """Calls one reward model, which is asked as a verifier is. `timeout_s` bounds one message."""

    def __init__(self, name: str, actor: ActorProxy[RewardModelActor], timeout_s: float) -> None:
        self.name, self.timeout_s = name, timeout_s
        self._actor = actor

    async def ready(self, timeout_s: float) -> None:
        await answer(self.name, self._actor.ready.remote(), timeout_s)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        return await answer(self.name, self._actor.score.remote(requests), self.timeout_s)


class RemoteLearner:
    """Calls every rank of the learner group, or rank 0 where a call is not a collective.

    The first error of a collective call ends the wait for the other ranks. `timeout_s` bounds each call without its own.
    """

    def __init__(self, actors: Sequence[ActorProxy[LearnerActor]], timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._actors = list(actors)

    async def address(self, timeout_s: float) -> tuple[str, int]:
        """Returns the address of rank 0's node and a port that is free on it."""
        return await self._rank_0(self._actors[0].address.remote(), timeout_s)

    async def start(self, settings: RankSettings, placements: Sequence[RankPlace], timeout_s: float) -> None:
        """Builds every rank; `placements` in rank order. Returns once all have joined the group."""
        await self._all([a.start.remote(settings, p) for a, p in zip(self._actors, placements, strict=True)], timeout_s)

    async def train(self, batches: Sequence[RankBatch]) -> StepMetrics:
        """Runs one iteration on one batch per rank; returns its metrics, which are the same on every rank."""
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

    async def manifest(self, version: int, timeout_s: float) -> WeightManifest:
        return await self._rank_0(self._actors[0].manifest.remote(version), timeout_s)

    async def publish(self, manifest: WeightManifest, timeout_s: float) -> int:
        """Broadcasts the weights, a collective; returns the checksum of what rank 0 sent."""
        checksum, *_ = await self._all([a.publish.remote(manifest) for a in self._actors], timeout_s)
        if checksum is None:
            raise RuntimeError("learner rank 0 has no channel to the generators: connect_weights comes before publish")
        return checksum

    async def _all(self, calls: Sequence[Awaitable[T]], timeout_s: float | None = None) -> list[T]:
        """Waits for one call per rank; their answers in rank order."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        return list(await asyncio.gather(*(answer(f"learner rank {r}", c, limit) for r, c in enumerate(calls))))

    async def _rank_0(self, call: Awaitable[T], timeout_s: float | None = None) -> T:
        return await answer("learner rank 0", call, self.timeout_s if timeout_s is None else timeout_s)
