"""The composite reward: what is added up, what is left alone, and what a term that fails costs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import make_prompt
from support.fakes import FakeCodec, beginning, fake_response

from actors.inference import Completion, Request
from actors.rewards.composite import (
    FinishedTrajectory,
    RewardFunction,
    Term,
    TermFailed,
    format_request,
    last_response,
    length_term,
    overlong_term,
    scored_term,
)
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import LengthSettings, OverlongSettings, SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Group, Message, Observation, Prompt, Status, Trajectory, Turn, Verdict

CONVERSATION = (Message("user", "task 0"), Message("assistant", "7"))


def finished(*tokens: int, verdict: Verdict | None = None, max_tokens: int = 10) -> FinishedTrajectory:
    """Returns a finished trajectory with responses of so many tokens."""
    turns = tuple(Turn((1,), (2,) * n, (0.0,) * n, "stop", 0, 0) for n in tokens or (1,))
    own = Verdict(1.0, True, "s") if verdict is None else verdict
    trajectory = Trajectory(make_prompt(), turns, tuple("7" for _ in turns), own)
    return FinishedTrajectory("it 1/0:toy/train/0/3", trajectory, CONVERSATION, max_tokens)


def term(name: str, weight: float, value: float | str) -> Term:
    async def given_value(_: FinishedTrajectory) -> float:
        await asyncio.sleep(0)
        if isinstance(value, str):
            raise TermFailed(value)
        return value

    return Term(name, weight, given_value)


def earned(reward_function: RewardFunction, one: FinishedTrajectory) -> Verdict:
    return asyncio.run(asyncio.wait_for(reward_function(one), 10))


# --- the sum ------------------------------------------------------------------------------------------------------------


@given(st.floats(-3, 3), st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), max_size=4), st.floats(-2, 2))
def test_a_reward_is_the_weighted_sum_of_its_terms(
    verdict_weight: float, pairs: list[tuple[float, float]], reward: float
) -> None:
    reward_function = RewardFunction(verdict_weight, [term(f"t{i}", w, v) for i, (w, v) in enumerate(pairs)])
    total = earned(reward_function, finished(verdict=Verdict(reward, True, "s")))
    assert total.reward == pytest.approx(verdict_weight * reward + sum(w * v for w, v in pairs), abs=1e-9)
    assert total.terms == {"verdict": reward} | {f"t{i}": v for i, (_, v) in enumerate(pairs)}
    assert (total.correct, total.solution, total.status) == (True, "s", Status.OK)


@pytest.mark.parametrize("status", [Status.TURNS, Status.TOKENS, Status.SECONDS, Status.TRUNCATED])
def test_a_response_that_a_limit_ended_has_its_terms_and_keeps_its_status(status: Status) -> None:
    total = earned(
        RewardFunction(1.0, [term("t", 2.0, -0.5)]), finished(verdict=Verdict(0.0, status=status, detail="d"))
    )
    assert total == Verdict(-1.0, status=status, detail="d", terms={"verdict": 0.0, "t": -0.5})


@pytest.mark.parametrize("status", [Status.ERROR, Status.TIMEOUT])
def test_what_the_environment_could_not_score_no_term_scores(status: Status) -> None:
    asked: list[FinishedTrajectory] = []

    async def value(one: FinishedTrajectory) -> float:
        asked.append(one)
        return 1.0

    own = Verdict(0.0, status=status, detail="broken")
    assert earned(RewardFunction(1.0, [Term("t", 1.0, value)]), finished(verdict=own)) == own
    assert not asked


def test_a_term_that_fails_is_an_error_and_never_a_zero() -> None:
    reward_function = RewardFunction(
        1.0, [term("model", 1.0, "it died"), term("length", 1.0, -0.5), term("judge", 0.0, "no answer")]
    )
    total = earned(reward_function, finished())
    assert (total.status, total.reward) == (Status.ERROR, 0.0)
    assert not total.status.scored
    assert total.detail == "the reward has no model: it died; judge: no answer"
    assert total.terms == {"verdict": 1.0, "length": -0.5}
    assert (total.correct, total.solution) == (True, "s")  # the independent check goes on


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_a_failure(value: float) -> None:
    total = earned(RewardFunction(1.0, [term("model", 1.0, value)]), finished())
    assert total.status is Status.ERROR
    assert f"model: its value is {value}" in total.detail


def test_terms_are_asked_at_the_same_time() -> None:
    async def main() -> Verdict:
        both = asyncio.Barrier(2)

        async def value(_: FinishedTrajectory) -> float:
            await both.wait()  # for ever, if one waited for the other
            return 1.0

        return await RewardFunction(0.0, [Term("a", 1.0, value), Term("b", 1.0, value)])(finished())

    assert asyncio.run(asyncio.wait_for(main(), 10)).reward == 2.0


# --- length -------------------------------------------------------------------------------------------------------------


def value_of(one: Term, what: FinishedTrajectory) -> float:
    return earned(RewardFunction(0.0, [replace(one, weight=1.0)]), what).reward


def test_the_length_term_counts_all_responses_and_tells_correct_from_wrong() -> None:
    one = length_term(LengthSettings(weight=1.0, free=4, wrong=[-0.5, 0.5]))
    assert value_of(one, finished(3, 4)) == pytest.approx(-0.5)  # 7 tokens, half way from 4 to max_tokens
    assert value_of(one, finished(3)) == 0.0
    assert value_of(one, finished(6, 6)) == -1.0
    wrong = Verdict(0.0)
    assert value_of(one, finished(3, 4, verdict=wrong)) == pytest.approx(0.0)
    assert value_of(one, finished(9, 9, verdict=wrong)) == 0.5
    cosine = length_term(LengthSettings(weight=1.0, shape="cosine", full=20, wrong=[0.0, 0.0]))
    assert value_of(cosine, finished(5)) == pytest.approx(-(1 - math.sqrt(0.5)) / 2)


def test_overlong_shaping_looks_at_the_longest_response() -> None:
    one = overlong_term(OverlongSettings(weight=1.0, buffer=4))
    assert value_of(one, finished(6, 6)) == 0.0
    assert value_of(one, finished(6, 8, 2)) == pytest.approx(-0.5)
    assert value_of(one, finished(10)) == -1.0


# --- asking somebody ----------------------------------------------------------------------------------------------------


def test_who_scores_texts_is_shown_the_whole_conversation() -> None:
    received: list[ScoreRequest] = []

    async def score(request: ScoreRequest) -> Observation | Verdict:
        received.append(request)
        return Verdict(0.25)

    assert value_of(scored_term("judge", 1.0, score, last_response), finished()) == 0.25
    (request,) = received
    assert request.prompt.messages == CONVERSATION[:-1]
    assert request.responses == ("7",)
    assert request.prompt.task == make_prompt().task  # the reference may be among it


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (Verdict(0.0, status=Status.ERROR, detail="no member is left"), "judge: no member is left"),
        (Verdict(0.0, status=Status.TIMEOUT), "judge: timeout"),
        (Observation(()), "judge: it answered with an observation"),
    ],
)
def test_a_term_that_cannot_score_leaves_the_response_out(answer: Observation | Verdict, detail: str) -> None:
    async def score(_: ScoreRequest) -> Observation | Verdict:
        return answer

    total = earned(RewardFunction(1.0, [scored_term("judge", 1.0, score, last_response)]), finished())
    assert total.status is Status.ERROR
    assert detail in total.detail


def test_the_form_is_asked_of_the_verifiers_with_the_environments_own_pattern() -> None:
    one = finished(1, 1)
    prompt = replace(one.trajectory.prompt, environment=1)
    request = format_request(["a+", "b+"])(replace(one, trajectory=replace(one.trajectory, prompt=prompt)))
    assert (request.scorer, request.prompt.environment) == ("format", 1)
    assert request.session != finished().name  # the environment's own session has that name
    assert request.prompt.task == {"pattern": "b+", "responses": 2}
    assert request.responses == ("7", "7")


# --- within a rollout ---------------------------------------------------------------------------------------------------


def test_a_rollout_gives_the_reward_the_conversation_up_to_the_last_response() -> None:
    received: list[FinishedTrajectory] = []

    async def reward(one: FinishedTrajectory) -> Verdict:
        received.append(one)
        return replace(one.trajectory.verdict, reward=5.0)

    async def generate(requests: Sequence[Request]) -> list[Completion]:
        return [replace(fake_response(r, 0), finish="stop") for r in requests]

    async def score(request: ScoreRequest) -> Observation | Verdict:
        return Verdict(1.0, True) if len(request.responses) == turns else Observation((Message("tool", "go on"),))

    def group(most: int) -> Group:
        settings = RolloutSettings(SamplingSettings(max_tokens=5, max_turns=most), 2, 200, 1)
        prompt = Prompt("toy", "train", 7, (Message("user", "task"),), environment=1)
        parts = (prompt, beginning(generate), score, FakeCodec(), settings, "it 1")
        return asyncio.run(asyncio.wait_for(rollout_group(*parts, reward=reward), 10))

    turns = 2
    made = group(8)
    assert [t.verdict.reward for t in made.trajectories] == [5.0, 5.0]
    for one, trajectory in zip(received, made.trajectories, strict=True):
        first, second = trajectory.texts
        roles = [("user", "task"), ("assistant", first), ("tool", "go on"), ("assistant", second)]
        assert one.conversation == tuple(Message(role, text) for role, text in roles)  # type: ignore[arg-type]
        assert (one.trajectory.prompt, one.max_tokens, one.trajectory.turns) == (made.prompt, 5, trajectory.turns)
    assert len({one.name for one in received}) == 2

    turns, received[:] = 9, []
    made = group(1)  # a limit ends it: the tool's last message does not count
    assert [m.role for m in received[0].conversation] == ["user", "assistant"]
    assert made.trajectories[0].verdict == Verdict(5.0, status=Status.TURNS, detail="sampling.max_turns reached")
