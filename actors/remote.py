"""The only @ray.remote classes: shells around plain classes, and the handles through which the conductor calls them.

A shell adds nothing but a process. A handle turns what Ray raises into our own errors: the death of a process becomes
MemberDied, an error raised inside a method comes out as itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.inference import Completion, Request
from actors.pool import MemberDied
from actors.settings import RewardModelSettings, VLLMSettings, cpu_threads
from actors.verifier import EnvSpec, ScoreRequest, Verifier
from actors.vllm_engine import EngineDead
from envs.isolation.killable import SandboxError
from envs.types import Observation, Verdict
from learner.weights.protocol import Rendezvous, WeightManifest

if TYPE_CHECKING:
    from learner.deepspeed_engine import Placement
    from learner.learner import LearnerStage, RankSettings

T = TypeVar("T")


async def answer(name: str, reference: Awaitable[T], timeout_s: float) -> T:
    """Wait for a call of one member. Raises MemberDied when its process, or the engine in it, is gone or the time is up."""
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


@ray.remote
class GeneratorActor:
    """One generator; the engine is made by `factory`, in this process.

    required: the version it has to hold before it serves; None for a model that nobody trains: it serves what it was built with.
    """

    def __init__(self, factory: Callable[[], Any], name: str, required: int | None) -> None:
        from actors.generator import Generator

        self._generator = Generator(factory(), required or 0, name)
        if required is None:
            self._generator.mark_current(0)

    async def ready(self) -> bool:
        """Raises EngineDead when the process lives and its engine does not."""
        if not self._generator.stats()["alive"]:
            raise EngineDead("the engine has ended: its log says why")
        return True

    async def call(self, method: str, *args: Any) -> Any:
        result = getattr(self._generator, method)(*args)
        return await result if asyncio.iscoroutine(result) else result

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        async for completions in self._generator.stream(requests):
            yield completions


@ray.remote
class VerifierActor:
    def __init__(self, specs: Sequence[EnvSpec], timeout_s: float) -> None:
        self._verifier = Verifier(specs, timeout_s)

    def ready(self) -> bool:
        return True

    def prepare(self) -> str | None:
        """What keeps an environment from being built on this node, or None."""
        try:
            self._verifier.prepare()
        except SandboxError as error:
            return f"on {ray.util.get_node_ip_address()}: {error}"
        return None

    def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        return self._verifier.score(requests)

    def configure(self, specs: Sequence[EnvSpec]) -> None:
        self._verifier.configure(specs)

    def close(self) -> None:
        self._verifier.close()


@ray.remote
class RewardModelActor:
    def __init__(self, settings: RewardModelSettings) -> None:
        from actors.rewards.reward_model import RewardModel

        self._model = RewardModel(settings)

    def ready(self) -> bool:
        return True

    def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        return self._model.score(requests)

    def close(self) -> None:
        self._model.close()


@ray.remote
class LearnerActor:
    """One rank of the learner group. `start` joins the group: it returns once all ranks have."""

    def __init__(self) -> None:
        self._learner: Any = None

    def address(self) -> tuple[str, int]:
        """This node's address and a port that is free on it."""
        with socket.create_server(("", 0)) as server:
            return ray.util.get_node_ip_address(), server.getsockname()[1]

    def start(self, settings: RankSettings, place: Placement) -> None:
        """Also for the next run of a warm group: the learner before it is freed, its channel to the generators kept."""
        from learner.learner import Learner

        publisher = None if self._learner is None else self._learner.release()
        self._learner = None
        self._learner = Learner(settings, place)
        self._learner.publisher = publisher

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._learner, method)(*args)


class RemoteGenerator:
    """A GeneratorMember, and the weight calls."""

    def __init__(self, name: str, actor: Any, timeout_s: float) -> None:
        self.name, self.actor, self.timeout_s = name, actor, timeout_s

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """`timeout_s` bounds the whole batch."""
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        stream = self.actor.stream.options(num_returns="streaming").remote(requests)
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
        return await answer(self.name, self.actor.call.remote("sequence_logprobs", sequences), self.timeout_s)

    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        call = self.actor.call.remote("connect_weights", rendezvous, timeout_s)
        await answer(self.name, call, timeout_s + GRACE_S)

    async def receive_weights(self, manifest: WeightManifest, timeout_s: float) -> int:
        call = self.actor.call.remote("receive_weights", manifest, timeout_s)
        return await answer(self.name, call, timeout_s + GRACE_S)

    async def stats(self) -> dict[str, Any]:
        return await answer(self.name, self.actor.call.remote("stats"), self.timeout_s)


class RemoteVerifier:
    """A VerifierMember."""

    def __init__(self, name: str, actor: Any, timeout_s: float) -> None:
        self.name, self.actor, self.timeout_s = name, actor, timeout_s

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        # Every response has its own limit inside, and so has every joint call, which ends in a response scored by itself if it runs
        # out of time; the whole has all of them and the start of the subprocess.
        limit = 600.0 + 2 * self.timeout_s * len(requests)
        return await answer(self.name, self.actor.score.remote(requests), limit)


class RemoteRewardModel:
    """A VerifierMember too: a reward model is asked as a verifier is. `timeout_s` bounds one message."""

    def __init__(self, name: str, actor: Any, timeout_s: float) -> None:
        self.name, self.actor, self.timeout_s = name, actor, timeout_s

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        return await answer(self.name, self.actor.score.remote(requests), self.timeout_s)


# A member's own time-out names the phase it was in; the caller waits a little longer to hear it.
GRACE_S = 15.0


class RemoteLearner:
    """All ranks as one."""

    def __init__(self, actors: Sequence[Any], timeout_s: float) -> None:
        self.actors, self.timeout_s = list(actors), timeout_s

    async def all(self, method: str, *args: Any, timeout_s: float | None = None) -> list[Any]:
        """The same call on every rank; their answers in rank order. The first error ends the wait for the others."""
        return await self.each(method, [args] * len(self.actors), timeout_s)

    async def each(self, method: str, arguments: Sequence[Sequence[Any]], timeout_s: float | None = None) -> list[Any]:
        limit = self.timeout_s if timeout_s is None else timeout_s
        calls = [actor.call.remote(method, *args) for actor, args in zip(self.actors, arguments, strict=True)]
        return list(await asyncio.gather(*(answer(f"learner rank {r}", c, limit) for r, c in enumerate(calls))))

    async def first(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Rank 0 alone: for calls that are not collectives."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        return await answer("learner rank 0", self.actors[0].call.remote(method, *args), limit)

    async def begin_stage(self, stage: LearnerStage) -> None:
        await self.all("begin_stage", stage)

    async def save(self, hf: Path, engine: Path) -> None:
        await self.all("save", hf, engine)


def vllm_factory(settings: VLLMSettings) -> Callable[[], Any]:
    """Builds the engine inside the actor; its OpenMP threads on a CPU are set before vLLM is imported."""

    def make() -> Any:
        threads = cpu_threads(settings.generator.cpus, settings.generator.gpus)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        from actors.vllm_engine import VLLMEngine

        return VLLMEngine(settings)

    return make
