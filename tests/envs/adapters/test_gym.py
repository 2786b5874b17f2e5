"""Tests text environments of other libraries: their signatures, replays, and faults of every kind.

test_every_environment.py asks for demonstrations, which nobody has for any such object; the rest of it is asked here.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import text_games

import envs
from actors.verifier import EnvSpec, ScoreRequest, Verifier
from envs import catalog
from envs.adapters.gym.environment import Gym
from envs.base import play
from envs.types import Observation, Prompt, Split, Status, Verdict

SPLITS: tuple[Split, ...] = ("train", "eval")
CASES: dict[str, dict[str, Any]] = {
    "gem": {"make": "support.text_games:Gem", "params": {"top": 30}},
    "classic": {"make": "support.text_games:Classic", "reward": "sum", "success": 0.999, "split_by": "text"},
    "arena": {"make": "support.text_games:Arena"},
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


class Oracle:
    """Plays each game without a mistake from what it is shown."""

    def __init__(self, case: str, prompt: Prompt) -> None:
        self.case, self.text = case, prompt.messages[-1].content
        self.low, self.high, self.turn = 1, 30, -1

    def act(self, observation: Observation | None) -> str:
        self.turn += 1
        if self.case == "classic":
            return self.text.removeprefix("say ")[self.turn]
        if self.case == "arena":
            return self.text.rpartition("is ")[2][0]
        if observation is not None:
            hint, _, guess = observation.messages[0].content.partition(" than ")
            self.low, self.high = (int(guess) + 1, self.high) if hint == "higher" else (self.low, int(guess) - 1)
        return f"I say \\boxed{{{(self.low + self.high) // 2}}}."


class Noise:
    """Returns well-formed responses that ignore the game."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def act(self, _: Observation | None) -> str:
        return self.rng.choice([*"abcdefghij", "77", f"\\boxed{{{self.rng.randint(1, 99)}}}"])


def test_an_oracle_earns_full_reward_and_noise_next_to_nothing(case: str) -> None:
    tasks = Gym(seed=5, **CASES[case])
    won = 0
    for index in range(100):
        prompt = tasks.prompt(SPLITS[index % 2], index)
        verdict = play(tasks.open(prompt), Oracle(case, prompt).act).verdict
        assert verdict is not None and verdict.correct and verdict.solution
        assert verdict.reward == pytest.approx(1.0)
        lost = play(tasks.open(prompt), Noise(index).act).verdict
        assert lost is not None and lost.status is Status.OK
        won += lost.correct
    assert won <= 5, won


def test_prompts_are_the_same_in_every_process(case: str) -> None:
    code = (
        "import json, sys; sys.path.append(sys.argv[2]); from envs import catalog; random = __import__('random');"
        "e = catalog.load('gym', json.loads(sys.argv[1]), seed=5); random.seed(99);"
        "print(json.dumps([repr(e.prompt(s, i)) for s in ('train', 'eval') for i in (0, 1, 1000)]))"
    )
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, json.dumps(CASES[case]), tests]
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(envs.__file__).parents[1]
    ).stdout
    tasks = catalog.load("gym", CASES[case], seed=5)
    prompts = [tasks.prompt(s, i) for s in SPLITS for i in (0, 1, 1000)]
    assert json.loads(output) == [repr(prompt) for prompt in prompts]
    assert prompts == [tasks.prompt(s, i) for s in SPLITS for i in (0, 1, 1000)]
    assert len({prompt.task["seed"] for prompt in prompts}) == 6


def test_splits_by_text_share_no_task() -> None:
    tasks = Gym(**CASES["classic"])
    train, held = ({tasks.prompt(split, i).messages for i in range(150)} for split in SPLITS)
    assert train and held and not train & held
    with pytest.raises(ValueError, match=r"gave no first observation of the eval split.*use split_by=seed"):
        Gym(make="support.text_games:Faulty", split_by="text").prompt(
            "eval", 0
        )  # always says "go", which is a train text


def transcript(tasks: Gym, prompt: Prompt, responses: list[str]) -> list[Observation | Verdict]:
    session = tasks.open(prompt)
    return [session.reply(text) for text in responses]


