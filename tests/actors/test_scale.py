"""A thousand conversations at once, through the pools and a fake engine: none is lost and memory stays small."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence

from support.fakes import FakeCodec, FakeEngine

from actors.generator import Generator
from actors.health.lifeline import MemberDied
from actors.inference import Completion, Request
from actors.pool import GeneratorPool, VerifierPool
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.base import Session
from envs.builtin.toolbox.environment import Toolbox
from envs.types import Group, Observation, Status, Verdict

PROMPTS, RESPONSES = 125, 8
PEAK_MB = 64  # of what Python allocates; a conversation holds its tokens and its session, some 20 kB


class EngineMember:
    """Runs a real generator over a fake engine, which answers within `submit`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.engine = FakeEngine()
        self._generator = Generator(self.engine, name=name)
        self._generator.mark_current(0)

    def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        return self._generator.stream(requests)

    async def abort(self, ids: Collection[str]) -> None:
        await self._generator.abort(ids)


class SessionMember:
    """Keeps sessions of a real environment, as a verifier does, and forgets finished ones."""

    def __init__(self, name: str, environment: Toolbox) -> None:
        self.name = name
        self.sessions: dict[str, Session] = {}
        self._environment = environment

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        await asyncio.sleep(0)
        return [self._score_one(request) for request in requests]

    def _score_one(self, request: ScoreRequest) -> Observation | Verdict:
        if len(request.responses) == 1:
            self.sessions[request.session] = self._environment.open(request.prompt)
        answer = self.sessions[request.session].reply(request.responses[-1])
        if isinstance(answer, Verdict):
            del self.sessions[request.session]
        return answer


def test_a_thousand_conversations_at_once() -> None:
    tasks = Toolbox(level=1, max_calls=6)
    settings = RolloutSettings(SamplingSettings(max_tokens=12), responses=RESPONSES, max_model_len=2000, seed=0)
    members = [EngineMember(f"generator {i}") for i in range(2)]
    events: list[MemberDied] = []
    verifier_members = [SessionMember(f"verifier {i}", tasks) for i in range(2)]

    async def everything() -> list[Group]:
        generators, verifiers = GeneratorPool(members, events.append), VerifierPool(verifier_members, events.append)
        return await asyncio.gather(
            *(
                rollout_group(tasks.prompt("train", i), generators.begin, verifiers.score, FakeCodec(), settings, "s")
                for i in range(PROMPTS)
            )
        )

    tracemalloc.start()
    began = time.perf_counter()
    groups = asyncio.run(asyncio.wait_for(everything(), 120))
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    trajectories = [t for group in groups for t in group.trajectories]
    assert [group.prompt.index for group in groups] == list(range(PROMPTS))
    assert len(trajectories) == PROMPTS * RESPONSES == 1000
    # noise never finishes: every conversation uses all its calls, and its own verdict ends it, on a response without an end
    assert {len(t.turns) for t in trajectories} == {6}
    verdicts = Counter((t.verdict.status, t.verdict.detail) for t in trajectories)
    assert verdicts == {(Status.TRUNCATED, "max_calls = 6 calls and no finish()"): 1000}
    asked = Counter(name for m in members for event in m.engine.events if event[0] == "submit" for name in event[1])
    assert len(asked) == 6000 and set(asked.values()) == {1}
    assert not events
    assert not any(member.sessions for member in verifier_members)
    assert peak < PEAK_MB * 2**20, f"{peak / 2**20:.0f} MB"
    print(
        f"1,000 conversations of 6 turns in {seconds:.1f} s: {6000 / seconds:.0f} turns/s, peak {peak / 2**20:.0f} MB"
    )
