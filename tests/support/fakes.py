"""Fakes that record the order of events, and an environment whose prompts have no text."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

from actors.health.lifeline import MemberDied
from actors.inference import Aborted, BeginFn, Completion, EngineStats, GenerateFn, Request
from actors.verifier import ScoreRequest
from envs.base import Session
from envs.types import Group, Message, Observation, Prompt, Split, Status, Trajectory, Turn, Verdict
from learner.settings import RowLayout
from learner.weights.protocol import Rendezvous, WeightManifest
from orchestration.cluster.weight_sync import Transfer

FAKE_VOCAB = 32


def beginning(generate: GenerateFn) -> BeginFn:
    """Returns `generate` as what a rollout calls: one wait for each request of a call."""

    def begin(requests: Sequence[Request]) -> list[Awaitable[Completion]]:
        whole = asyncio.ensure_future(generate(requests))

        async def nth(i: int) -> Completion:
            return (await asyncio.shield(whole))[i]

        return [nth(i) for i in range(len(requests))]

    return begin


def fake_response(request: Request, version: int) -> Completion:
    """Returns a response that depends on the request and its seed alone; it ends at a stop token if it meets one."""
    rng = random.Random(f"{request.prompt_ids}/{request.seed}")
    ids: list[int] = []
    while len(ids) < request.sampling.max_tokens:
        ids.append(rng.randrange(FAKE_VOCAB))
        if ids[-1] in request.sampling.stop_token_ids:
            break
    stopped = ids[-1] in request.sampling.stop_token_ids
    logprobs = tuple(-rng.random() for _ in ids)
    return Completion(request.id, tuple(ids), logprobs, "stop" if stopped else "length", version, version)


class FakeEngine:
    """Serves as an `InferenceEngine` without a model. `events` records what happened, in order.

    With hold=True responses wait for `release(n)`, which delivers the n oldest (all by default) on the caller's thread;
    otherwise they are delivered within `submit`.
    """

    def __init__(self, version: int = 0, hold: bool = False) -> None:
        self.version = version
        self.hold = hold
        self.events: list[tuple[Any, ...]] = []
        self.fail_next_receive: BaseException | None = None
        self._lock = threading.Lock()
        self._waiting: list[tuple[Request, Callable[[Completion | BaseException], None]]] = []
        self._dead: BaseException | None = None
        self.submitted = threading.Event()

    def submit(self, requests: Sequence[Request], on_done: Callable[[Completion | BaseException], None]) -> None:
        if self._dead is not None:
            raise self._dead
        self.events.append(("submit", tuple(request.id for request in requests), self.version))
        with self._lock:
            self._waiting.extend((request, on_done) for request in requests)
        self.submitted.set()
        if not self.hold:
            self.release()

    def release(self, count: int | None = None) -> None:
        with self._lock:
            ready = self._waiting[:count]
            self._waiting = self._waiting[len(ready) :]
        for request, on_done in ready:
            self.events.append(("response", request.id, self.version))
            on_done(fake_response(request, self.version))

    def die(self, error: BaseException) -> None:
        """Ends every waiting request with `error`; later calls of `submit` raise it."""
        self._dead = error
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, on_done in waiting:
            on_done(error)

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self.events.append(("score", len(sequences), self.version))
        return [[-float(token) for token in tokens[1:]] for tokens in sequences]

    def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        self.events.append(("connect", rendezvous.rank, rendezvous.epoch))

    def receive_weights(self, manifest: WeightManifest, timeout_s: float) -> int:
        self.events.append(("receive", manifest.version))
        if self.fail_next_receive is not None:
            error, self.fail_next_receive = self.fail_next_receive, None
            raise error
        self.version = manifest.version
        return manifest.version

    def sleep(self) -> None:
        self.events.append(("sleep",))

    def wake(self, memory: str) -> None:
        self.events.append(("wake", memory))

    def abort(self, ids: Collection[str] | None = None) -> None:
        self.events.append(("abort", *sorted(ids or ())))
        with self._lock:
            ended = [w for w in self._waiting if ids is None or w[0].id in ids]
            self._waiting = [w for w in self._waiting if w not in ended]
        for _, on_done in ended:
            on_done(Aborted("nobody waits for it"))

    def stats(self) -> EngineStats:
        return EngineStats(self.version, alive=self._dead is None, in_flight=len(self._waiting))

    def close(self) -> None:
        self.events.append(("close",))
        self.die(RuntimeError("the fake engine was closed"))


class FakeGeneratorMember:
    """Serves as a generator behind a pool. `batches` records the ids of each message, in order.

    Every response is one message of its own. With hold=True the responses of a message wait for `release`; with die_after=n
    the member dies at the n-th response of its life, before delivering it.
    """

    def __init__(self, name: str, *, hold: bool = False, die_after: int | None = None) -> None:
        self.name = name
        self.batches: list[list[str]] = []
        self.served: list[str] = []
        self.aborted: set[str] = set()
        self._ending: set[str] = set()
        self._gate = asyncio.Event()
        self._die_after = die_after
        if not hold:
            self._gate.set()

    def release(self) -> None:
        self._gate.set()

    def die(self) -> None:
        """Delivers nothing from now on; held messages end at once."""
        self._die_after = 0
        self._gate.set()

    async def abort(self, ids: Collection[str]) -> None:
        self.aborted |= set(ids)
        self._ending |= set(ids)
        self._gate.set()

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        self.batches.append([r.id for r in requests])
        await self._gate.wait()
        ended = False
        for request in requests:
            await asyncio.sleep(0)
            if request.id in self._ending:
                self._ending.discard(request.id)
                ended = True
                continue
            if self._die_after is not None and len(self.served) >= self._die_after:
                raise MemberDied(self.name, "killed by a test")
            self.served.append(request.id)
            yield [fake_response(request, 0)]
        if ended:
            raise Aborted("nobody waits for it")


class FakeVerifierMember:
    """Serves as a verifier behind a pool: answers with `score_one`, by default a Verdict of reward 1."""

    def __init__(
        self,
        name: str,
        score_one: Callable[[ScoreRequest], Observation | Verdict] = lambda _: Verdict(1.0, True),
        *,
        hold: bool = False,
    ) -> None:
        self.name = name
        self.score_one = score_one
        self.batches: list[list[str]] = []
        self.ended: list[tuple[str, ...]] = []  # sessions that a message said are ended
        self.dead = False
        self._gate = asyncio.Event()
        if not hold:
            self._gate.set()

    def release(self) -> None:
        self._gate.set()

    def die(self) -> None:
        self.dead = True
        self._gate.set()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        self.batches.append([r.session for r in requests])
        self.ended.append(tuple(name for r in requests for name in r.ended))
        await self._gate.wait()
        await asyncio.sleep(0)
        if self.dead:
            raise MemberDied(self.name, "killed by a test")
        return [self.score_one(r) for r in requests]


class FakeCodec:
    """Maps every character to its code point, and decodes response ids to a list of numbers.

    The text of a response therefore never gives its ids back, so that code that tokenises a response again fails a test.
    Every message begins with a header token.
    """

    HEADER = -1

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(token for m in messages for token in (self.HEADER, *map(ord, m.content)))

    def render_observation(
        self, before: Sequence[Message], observation: Sequence[Message], response_ids: Sequence[int]
    ) -> tuple[int, ...]:
        return self.render(observation)

    def decode(self, ids: Sequence[int]) -> str:
        return f"response {list(ids)}"


class Numbered:
    """Has prompts that consist of their index; a split of `size` wraps around, as the protocol requires. Nothing is scored."""

    def __init__(self, name: str, size: int | None) -> None:
        self.name, self._size = name, size

    def size(self, split: Split) -> int | None:
        return self._size

    def prompt(self, split: Split, index: int) -> Prompt:
        return Prompt(self.name, split, index, (), {"task": index if self._size is None else index % self._size})

    def open(self, prompt: Prompt) -> Session:
        raise NotImplementedError


def scored_at(version: int, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Returns the log-probs of a learner whose every token has minus its weights' version."""
    return [[-float(version)] * (len(ids) - 1) for ids in sequences]