@pytest.mark.parametrize("name", CASES)
def test_sessions_that_take_turns_do_not_hear_of_each_other(name: str) -> None:
    """Each alone, then all at once with games held by two only: evicted ones are replayed."""
    responses = {
        "gem": [f"\\boxed{{{n}}}" for n in (15, 8, 23, 4, 27)],
        "classic": ["a", "b", "c"],
        "arena": ["x", "y", "z", "5"],
    }[name]
    tasks, tight = Gym(seed=1, **CASES[name]), Gym(seed=1, open=2, **CASES[name])
    prompts = [tasks.prompt("train", i) for i in range(6)]
    alone = [transcript(tasks, prompt, responses) for prompt in prompts]
    assert len({repr(answers) for answers in alone}) > 1
    before = random.getstate()
    sessions = [tight.open(prompt) for prompt in prompts]
    mixed: list[list[Observation | Verdict]] = [[] for _ in sessions]
    for text in responses:
        for session, answers in zip(sessions, mixed, strict=True):
            answers.append(session.reply(text))
    assert mixed == alone
    assert len(tight._open) <= 2
    assert random.getstate() == before  # the process's own randomness was left alone


def test_a_verifier_that_lost_the_session_replays_it() -> None:
    tasks = Gym(seed=3, **CASES["gem"])
    prompt = tasks.prompt("train", 0)
    responses = ("\\boxed{31}", "\\boxed{0}", "\\boxed{31}")
    answers = transcript(tasks, prompt, list(responses))
    verifiers = [Verifier([EnvSpec("gym", CASES["gem"], 3)], timeout_s=20) for _ in range(2)]
    for turn in range(3):
        (answer,) = verifiers[turn % 2].score([ScoreRequest("a", prompt, responses[: turn + 1])])
        assert answer == answers[turn]
    for verifier in verifiers:
        verifier.close()


def test_games_are_closed_when_they_end_and_when_they_fail() -> None:
    text_games.CLOSED.clear()
    tasks = Gym(seed=3, **CASES["gem"])
    assert text_games.CLOSED == ["gem"]  # the constructor's trial
    session = tasks.open(tasks.prompt("train", 0))
    session.reply("\\boxed{31}")
    assert text_games.CLOSED == ["gem"] * 2  # the prompt's
    verdict = session.reply("nothing in a box")
    assert isinstance(verdict, Verdict) and verdict.reward == -0.1 and not verdict.correct
    assert text_games.CLOSED == ["gem"] * 3 and not tasks._open
    assert session.reply("again") is verdict
    failing = Gym(make="support.text_games:Faulty", params={"fault": "step"})
    text_games.CLOSED.clear()
    failing.open(failing.prompt("train", 0)).reply("x")
    assert text_games.CLOSED == ["faulty"] * 2


def test_last_and_sum_and_success() -> None:
    def scored(**more: Any) -> Verdict:
        tasks = Gym(**{**CASES["classic"], "params": {"letters": 2}, **more})
        prompt = tasks.prompt("train", 0)
        answer = transcript(tasks, prompt, ["x", prompt.messages[0].content[-1]])[-1]
        assert isinstance(answer, Verdict)
        return answer

    assert (scored().reward, scored().correct) == (0.5, False)
    assert scored(success=0.5).correct
    assert (scored(reward="last", success=0.25).reward, scored(params={"letters": 2}, reward="last").reward) == (
        0.5,
        0.5,
    )


def test_what_cuts_a_game_short_is_told_and_counts() -> None:
    tasks = Gym(make="support.text_games:Gem", params={"turns": 2})
    verdict = transcript(tasks, tasks.prompt("train", 0), ["\\boxed{99}", "\\boxed{99}"])[-1]
    assert verdict == Verdict(0.0, detail="cut short by the environment")


def test_an_action_may_be_the_answer_in_a_response() -> None:
    response = "Let me think.\n<answer>on</answer>"
    plain, extracting = (Gym(make="support.text_games:Faulty", action=action) for action in ("reply", "extract"))
    assert isinstance(plain.open(plain.prompt("train", 0)).reply(response), Verdict)
    answer = extracting.open(extracting.prompt("train", 0)).reply(response)
    assert isinstance(answer, Observation) and answer.messages[0].content == "on"


