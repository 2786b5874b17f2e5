"""Defines the Ray actor classes: shells that give a plain class a process of its own and add nothing else.

Each is a plain class that orchestration/cluster/actor_slots.py places with `ray.remote`. `@ray.method` gives a method its type on
a handle: `ActorProxy[LearnerActor]` knows every method, its arguments and its result, so that pyright finds a misspelt one.
actors/handles.py has what the rest of the program calls; what an actor is built from, and when, is in orchestration/cluster/.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# Ray's own annotations of `ray.method` and of its address functions are incomplete; what they give is typed below.

from __future__ import annotations

import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.util import get_node_ip_address

from actors.health.stacks import Whereabouts, answer_signal, here, stacks
from actors.inference import Completion, EngineDead, InferenceEngine, Memory, Request
from actors.settings import RewardModelSettings, VLLMSettings, cpu_threads
from actors.verifier import EnvSpec, ScoreRequest, Verifier
from envs.isolation.killable import KillableError
from envs.types import Observation, Verdict
from learner.tracing import spans
from learner.tracing.spans import Recorded, span
from learner.weights.protocol import Rendezvous, WeightManifest

if TYPE_CHECKING:
    from actors.generator import GeneratorStats
    from learner.learner import Learner
    from learner.rank_settings import LearnerStage, RankPlace, RankSettings
    from learner.types import ModelCheck, RankBatch, StepMetrics


HEALTH = "health"  # the concurrency group of what is answered beside the work


class BaseActor:
    """Declares what every kind of actor has."""

    @ray.method
    def ready(self) -> Whereabouts:
        """Returns where the actor is, once it was built, or raises what keeps it from working."""
        answer_signal()
        return here()

    @ray.method
    def close(self) -> None:
        """Ends what the actor holds outside its process."""

    # In a thread of their own (actor_slots.py), so that they are answered while the actor works.

    @ray.method(concurrency_group=HEALTH)
    def beat(self) -> int:
        """Returns a count of what the actor has done so far: it grows as long as work makes progress."""
        return self._done()

    @ray.method(concurrency_group=HEALTH)
    def stacks(self) -> str:
        """Returns the stack of every thread of this process."""
        return stacks()

    @ray.method(concurrency_group=HEALTH)
    def spans(self) -> Recorded:
        """Returns what this process recorded since the last call (learner/tracing)."""
        return spans.take()

    def _done(self) -> int:
        return 0


@contextlib.contextmanager
def _uncollected() -> Generator[None]:
    """Pauses Python's collector while thousands of modules are imported: it finds nothing there, in a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class GeneratorActor(BaseActor):
    """Runs one generator; `factory` makes its engine in this process.

    required: the version it has to hold before it serves; None for a model that is never trained: it serves what it was built with.
    """

    def __init__(self, factory: Callable[[], InferenceEngine], name: str, required: int | None) -> None:
        from actors import generator

        with span("load"), _uncollected():
            engine = factory()
        self._generator = generator.Generator(engine, required or 0, name)
        if required is None:
            self._generator.mark_current(0)

    @ray.method
    async def ready(self) -> Whereabouts:
        """Returns where the generator is. Raises EngineDead when the process lives and its engine does not."""
        if not self._generator.stats().engine.alive:
            raise EngineDead("the engine has ended: its log says why")
        answer_signal()
        return here()

    @ray.method(num_returns="streaming")
    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        async for completions in self._generator.stream(requests):
            yield completions

    @ray.method
    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return await self._generator.sequence_logprobs(sequences)

    @ray.method
    async def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        await self._generator.connect_weights(rendezvous, timeout_s)

    @ray.method
    async def receive_weights(
        self, manifest: WeightManifest, timeout_s: float, sequences: Sequence[Sequence[int]]
    ) -> int:
        with span("receive weights"):
            return await self._generator.receive_weights(manifest, timeout_s, sequences)

    @ray.method
    async def sleep(self) -> None:
        with span("sleep"):
            await self._generator.sleep()

    @ray.method
    async def wake(self, memory: Memory) -> None:
        with span(f"wake {memory}"):
            await self._generator.wake(memory)

    @ray.method
    async def abort(self, ids: Collection[str]) -> None:
        await self._generator.abort(ids)

    @ray.method
    async def mark_current(self, version: int) -> None:
        self._generator.mark_current(version)

    @ray.method
    async def forget(self) -> None:
        self._generator.forget()

    @ray.method
    async def stats(self) -> GeneratorStats:
        return self._generator.stats()

    @ray.method
    async def close(self) -> None:
        self._generator.close()

    def _done(self) -> int:
        return self._generator.done