class FakeRun:
    """Plays cluster, learner, rollouts and sink for the loop in one object, and records their calls in `events`, in order.

    Rewards alternate within a group, unless `reward` gives another for a prompt and the number of a response.
    """

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.rows: list[dict[str, float]] = []
        self.version = 0
        self.learner = self  # one object plays them all
        self.before_collect: Callable[[str], None] = lambda stamp: None
        self.reward: Callable[[Prompt, int], float] = lambda prompt, i: float(i % 2)
        self.solution: Callable[[Prompt, int], str | None] = lambda prompt, i: None  # of a correct response
        self.turns = 1  # of every response
        self.trained: list[Any] = []  # rank 0's batch of every iteration
        self.checked: list[tuple[int, int]] = []  # version and number of sequences of every check of the start
        self.before_check: list[tuple[Any, ...]] = []
        self.refuse: Exception | None = None  # what the check of the start raises
        self.prompt: tuple[int, ...] = (1, 2)  # the tokens of every prompt
        self.layout: RowLayout = "padded"  # what the check of the start returns
        self.broken = ""  # what the environment raises for every response, if it does
        self.turn = "generators"  # whose the GPUs are where learner and generators share them

    # --- the cluster and its learner

    async def check_start(self, version: int, sequences: Sequence[Sequence[int]]) -> RowLayout:
        self.checked.append((version, len(sequences)))
        self.before_check = list(self.events)
        if self.refuse is not None:
            raise self.refuse
        return self.layout

    async def probe(self, sequences: Sequence[Sequence[int]], expected: Sequence[Sequence[float]]) -> dict[str, float]:
        assert self.turn == "generators"
        assert [list(scores) for scores in expected] == scored_at(self.version, sequences)
        return {}

    def counts(self) -> dict[str, float]:
        return {}

    async def learners_turn(self) -> None:
        self.turn = "learner"

    async def generators_turn(self) -> None:
        self.turn = "generators"

    async def begin_stage(self, index: int) -> None:
        self.turn = "learner"
        self.events.append(("begin_stage", index))

    async def train(self, batches: Sequence[Any]) -> dict[str, float]:
        assert self.turn == "learner"
        self.events.append(("train",))
        self.trained.append(batches[0])
        return {"loss": 0.0}

    async def measure_start(self, batches: Sequence[Any]) -> dict[str, float]:
        assert batches[0].measured
        assert not batches[0].updates
        assert self.turn == "learner"
        self.events.append(("measure_start",))
        return {"entropy/exact": 1.0}

    async def state_dict(self) -> dict[str, Any]:
        return {}

    async def save(self, hf: Any, engine: Any) -> None:
        assert self.turn == "learner"
        self.events.append(("save",))

    async def sync(self, version: int, sequences: Sequence[Sequence[int]]) -> Transfer:
        self.version, self.turn = version, "generators"
        return Transfer(WeightManifest(version, ()), [], scored_at(version, sequences))

    # --- rollouts

    def render(self, prompt: Prompt) -> tuple[int, ...]:
        return self.prompt

    def save_tokenizer(self, folder: Any) -> None: ...

    async def collect(
        self, prompts: Sequence[Prompt], sampling: Any, *, responses: int, stamp: str, **more: Any
    ) -> tuple[list[Group], dict[str, float]]:
        assert self.turn == "generators"
        self.before_collect(stamp)
        for _tick in range(10):  # long enough for a stop that was asked for just now to come first
            await asyncio.sleep(0)
        asked = tuple(f"{p.environment}:{p.key}" for p in prompts)
        self.events.append((stamp.partition("/")[0], asked, sampling.temperature))
        turn = Turn(self.prompt, (3, 4), (-0.5, -0.5), "stop", self.version, self.version)
        groups = []
        for p in prompts:
            rewards = [self.reward(p, i) for i in range(responses)]
            failed = Verdict(0.0, status=Status.ERROR, detail=self.broken)
            verdicts = [
                failed if self.broken else Verdict(r, r > 0, self.solution(p, i) if r > 0 else None)
                for i, r in enumerate(rewards)
            ]
            turns = (turn,) * self.turns
            groups.append(Group(p, tuple(Trajectory(p, turns, ("x",) * self.turns, verdict) for verdict in verdicts)))
        return groups, {"generate": 0.0, "verify": 0.0}

    def continuous(self) -> Any:
        return SimpleNamespace(seconds={"generate": 0.0, "verify": 0.0})

    def player(self, measured: Any, sampling: Any, *, responses: int, temperature: float) -> Any:
        async def play(prompt: Prompt, *, stamp: str) -> Group:
            (group,), _ = await self.collect([prompt], sampling, responses=responses, stamp=stamp)
            return group

        return play

    # --- the sink

    def progress(self, phase: str, done: float, total: float) -> None: ...

    def sample(self, rows: Sequence[Any]) -> None: ...

    def event(self, text: str) -> None:
        self.events.append(("event", text))

    def iteration(self, row: dict[str, float]) -> None:
        self.events.append(("row", row["iteration"]))
        self.rows.append(row)