def test_a_long_observation_is_shortened_in_the_middle() -> None:
    tasks = Gym(make="support.text_games:Faulty", characters=10)
    assert tasks.shown("a" * 7 + "b" * 7) == "aaaaa\n[4 characters left out]\nbbbbb"
    assert tasks.shown("\ud800") == "?"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("step", r"text_games.py, line \d+: RuntimeError: the engine stopped"),
        ("three", r"step gave a tuple of 3, it must be \(text, reward, terminated"),
        ("array", "step gave a list as observation, it must be text"),
        ("nan", "the reward is nan"),
        ("seedless", "has to be determined by its seed"),
    ],
)
def test_what_it_does_wrong_is_an_error_of_its_trajectory(fault: str, words: str) -> None:
    tasks = Gym(make="support.text_games:Faulty", params={"fault": fault})
    verdict = tasks.open(tasks.prompt("train", 0)).reply("x")
    assert isinstance(verdict, Verdict) and verdict.status is Status.ERROR and verdict.reward == 0.0
    assert re.search(words, verdict.detail) and "\n" not in verdict.detail, verdict.detail


def test_a_close_that_fails_costs_no_verdict() -> None:
    tasks = Gym(make="support.text_games:Faulty")
    prompt = tasks.prompt("train", 0)
    tasks._params = {"fault": "close"}
    verdict = tasks.open(prompt).reply("x")
    assert verdict == Verdict(1.0, True, "x")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"make": "support.text_games:Nowhere"}, "has no class 'Nowhere'"),
        ({"make": "nowhere:make"}, "no module 'nowhere'"),
        ({"make": "support.text_games:Nothing"}, "makes is a Nothing and has no reset"),
        (
            {"make": "support.text_games:Gem", "params": {"bottom": 3}},
            "Gem cannot be used: .*unexpected keyword",
        ),
        (
            {"make": "support.text_games:Faulty", "params": {"fault": "made"}},
            "cannot be used: text_games.py, line .*KeyError: 'made'",
        ),
        (
            {"make": "support.text_games:Faulty", "params": {"fault": "reset"}},
            "cannot be used: text_games.py, line .*KeyError: 'reset'",
        ),
        (
            {"make": "support.text_games:Faulty", "params": {"fault": "pixels"}},
            "reset gave a list as observation, it must be text",
        ),
        ({"make": "support.text_games:Gem", "reward": "mean"}, "reward is 'mean', it must be last or sum"),
        ({"make": "support.text_games:Gem", "open": 0}, "open is 0, it must be above 0"),
        ({"make": "support.text_games:Gem", "success": float("nan")}, "success is nan"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        catalog.load("gym", params)
    assert "\n" not in str(caught.value)


def fuzzed(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.randrange(60)).decode("utf-16-le", "replace")
    if kind == 1:
        return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(40)))
    if kind == 2:
        return f"\\boxed{{{rng.choice(['', '²', '٣', '9' * 5000, '7', '{' * 500])}}}"
    return rng.choice(["", "\0", "\ud800", "a", "3", "1" * 30_000, "nan", "²"])


def test_no_response_makes_it_raise(case: str) -> None:
    """Bytes, code points of every plane, huge responses, boxes and digits: a fifth of what every environment is given."""
    tasks, rng = Gym(seed=2, **CASES[case]), random.Random(7)
    session, prompts = None, [tasks.prompt("train", i) for i in range(20)]
    for _ in range(2_000):
        session = session or tasks.open(rng.choice(prompts))
        response = fuzzed(rng)
        answer = session.reply(response)
        if isinstance(answer, Observation):
            json.dumps([m.content for m in answer.messages], ensure_ascii=False).encode("utf-8")
        else:
            assert answer.status is Status.OK, (response, answer)
            json.dumps([answer.solution, answer.detail], ensure_ascii=False).encode("utf-8")
            session = None


@pytest.mark.parametrize(("reward", "expected"), [("last", 1 / 3), ("sum", 0.0)])
def test_what_a_step_earned_is_for_credit_by_the_turn_unless_the_verdict_has_it(reward: str, expected: float) -> None:
    tasks = Gym(make="support.text_games:Classic", reward=reward)
    prompt = tasks.prompt("train", 0)
    letter = prompt.messages[-1].content[-3]  # the first of the three shown
    (answer,) = transcript(tasks, prompt, [letter])
    assert isinstance(answer, Observation)
    assert answer.reward == pytest.approx(expected)