class VerifierActor(BaseActor):
    """Runs one verifier, whose subprocess has the environments."""

    def __init__(self, specs: Sequence[EnvSpec], timeout_s: float) -> None:
        self._verifier = Verifier(specs, timeout_s)

    @ray.method
    def prepare(self) -> str | None:
        """Returns what keeps an environment from being built on this node, or None."""
        try:
            with span("load"):
                self._verifier.prepare()
        except KillableError as error:
            return f"on {get_node_ip_address()}: {error}"
        return None

    @ray.method
    def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        with span("score"):
            return self._verifier.score(requests)

    @ray.method
    def configure(self, specs: Sequence[EnvSpec]) -> None:
        self._verifier.configure(specs)

    @ray.method
    def close(self) -> None:
        self._verifier.close()

    def _done(self) -> int:
        return self._verifier.done


class RewardModelActor(BaseActor):
    """Runs one reward model."""

    def __init__(self, settings: RewardModelSettings) -> None:
        with _uncollected():
            from actors.rewards.reward_model import RewardModel

        self._model = RewardModel(settings)

    @ray.method
    def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        with span("score"):
            return self._model.score(requests)

    def _done(self) -> int:
        return self._model.done


class LearnerActor(BaseActor):
    """Runs one rank of the learner group. `start` joins the group: it returns once all ranks have."""

    def __init__(self) -> None:
        self._started: Learner | None = None
        self._listener: socket.socket | None = None  # on rank 0, from `address` to `start`
        self._gone: set[str] = set()  # generators that a weight transfer no longer waits for; no name comes again

    @property
    def _learner(self) -> Learner:
        if self._started is None:
            raise RuntimeError("a learner rank was called before `start`")
        return self._started

    @ray.method
    def address(self) -> tuple[str, int]:
        """Returns this node's address and a port on it, which is held until `start` opens the group's store on it."""
        from learner.weights.network import listen

        host = cast("str", get_node_ip_address())
        self._listener = listen(host)
        return host, self._listener.getsockname()[1]

    @ray.method
    def start(self, settings: RankSettings, placement: RankPlace) -> None:
        """Builds the rank, also for the next run of a warm group: the learner before it is freed, its channel to the
        generators kept."""
        with _uncollected():
            from learner.learner import Learner

        publisher = None if self._started is None else self._started.release()
        self._started = None  # before the next is built: both would not fit
        listener, self._listener = self._listener, None
        with span("load"):
            self._started = Learner(settings, placement, listener)
        self._started.publisher = publisher

    @ray.method
    def train(self, batch: RankBatch) -> StepMetrics:
        with span("train"):
            return self._learner.train(batch)

    @ray.method
    def measure_start(self, batch: RankBatch) -> StepMetrics:
        return self._learner.measure_start(batch)

    @ray.method
    def begin_stage(self, stage: LearnerStage) -> None:
        self._learner.begin_stage(stage)

    @ray.method
    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self._learner.sequence_logprobs(sequences)

    @ray.method
    def check_model(self, sequences: Sequence[Sequence[int]]) -> ModelCheck:
        return self._learner.check_model(sequences)

    @ray.method
    def scale_weights(self, factor: float) -> None:
        self._learner.engine.scale_weights(factor)

    @ray.method
    def offload(self) -> None:
        """Leaves the GPU to the generators: all but the weights goes to host memory."""
        self._learner.engine.offload()

    @ray.method
    def reload(self) -> None:
        self._learner.engine.reload()

    @ray.method
    def save(self, hf: Path, engine: Path) -> None:
        with span("save"):
            self._learner.save(hf, engine)

    @ray.method
    def load(self, engine: Path) -> None:
        self._learner.load(engine)

    @ray.method
    def state_dict(self) -> dict[str, object]:
        return self._learner.state_dict()

    @ray.method
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._learner.load_state_dict(state)

    @ray.method
    def listen(self) -> int:
        return self._learner.listen()

    @ray.method
    def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        self._learner.connect_weights(rendezvous, timeout_s, self._gone)

    @ray.method(concurrency_group=HEALTH)
    def give_up(self, generator: str) -> None:
        """Ends the wait of a transfer for a generator that is gone."""
        self._gone.add(generator)

    @ray.method
    def manifest(self, version: int) -> WeightManifest:
        return self._learner.manifest(version)

    @ray.method
    def publish(
        self, manifest: WeightManifest, sequences: Sequence[Sequence[int]]
    ) -> tuple[int | None, list[list[float]]]:
        with span("publish"):
            return self._learner.publish(manifest, sequences)

    @ray.method
    def close(self) -> None:
        if self._started is not None:
            self._started.close()

    def _done(self) -> int:
        return 0 if self._started is None else self._started.done


def vllm_factory(settings: VLLMSettings) -> Callable[[], InferenceEngine]:
    """Returns what builds the engine inside the actor; its OpenMP threads on a CPU are set before vLLM is imported."""

    def make() -> InferenceEngine:
        threads = cpu_threads(settings.generator.cpus, settings.generator.gpus)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        from actors.vllm_engine import VLLMEngine

        return VLLMEngine(settings)

    return make
