"""The verifier with its real subprocess: whatever an environment does costs its own trajectory a verdict, and nothing else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.misbehaving import Misbehaving

from actors import verifier_worker
from actors.verifier import EnvSpec, ScoreRequest, Verifier
from envs.isolation.killable import KillableError
from envs.types import Message, Observation, Prompt, Status, Verdict

ONE = EnvSpec("support.misbehaving:Misbehaving", {}, 5)
MANY = EnvSpec("support.misbehaving:Misbehaving", {"turns": 3}, 6)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    made = Verifier([ONE, MANY], timeout_s=0.7)
    yield made
    made.close()


def ask(session: str, *responses: str, environment: int = 0) -> ScoreRequest:
    prompt = Misbehaving(5 + environment).prompt("train", 3)
    return ScoreRequest(session, replace(prompt, environment=environment), responses)


def observation(opens: int, text: str) -> Observation:
    return Observation((Message("tool", f"opens={opens} seen={text}"),))


def test_verdicts_come_in_the_order_of_the_requests(verifier: Verifier) -> None:
    answers = verifier.score([ask("o1", "a"), ask("o2", "b"), ask("o3", "c")])
    assert answers == [Verdict(1, True, solution=f"[3, 5] {x}") for x in "abc"]
    assert all(isinstance(a, Verdict) and isinstance(a.status, Status) for a in answers)


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ("raise", "RuntimeError: the task is broken"),
        ("nan", "the reward is nan: it has to be a finite number"),
        ("inf", "the reward is inf: it has to be a finite number"),
        ("unpaid", "the reward is nan: it has to be a finite number"),
        ("text", "the reward is '1.0'"),
        ("none", "the reward is None"),
        ("nonsense", "a session answered with float: it has to be an Observation or a Verdict"),
        ("die", "the subprocess died with exit code 7"),
    ],
)
def test_an_environment_that_misbehaves_costs_its_own_trajectory(
    verifier: Verifier, response: str, detail: str
) -> None:
    bad, good = verifier.score([ask(f"bad-{response}", response), ask(f"good-{response}", "fine")])
    assert isinstance(bad, Verdict)
    assert (bad.status, bad.reward, bad.correct) == (Status.ERROR, 0.0, False)
    assert detail in bad.detail
    assert good == Verdict(1, True, solution="[3, 5] fine")


def test_an_error_says_where_in_the_environment_it_was_raised(verifier: Verifier) -> None:
    (bad,) = verifier.score([ask("where", "raise")])
    assert isinstance(bad, Verdict)
    line, *frames = bad.detail.splitlines()
    assert re.fullmatch(r"misbehaving\.py, line \d+: RuntimeError: the task is broken", line)
    assert "misbehaving.py" in frames[0] and 'raise RuntimeError("the task is broken")' in frames[1]
    assert "verifier_worker" not in bad.detail and len(bad.detail) <= 1500


def test_what_an_observation_is_worth_comes_with_it(verifier: Verifier) -> None:
    assert verifier.score([ask("w1", "half"), ask("w2", "fine")]) == [
        Observation((), 0.5),
        Verdict(1, True, solution="[3, 5] fine"),
    ]


def test_one_that_hangs_is_killed_in_time_and_the_others_go_on(verifier: Verifier) -> None:
    began = time.monotonic()
    hung, good = verifier.score([ask("h1", "hang"), ask("h2", "fine")])
    assert time.monotonic() - began < 20  # it would have slept for a minute
    assert hung == Verdict(0.0, status=Status.TIMEOUT, detail="no verdict within verifiers.timeout_s = 0.7 s")
    assert good == Verdict(1, True, solution="[3, 5] fine")


def test_a_session_goes_on_where_it_was_and_is_replayed_after_a_kill(verifier: Verifier) -> None:
    verifier.close()  # a fresh process: nothing was opened in it
    assert verifier.score([ask("m1", "a", environment=1)]) == [observation(1, "a")]
    assert verifier.score([ask("m1", "a", "b", environment=1)]) == [observation(1, "a,b")]  # not opened again
    (hung,) = verifier.score([ask("h3", "hang")])
    assert isinstance(hung, Verdict)
    assert hung.status is Status.TIMEOUT
    assert verifier.score([ask("m2", "x", environment=1)]) == [observation(1, "x")]  # the kill took all sessions
    expected = [Verdict(3, True, solution="[3, 6] a,b,c")]
    assert verifier.score([ask("m1", "a", "b", "c", environment=1)]) == expected
    assert verifier.score([ask("m2", "x", "y", environment=1)]) == [
        observation(2, "x,y")
    ]  # m2 lived on; m1 was opened anew


def test_another_verifier_takes_a_session_over_by_replaying_it(verifier: Verifier) -> None:
    other = Verifier([ONE, MANY], timeout_s=5)
    try:
        assert verifier.score([ask("t", "a", environment=1)])[0] != Verdict(0.0)
        assert other.score([ask("t", "a", "b", environment=1)]) == [observation(1, "a,b")]
    finally:
        other.close()


def test_a_turn_that_is_asked_for_again_is_replayed_rather_than_skipped(verifier: Verifier) -> None:
    """A pool asks twice when an answer was lost on its way."""
    for responses in (("a",), ("a",), ("a", "b"), ("a", "b"), ("a",)):
        (answer,) = verifier.score([ask("again", *responses, environment=1)])
        assert isinstance(answer, Observation)
        assert answer.messages[0].content.endswith(f"seen={','.join(responses)}")


def test_a_session_that_raised_is_not_kept(verifier: Verifier) -> None:
    verifier.score([ask("r", "a", environment=1)])
    (failed,) = verifier.score([ask("r", "a", "raise", environment=1)])
    assert isinstance(failed, Verdict)
    assert failed.status is Status.ERROR
    (again,) = verifier.score([ask("r", "a", "b", environment=1)])
    assert isinstance(again, Observation)
    assert again.messages[0].content.endswith("seen=a,b")


def test_an_environment_that_cannot_be_built_is_an_error_verdict_with_the_reason() -> None:
    made = Verifier([replace(ONE, params={"turn": 2})], timeout_s=5)
    try:
        for _ in range(2):
            (verdict,) = made.score([ask("x", "a")])
            assert isinstance(verdict, Verdict)
            assert verdict.status is Status.ERROR
            assert "no parameter 'turn': did you mean 'turns'" in verdict.detail
    finally:
        made.close()


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Returns the subprocess's own `answers` for one request, in this process and with room for two sessions."""
    monkeypatch.setattr(verifier_worker, "MAX_SESSIONS", 2)
    monkeypatch.setattr(verifier_worker, "_sessions", {})
    monkeypatch.setattr(verifier_worker, "_environments", [])
    verifier_worker.configure([asdict(MANY)])

    def answered(session: str, *responses: str, ended: tuple[str, ...] = ()) -> dict[str, Any]:
        prompt = Prompt("e", "train", 0, (), {"secret": 1})
        return verifier_worker.answers([asdict(ScoreRequest(session, prompt, responses, ended=ended))])[0]

    return answered


