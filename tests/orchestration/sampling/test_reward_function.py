"""`rewards` in a recipe: what the terms become, their place in the metrics, and a function of the user's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from support.builders import config_data, make_group
from support.reward_terms import judge, model

from actors.rewards.composite import FinishedTrajectory, RewardFunction
from actors.verifier import ScoreRequest
from envs import catalog
from envs.types import Group, Message, Observation, Status, Verdict
from orchestration.config.preflight import run_preflight
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import ConfigError
from orchestration.sampling.reward_function import make_reward_function
from orchestration.telemetry.keys import lookup
from orchestration.telemetry.rollout_metrics import describe

# --- what terms become --------------------------------------------------------------------------------------------------


class Asked:
    """Answers all requests of terms with one reward each, and records them."""

    def __init__(self) -> None:
        self.verify_requests: list[ScoreRequest] = []

    async def verify(self, request: ScoreRequest) -> Observation | Verdict:
        self.verify_requests.append(request)
        return Verdict(0.5)

    async def model(self, request: ScoreRequest) -> Observation | Verdict:
        return Verdict(3.0)

    async def score(self, request: ScoreRequest) -> Observation | Verdict:
        return Verdict(0.25)


def composed(config: RunConfig, asked: Asked, events: list[str] | None = None) -> RewardFunction | None:
    environments = [catalog.load(e.name, e.params) for e in config.all_environments]
    on_event = (events if events is not None else []).append
    return make_reward_function(
        config, environments, verify=asked.verify, model=asked.model, judge=asked.score, on_event=on_event
    )


def finished(tokens: int = 12, environment: int = 0) -> FinishedTrajectory:
    (trajectory,) = make_group([1.0]).trajectories
    prompt = replace(trajectory.prompt, environment=environment)
    turn = replace(trajectory.turns[0], response_ids=(1,) * tokens, logprobs=(0.0,) * tokens)
    conversation = (Message("user", "a"), Message("assistant", "text"))
    return FinishedTrajectory("it 1/0", replace(trajectory, prompt=prompt, turns=(turn,)), conversation, 16)


def test_without_terms_there_is_nothing_to_compose() -> None:
    assert composed(validate(config_data()), Asked()) is None
    assert composed(validate(config_data(rewards={"verdict": 0.5})), Asked()) is not None


def test_every_term_of_a_recipe_comes_with_its_weight() -> None:
    rewards = {
        "verdict": 2.0,
        "length": {"weight": 0.1, "free": 8},
        "format": {"weight": 10.0},
        "overlong": {"weight": 0.3, "buffer": 8},
        **model(weight=-1.0),
        **judge(weight=4.0),
    }
    asked = Asked()
    made = composed(validate(config_data(rewards=rewards)), asked)
    assert made is not None
    verdict = asyncio.run(made(finished(tokens=12)))
    assert verdict.terms == {
        "verdict": 1.0,
        "length": -0.5,
        "format": 0.5,
        "overlong": -0.5,
        "model": 3.0,
        "judge": 0.25,
    }
    assert verdict.reward == pytest.approx(2.0 - 0.05 + 5.0 - 0.15 - 3.0 + 1.0)
    asyncio.run(made(finished(environment=1)))
    # not the environment's own session; the pattern is that of the response's own environment
    assert [(r.scorer, r.prompt.environment) for r in asked.verify_requests] == [("format", 0), ("format", 1)]
    countdown, arithmetic = (r.prompt.task["pattern"] for r in asked.verify_requests)
    assert (countdown, arithmetic) == (catalog.load("countdown", {}).form, "-?[0-9]+")  # type: ignore[attr-defined]


def test_a_pattern_of_the_recipe_goes_before_the_environments() -> None:
    asked = Asked()
    made = composed(validate(config_data(rewards={"format": {"weight": 1, "pattern": "x+"}})), asked)
    assert made is not None
    asyncio.run(made(finished()))
    assert asked.verify_requests[0].prompt.task["pattern"] == "x+"


def test_the_first_failure_of_a_term_is_said_once() -> None:
    events: list[str] = []
    asked = Asked()

    async def broken(request: ScoreRequest) -> Observation | Verdict:
        return Verdict(0.0, status=Status.ERROR, detail="no member is left")

    asked.model = broken  # type: ignore[method-assign]
    made = composed(validate(config_data(rewards=model())), asked, events)
    assert made is not None
    for _ in range(3):
        assert asyncio.run(made(finished())).status is Status.ERROR
    assert events == [
        "rewards.model failed, and such responses are left out and counted in status/error: no member is left"
    ]


# --- metrics ------------------------------------------------------------------------------------------------------------


def group_with(env: str, *terms: dict[str, float]) -> Group:
    made = make_group([1.0] * len(terms))
    prompt = replace(made.prompt, env=env)
    trajectories = [
        replace(t, prompt=prompt, verdict=replace(t.verdict, terms=x))
        for t, x in zip(made.trajectories, terms, strict=True)
    ]
    return Group(prompt, tuple(trajectories))


def test_every_terms_mean_is_in_the_metrics_over_the_responses_that_have_it() -> None:
    one = group_with("a", {"verdict": 1.0, "judge": 0.5}, {"verdict": 0.0, "judge": 0.7})
    other = group_with("gym/b", {"verdict": 0.0}, {"verdict": 0.0, "judge": 0.0})
    row = describe([one, other])
    assert {k: v for k, v in row.items() if k.startswith("term/")} == pytest.approx(
        {
            "term/verdict": 0.25,
            "term/judge": 0.4,  # the judge failed on one, which is no 0
            "term/verdict/a": 0.5,
            "term/judge/a": 0.6,
            "term/verdict/gym/b": 0.0,
            "term/judge/gym/b": 0.0,
        }
    )
    assert lookup("term/judge") == ("term/{term}", {"term": "judge"})
    assert lookup("term/judge/gym/b") == ("term/{term}/{env}", {"term": "judge", "env": "gym/b"})


def test_without_terms_there_are_none() -> None:
    group = make_group([1.0, 0.0])
    assert not any(key.startswith("term/") for key in describe([group]))


def test_what_could_not_be_scored_is_no_reward_of_0() -> None:
    group = make_group([1.0, 0.5, 0.0])
    lost = replace(group.trajectories[2], verdict=replace(group.trajectories[2].verdict, status=Status.ERROR))
    trajectories = (*group.trajectories[:2], lost)
    row = describe([Group(group.prompt, trajectories)])
    assert (row["reward/mean"], row["reward/std"], row[f"reward/{group.prompt.env}"]) == (0.75, 0.25, 0.75)
    assert row["status/error"] == pytest.approx(1 / 3)
    row = describe([Group(group.prompt, (lost,))])
    assert (row["reward/mean"], row["reward/std"]) == (0.0, 0.0)


# --- a function of the user's -------------------------------------------------------------------------------------------


def test_a_function_counts_in_place_of_the_verdict_unless_that_is_given() -> None:
    short = validate(config_data(rewards={"function": "my.py:score"})).rewards
    assert (short.verdict, list(short.terms)) == (0.0, ["function"])
    assert short.function is not None and (short.function.path, short.function.weight) == ("my.py:score", 1.0)
    both = validate(config_data(rewards={"function": {"path": "my.py:score", "weight": 0.5}, "verdict": 2.0})).rewards
    assert both.verdict == 2.0
    again = validate(config_data(rewards=both.model_dump(mode="json", exclude_none=True))).rewards
    assert again == both  # as a run's config.yaml has it


def test_a_function_is_asked_on_the_verifiers_about_the_last_response(tmp_path: Path) -> None:
    config = validate(config_data(rewards={"function": {"path": "my.py:score", "reference": "target"}}))
    asked: list[ScoreRequest] = []

    async def verify(request: ScoreRequest) -> Verdict:
        asked.append(request)
        return Verdict(2.5)

    environments = [catalog.load(e.name, e.params) for e in config.all_environments]
    reward = make_reward_function(
        config, environments, verify=verify, model=verify, judge=None, on_event=lambda text: None
    )
    assert reward is not None
    ended = finished()
    verdict = asyncio.run(reward(ended))  # type: ignore[arg-type]
    own = ended.trajectory.verdict
    assert (verdict.reward, verdict.correct, verdict.terms["function"]) == (2.5, own.correct, 2.5)
    (request,) = asked
    assert (request.scorer, request.responses) == ("function", (ended.conversation[-1].content,))
    assert request.prompt.messages == ended.conversation[:-1]
    assert request.prompt.task["task"] == dict(ended.trajectory.prompt.task)
    assert request.prompt.task["reference"] == "target"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def score(response):\n    return 1.0", "takes response: it should have TRL's parameters"),
        ("def score(solution_str, ground_truth):\n    return 1.0", "its task has numbers, target"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("", "has no class 'score'"),
    ],
)
def test_a_function_that_cannot_be_used_is_found_before_anything_starts(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"own_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.setattr(catalog, "_folders", [str(tmp_path)])
    data = config_data(rewards={"function": f"{module}.py:score"})
    with pytest.raises(ConfigError) as raised:
        run_preflight(validate(data))
    assert words in str(raised.value) and str(raised.value).startswith("rewards.function")
