"""Rollouts: what is masked, what is kept, when a trajectory ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.builders import make_prompt
from support.fakes import FakeCodec, beginning, fake_response

from actors.inference import Completion, Request, response_seed
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Group, Message, Observation, Prompt, Status, Verdict

SETTINGS = RolloutSettings(SamplingSettings(max_tokens=5), responses=3, max_model_len=200, seed=1)
PROMPT = make_prompt(7)


class Stage:
    """Generates with fake_response, scores with `turns` observations before a verdict, and records the requests."""

    def __init__(self, turns: int = 1, *, finish: str | None = "stop") -> None:
        self.turns, self.finish = turns, finish
        self.requests: list[Request] = []
        self.scored: list[ScoreRequest] = []
        self.now = 0.0  # seconds; a verdict takes one, whichever trajectory asked for it

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests += requests
        await asyncio.sleep(0)
        responses = [fake_response(r, version=4) for r in requests]
        return [replace(c, finish=self.finish) if self.finish else c for c in responses]  # type: ignore[arg-type]

    async def score(self, request: ScoreRequest) -> Observation | Verdict:
        self.scored.append(request)
        self.now += 1
        await asyncio.sleep(0)
        if len(request.responses) < self.turns:
            return Observation((Message("tool", f"seen {len(request.responses)}"),))
        return Verdict(1.0, True, solution="s")

    def group(self, prompt: Prompt = PROMPT, stamp: str = "iteration 3", environment: int = 0, **changes: Any) -> Group:
        limits = {key: value for key, value in changes.items() if key in SamplingSettings.model_fields}
        rest = {key: value for key, value in changes.items() if key not in limits}
        settings = replace(SETTINGS, sampling=SETTINGS.sampling.model_copy(update=limits), **rest)
        prompt = replace(prompt, environment=environment)
        parts = (prompt, beginning(self.generate), self.score, FakeCodec(), settings, stamp)
        return asyncio.run(asyncio.wait_for(rollout_group(*parts, clock=lambda: self.now), 10))


def test_one_turn_is_the_prompt_the_response_and_the_verdict() -> None:
    stage = Stage()
    group = stage.group()
    assert (group.prompt, len(group.trajectories)) == (PROMPT, 3)
    for request, trajectory in zip(stage.requests, group.trajectories, strict=True):
        (turn,) = trajectory.turns
        response = fake_response(request, 4)
        assert turn.context_ids == FakeCodec().render(PROMPT.messages) == request.prompt_ids
        assert (turn.response_ids, turn.logprobs, turn.finish) == (response.response_ids, response.logprobs, "stop")
        assert (turn.version_min, turn.version_max) == (4, 4)
        assert trajectory.verdict == Verdict(1.0, True, solution="s")
        assert trajectory.texts == (f"response {list(response.response_ids)}",)


def test_several_turns_keep_the_sampled_ids_and_mask_what_the_environment_said() -> None:
    stage = Stage(turns=3)
    group = stage.group()
    by_name = {r.id: r for r in stage.requests}
    for i, trajectory in enumerate(group.trajectories):
        assert len(trajectory.turns) == 3
        name = f"iteration 3/0:{PROMPT.key}/{i}"
        context: tuple[int, ...] = ()
        for k, turn in enumerate(trajectory.turns):
            request = by_name[f"{name}/turn{k}"]
            context += turn.context_ids
            # what goes to the engine is, id by id, what was sampled and rendered before: nothing is tokenised again
            assert request.prompt_ids == context
            assert turn.response_ids == fake_response(request, 4).response_ids
            if k:
                assert turn.context_ids == FakeCodec().render([Message("tool", f"seen {k}")])
            context += turn.response_ids
        assert trajectory.token_ids == context
        mask = [m for t in trajectory.turns for m in [False] * len(t.context_ids) + [True] * len(t.response_ids)]
        assert list(trajectory.action_mask) == mask
        sampled = [x for x, m in zip(trajectory.token_ids, trajectory.action_mask, strict=True) if m]
        assert sampled == [x for t in trajectory.turns for x in t.response_ids]
        assert [len(r.responses) for r in stage.scored if r.session == name] == [1, 2, 3]
        assert [r.responses for r in stage.scored if r.session == name][-1] == trajectory.texts


def test_sessions_and_requests_have_names_of_their_own() -> None:
    stage = Stage(turns=2)
    stage.group()
    stage.group(environment=1)  # an environment of the same name and prompts
    stage.group(stamp="iteration 4")
    assert len({r.id for r in stage.requests}) == len(stage.requests)
    assert len({(r.session, len(r.responses)) for r in stage.scored}) == len(stage.scored)
    assert len({r.seed for r in stage.requests}) == len(stage.requests)
    assert {r.prompt.environment for r in stage.scored} == {0, 1}


def test_the_same_position_in_a_run_gives_the_same_group_whatever_else_was_sampled() -> None:
    other = Stage(turns=2)
    other.group(make_prompt(1))
    assert other.group() == Stage(turns=2).group()
    assert Stage(turns=2).group(seed=2) != Stage(turns=2).group()
    assert Stage(turns=2).group(stamp="iteration 4") != Stage(turns=2).group()


def test_seeds_fit_an_engine_and_depend_on_every_part() -> None:
    seeds = [response_seed(s, name, turn) for s in range(5) for name in ("a", "b") for turn in range(5)]
    assert len(set(seeds)) == 50
    assert all(0 <= s < 2**63 for s in seeds)
    assert response_seed(0, "iteration 1/toy/train/0/0", 0) == 3670455289759533832  # a resumed run samples as before


def test_request_ids_and_seeds_are_those_of_earlier_versions() -> None:
    """A run that an earlier version began goes on with the same samples."""
    stage = Stage(turns=2)
    stage.group(environment=1, responses=2)
    assert [(r.id, r.seed) for r in stage.requests] == [
        ("iteration 3/1:toy/train/7/0/turn0", 1242787677750624438),
        ("iteration 3/1:toy/train/7/1/turn0", 769099393508401436),
        ("iteration 3/1:toy/train/7/0/turn1", 2465280448803679129),
        ("iteration 3/1:toy/train/7/1/turn1", 2156700497766237092),
    ]
    assert {r.session for r in stage.scored} == {f"iteration 3/1:toy/train/7/{i}" for i in range(2)}


def test_a_trajectory_stops_at_max_turns_without_a_verdict_of_its_own() -> None:
    stage = Stage(turns=9)
    for trajectory in stage.group(max_turns=2).trajectories:
        assert len(trajectory.turns) == 2
        verdict = trajectory.verdict
        assert (verdict.reward, verdict.correct, verdict.status) == (0.0, False, Status.TURNS)
        assert verdict.detail == "sampling.max_turns reached"
    assert Stage(turns=2).group(max_turns=2).trajectories[0].verdict.status is Status.OK


def test_a_trajectory_stops_when_the_model_has_no_room_left() -> None:
    prompt = len(FakeCodec().render(PROMPT.messages))
    observation = len(FakeCodec().render([Message("tool", "seen 1")]))
    full = prompt + 5 + observation
    stage = Stage(turns=9)
    (trajectory,) = stage.group(max_model_len=full, responses=1).trajectories
    assert (len(trajectory.turns), trajectory.verdict.status) == (1, Status.TOKENS)
    assert trajectory.verdict.detail == "generators.max_model_len reached"
    stage = Stage(turns=9)
    (trajectory,) = stage.group(max_model_len=full + 2, responses=1).trajectories
    assert [r.sampling.max_tokens for r in stage.requests] == [5, 2]  # the last response gets what is left
    assert all(len(r.prompt_ids) + r.sampling.max_tokens <= full + 2 for r in stage.requests)


def test_the_responses_of_a_trajectory_share_a_limit_on_tokens() -> None:
    stage = Stage(turns=9)
    (trajectory,) = stage.group(max_total_tokens=12, responses=1).trajectories
    assert [r.sampling.max_tokens for r in stage.requests] == [5, 5, 2]  # the last response gets what is left
    assert trajectory.response_tokens == 12
    assert trajectory.verdict == Verdict(0.0, status=Status.TOKENS, detail="sampling.max_total_tokens reached")
    # a verdict on the response that spends the last token stands
    assert Stage(turns=3).group(max_total_tokens=15).trajectories[0].verdict.status is Status.OK


def test_a_trajectory_stops_when_its_time_is_over() -> None:
    stage = Stage(turns=9)
    (trajectory,) = stage.group(max_seconds=3.0, responses=1).trajectories
    assert len(trajectory.turns) == 3
    assert trajectory.verdict == Verdict(0.0, status=Status.SECONDS, detail="sampling.max_seconds reached")
    assert len(Stage(turns=9).group(max_seconds=3.5, responses=1).trajectories[0].turns) == 4
    assert Stage(turns=3).group(max_seconds=3.0, responses=1).trajectories[0].verdict.status is Status.OK


def test_what_a_request_waits_for_its_engine_is_not_of_a_trajectorys_time() -> None:
    """With batch.ahead there are more requests than an engine has places; once their waiting ended trajectories."""

    class Crowded(Stage):
        async def generate(self, requests: Sequence[Request]) -> list[Completion]:
            self.now += 100.0
            return [replace(c, seconds=2.0) for c in await super().generate(requests)]

    assert Crowded(turns=3).group(max_seconds=9.0, responses=1).trajectories[0].verdict.status is Status.OK
    # Two seconds of its response and one of its verdict, each turn.
    (trajectory,) = Crowded(turns=9).group(max_seconds=9.0, responses=1).trajectories
    assert (len(trajectory.turns), trajectory.verdict.status) == (3, Status.SECONDS)
    assert len(Crowded(turns=9).group(max_seconds=9.5, responses=1).trajectories[0].turns) == 4


def test_each_turn_keeps_the_policy_versions_that_sampled_it() -> None:
    class Updated(Stage):
        async def generate(self, requests: Sequence[Request]) -> list[Completion]:
            done = await super().generate(requests)
            turn = len(self.requests) - 1
            return [replace(c, version_min=turn, version_max=turn + 1) for c in done]

    (trajectory,) = Updated(turns=3).group(responses=1).trajectories
    assert [(t.version_min, t.version_max) for t in trajectory.turns] == [(0, 1), (1, 2), (2, 3)]


def test_a_prompt_that_leaves_no_room_is_one_sentence() -> None:
    size = len(FakeCodec().render(PROMPT.messages))
    with pytest.raises(
        ValueError, match=rf"{size} tokens of context leave no room .* generators\.max_model_len = {size}"
    ):
        Stage().group(max_model_len=size)


def test_what_follows_a_text_that_ends_the_response_is_not_scored() -> None:
    stage = Stage()
    group = stage.group(stop=["3, ", "]"])
    assert {request.sampling.stop for request in stage.requests} == {("3, ", "]")}
    for trajectory, scored in zip(group.trajectories, stage.scored, strict=True):
        whole = f"response {list(trajectory.turns[0].response_ids)}"
        assert trajectory.texts == scored.responses == (whole.partition("3, ")[0].partition("]")[0],)


def test_a_response_cut_by_the_models_length_is_counted_as_cut() -> None:
    """As the engine ends it: the request asks for what room there is, which is less than sampling.max_tokens."""
    room = SETTINGS.max_model_len - len(FakeCodec().render(PROMPT.messages))
    stage = Stage(finish="length")
    group = stage.group(max_tokens=room + 50)
    assert {request.sampling.max_tokens for request in stage.requests} == {room}
    assert {t.verdict.status for t in group.trajectories} == {Status.TRUNCATED}


def test_a_response_cut_at_max_tokens_keeps_its_reward_and_says_so() -> None:
    for trajectory in Stage(finish="length").group().trajectories:
        assert trajectory.verdict == Verdict(1.0, True, solution="s", status=Status.TRUNCATED)
    assert all(t.verdict.status is Status.OK for t in Stage(finish="stop").group().trajectories)


def test_an_error_of_the_environment_is_not_renamed_by_a_cut_response() -> None:
    class Failing(Stage):
        async def score(self, request: ScoreRequest) -> Verdict:
            return Verdict(0.0, status=Status.ERROR, detail="boom")

    verdicts = {t.verdict for t in Failing(finish="length").group().trajectories}
    assert verdicts == {Verdict(0.0, status=Status.ERROR, detail="boom")}


def test_the_responses_of_a_group_are_asked_for_at_once() -> None:
    calls: list[int] = []

    class Counting(Stage):
        async def generate(self, requests: Sequence[Request]) -> list[Completion]:
            calls.append(len(requests))
            return await super().generate(requests)

    Counting(turns=2).group()
    assert calls == [3, 1, 1, 1]


def test_a_turn_keeps_what_its_observation_was_worth() -> None:
    class Paying(Stage):
        async def score(self, request: ScoreRequest) -> Observation | Verdict:
            answer = await super().score(request)
            return replace(answer, reward=len(request.responses) / 4) if isinstance(answer, Observation) else answer

    for trajectory in Paying(turns=3).group().trajectories:
        assert [turn.reward for turn in trajectory.turns] == [0.25, 0.5, 0.0]
        assert trajectory.verdict.reward == 1.0
    for trajectory in Paying(turns=9).group(max_turns=2).trajectories:  # a limit takes back nothing that was earned
        assert [turn.reward for turn in trajectory.turns] == [0.25, 0.5]
        assert trajectory.verdict.reward == 0.0