def test_the_oldest_session_makes_room_and_is_replayed_if_asked_for(worker: Callable[..., dict[str, Any]]) -> None:
    def answer(session: str, *responses: str) -> str:
        return worker(session, *responses)["observation"][0]["content"]

    for name in "abc":
        answer(name, "1")
    assert list(verifier_worker._sessions) == ["b", "c"]
    assert answer("c", "1", "2") == "opens=3 seen=1,2"
    assert answer("a", "1", "2") == "opens=4 seen=1,2"


def test_a_session_is_closed_once_nobody_asks_it_again(worker: Callable[..., dict[str, Any]]) -> None:
    kept: Any = verifier_worker._sessions

    def opened(name: str) -> Any:
        worker(name, "1")
        return kept[name][0]

    ended, waiting = opened("ended"), opened("waiting")
    worker("waiting", "1", "2", ended=("ended", "never there"))
    assert ended.closed and not waiting.closed and list(kept) == ["waiting"]
    assert worker("waiting", "1", "2", "3")["verdict"]["reward"] == 3
    assert waiting.closed and not kept
    failed = opened("failed")
    assert "error" in worker("failed", "1", "raise")
    assert failed.closed and not kept
    replayed = opened("replayed")
    worker("replayed", "1")
    assert replayed.closed and not kept["replayed"][0].closed
    oldest, _ = kept["replayed"][0], opened("second")
    opened("third")
    assert oldest.closed and list(kept) == ["second", "third"]
    last = kept["third"][0]
    verifier_worker.configure([asdict(MANY)])
    assert last.closed and not kept


def test_a_request_may_name_a_scorer_beside_the_environments(verifier: Verifier) -> None:
    """The scorer is found whatever the number of the prompt's environment."""
    prompt = Prompt("e", "train", 0, (), {"pattern": "a+", "responses": 2}, environment=7)
    first, second = (ScoreRequest("x/form", prompt, ("aa", "b")[:n], scorer="format") for n in (1, 2))
    assert verifier.score([first]) == [Observation(())]
    assert verifier.score([second]) == [Verdict(0.5)]
    (unknown,) = verifier.score([ScoreRequest("y", prompt, ("aa",), scorer="no such scorer")])
    assert unknown.status is Status.ERROR  # type: ignore[union-attr]


OWN = """
from envs.types import Verdict
class Mine:
    def __init__(self, seed): ...
    def size(self, split): ...
    def prompt(self, split, index): ...
    def open(self, prompt): return self
    def reply(self, text): return Verdict(0.25)
"""


def test_a_users_module_is_found_where_the_spec_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "games").mkdir()
    (tmp_path / "games" / "users_own_game.py").write_text(OWN)
    prompt = Prompt("mine", "train", 0, ())
    monkeypatch.chdir(tmp_path)  # "games" is relative to the process that scores
    for search_path in ((str(tmp_path / "games"),), ("games",)):
        made = Verifier([EnvSpec("users_own_game:Mine", {}, 0, search_path)], timeout_s=5)
        made.prepare()
        assert made.score([ScoreRequest("a", prompt, ("x",))]) == [Verdict(0.25)]
        made.close()
    lost = Verifier([EnvSpec("users_own_game:Mine", {}, 0)], timeout_s=5)
    with pytest.raises(KillableError, match="no module 'users_own_game' on the Python path"):
        lost.prepare()
    lost.close()
