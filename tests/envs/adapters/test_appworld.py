"""Tests AppWorld over HTTP against a stand-in for its server (tests/support/appworld_stub.py says what it imitates).

test_every_environment.py asks for demonstrations, which AppWorld has none of; the rest of it is asked here.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.appworld_stub import Stub, serve, solution

from actors.verifier import EnvSpec, ScoreRequest, Verifier
from envs import catalog
from envs.adapters.appworld.environment import AppWorld, AppWorldSession
from envs.base import play
from envs.types import Observation, Prompt, Split, Status, Verdict

SPLITS: tuple[Split, ...] = ("train", "eval")
TRAIN, EVAL = [f"abc{i}_{v}" for i in range(20) for v in (1, 2, 3)], [f"abc{i}_1" for i in range(50, 60)]
LISTS: dict[str, Any] = {"train": TRAIN, "eval": EVAL}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("envs.adapters.appworld.environment.PAUSE_S", 0.01)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where verifiers, too, keep who owns a server
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as made:
        yield made


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    with serve() as one, serve() as two:
        yield [one, two]


def answers(session: AppWorldSession, responses: list[str]) -> list[Observation | Verdict]:
    return [session.reply(text) for text in responses]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_an_oracle_earns_full_reward_and_noise_nothing(stub: Stub) -> None:
    tasks = AppWorld(seed=5, urls=stub.url, **LISTS)
    for index in range(40):
        prompt = tasks.prompt(SPLITS[index % 2], index)
        responses = iter(solution(prompt.task["task_id"]))
        played = play(tasks.open(prompt), lambda _, responses=responses: next(responses))
        verdict = played.verdict
        assert verdict is not None and (verdict.reward, verdict.correct, verdict.status) == (1.0, True, Status.OK)
        assert verdict.detail == "3 of 3 tests passed" and verdict.solution and "notes.write" in verdict.solution
        assert "Keeps notes." in played.observations[0].messages[0].content
        assert played.observations[1].messages[0].content == "Execution successful."
        other = solution(tasks.prompt("train", index + 17).task["task_id"])
        lost = answers(tasks.open(prompt), other)[-1]
        assert isinstance(lost, Verdict) and (lost.reward, lost.correct, lost.solution) == (0.0, False, None)
        assert lost.detail.startswith("1 of 3 tests passed; failed: assert the note has the text.")
    assert stub.world is not None and stub.world.closed


def test_a_share_of_the_tests_is_rewarded_when_asked_and_turns_end_it(stub: Stub) -> None:
    tasks = AppWorld(urls=stub.url, reward="share", turns=2, **LISTS)
    prompt = tasks.prompt("train", 0)
    verdict = answers(tasks.open(prompt), solution(prompt.task["task_id"])[:2])[-1]
    assert isinstance(verdict, Verdict) and (verdict.reward, verdict.correct) == (pytest.approx(2 / 3), False)
    assert verdict.detail.startswith(
        "2 of 3 tests passed, not completed within 2 turns; failed: assert the task was completed."
    )


def test_the_prompt_has_the_task_the_person_and_where_the_docs_are(stub: Stub) -> None:
    tasks = AppWorld(urls=stub.url, **LISTS)
    text = tasks.prompt("eval", 0).messages[0].content
    for words in ("Write ", " into the note list50.", "Ada Bell", "ada@example.com", "5550100", "2023-05-18T12:00:00"):
        assert words in text
    assert "api_docs.show_api_doc" in text and "complete_task" in text and "{" not in text
    tasks.prompt("eval", 0)
    assert stub.calls == ["/tasks/abc50_1"]  # asked for once
    own = AppWorld(urls=stub.url, template="{instruction} For {email}.", **LISTS)
    assert own.prompt("eval", 0).messages[0].content.endswith("into the note list50. For ada@example.com.")


def test_prompts_are_reproducible_and_splits_apart(stub: Stub) -> None:
    one, same, other = (AppWorld(seed=seed, urls=stub.url, **LISTS) for seed in (1, 1, 2))
    order = [[tasks.prompt("train", i).task["task_id"] for i in range(60)] for tasks in (one, same, other)]
    assert order[0] == order[1] != order[2] and sorted(order[0]) == sorted(TRAIN)
    assert one.prompt("train", 60).messages == one.prompt("train", 0).messages
    assert [one.prompt("eval", i).task["task_id"] for i in range(10)] == EVAL and one.size("eval") == 10
    with pytest.raises(ValueError, match="1 tasks, abc3_1 first, are in both train and eval"):
        AppWorld(urls=stub.url, train=["abc3_1", "abc4_1"], eval=["abc3_1"])


def test_lists_are_appworlds_own(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "datasets"
    folder.mkdir(parents=True)
    for name, text in (
        ("train", "abc1_1\nabc1_2:tag\n\n"),
        ("dev", "abc2_1\n"),
        ("test_normal", "abc3_1\n"),
        ("none", ""),
    ):
        (folder / f"{name}.txt").write_text(text)
    tasks = AppWorld(urls=stub.url, root=str(tmp_path))
    assert (tasks.size("train"), tasks.size("eval")) == (2, 1)
    assert {tasks.prompt("train", i).task["task_id"] for i in range(2)} == {"abc1_1", "abc1_2"}
    monkeypatch.setenv("APPWORLD_ROOT", str(tmp_path))
    assert AppWorld(urls=stub.url, eval="test_normal").prompt("eval", 0).task["task_id"] == "abc3_1"
    with pytest.raises(
        ValueError, match=r"test_challenge.txt cannot be read: No such file.*; there are dev, none, test_normal"
    ):
        AppWorld(urls=stub.url, eval="test_challenge")
    with pytest.raises(ValueError, match=r"none.txt is empty"):
        AppWorld(urls=stub.url, eval="none")
    monkeypatch.delenv("APPWORLD_ROOT")
    with pytest.raises(ValueError, match="give the folder as root, or set APPWORLD_ROOT"):
        AppWorld(urls=stub.url)


def test_one_server_serves_many_tasks_one_after_the_other(stub: Stub) -> None:
    tasks = AppWorld(urls=stub.url, settings={"random_seed": 7}, **LISTS)
    for index in range(5):
        prompt = tasks.prompt("train", index)
        session = tasks.open(prompt)
        answers(session, solution(prompt.task["task_id"]))
        assert session.worlds_made == 1
    assert len(stub.begun) == 5
    assert stub.begun[0].arguments["random_seed"] == 7
    assert len({world.arguments["experiment_name"] for world in stub.begun}) == 1


def test_sessions_keep_their_servers_while_there_are_enough(stubs: list[Stub]) -> None:
    tasks = AppWorld(urls=[stub.url for stub in stubs], **LISTS)
    prompt = tasks.prompt("train", 0)  # the same task twice: only its owner tells the worlds apart
    first, second = tasks.open(prompt), tasks.open(prompt)
    responses = solution(prompt.task["task_id"])
    for text in responses[:2]:
        assert isinstance(first.reply(text), Observation) and isinstance(second.reply(text), Observation)
    assert (first.worlds_made, second.worlds_made) == (1, 1) and [len(stub.begun) for stub in stubs] == [1, 1]
    assert all(verdict.correct for s in (first, second) if isinstance(verdict := s.reply(responses[2]), Verdict))


def test_more_sessions_than_servers_take_turns_and_never_mix(stub: Stub) -> None:
    """Four trajectories of one task on one server: none sees what another wrote."""
    tasks = AppWorld(urls=stub.url, **LISTS)
    prompt = tasks.prompt("train", 0)
    sessions = [tasks.open(prompt) for _ in range(4)]
    for number, session in enumerate(sessions):
        session.reply(f"```python\nmine = {number}\nprint(mine)\n```")
    for number, session in enumerate(sessions):
        answer = session.reply("```python\nprint(mine, apis.notes.show(title='other'))\n```")
        assert isinstance(answer, Observation) and answer.messages[0].content == f"{number} no such note"
        session.reply("```python\napis.notes.write(title='other', text='x')\n```")
    assert [session.worlds_made for session in sessions] == [2, 2, 2, 2]
    assert [world.executed[0] for world in stub.begun[-4:]] == [f"mine = {n}\nprint(mine)" for n in range(4)]


def test_a_verifier_that_lost_the_session_replays_it(stub: Stub) -> None:
    """Two verifier processes take turns with one trajectory on one server, as after a restart."""
    params = {"urls": stub.url, **LISTS}
    prompt = AppWorld(seed=3, **params).prompt("train", 0)
    responses = tuple(solution(prompt.task["task_id"]))
    verifiers = [Verifier([EnvSpec("appworld", params, 3)], timeout_s=20) for _ in range(2)]
    answers = [verifiers[turn % 2].score([ScoreRequest("a", prompt, responses[: turn + 1])])[0] for turn in range(3)]
    for verifier in verifiers:
        verifier.close()
    assert [type(answer) for answer in answers] == [Observation, Observation, Verdict]
    assert isinstance(answers[2], Verdict) and answers[2].correct
    assert len(stub.begun) == 3  # each change of verifier a world of its own


@pytest.mark.parametrize("path", ["/initialize", "/execute", "/task_completed", "/evaluate", "/close"])
def test_a_connection_that_breaks_costs_a_world_and_no_verdict(stub: Stub, path: str) -> None:
    tasks = AppWorld(urls=stub.url, **LISTS)
    prompt = tasks.prompt("train", 0)
    session = tasks.open(prompt)
    responses = solution(prompt.task["task_id"])
    session.reply(responses[0])
    if path == "/initialize":
        stub.world = None  # the server was started anew as well
    stub.drop = path
    verdict = answers(session, responses[1:])[-1]
    assert isinstance(verdict, Verdict) and verdict.correct and not stub.drop
    last = stub.begun[-1].executed  # nothing ran twice in the world that was scored
    assert last == [text.rpartition("```python\n")[2].partition("\n```")[0] for text in responses]


def test_a_server_that_is_gone_is_replaced_by_another(stub: Stub) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    tasks = AppWorld(urls=[gone, stub.url], **LISTS)
    prompt = tasks.prompt("train", 0)
    verdict = answers(tasks.open(prompt), solution(prompt.task["task_id"]))[-1]
    assert isinstance(verdict, Verdict) and verdict.correct
    alone = AppWorld(urls=gone, **LISTS)
    lost = alone.open(prompt).reply("x")
    assert isinstance(lost, Verdict)
    assert lost.status is Status.ERROR and f"{gone} cannot be reached" in lost.detail
    with pytest.raises(ValueError, match=f"task .* cannot be loaded: {gone} cannot be reached"):
        alone.prompt("train", 0)


def test_a_server_that_does_not_answer_is_an_error_in_time(stub: Stub) -> None:
    tasks = AppWorld(urls=stub.url, timeout_s=0.2, **LISTS)
    prompt = tasks.prompt("train", 0)
    stub.seconds = 1.0
    verdict = tasks.open(prompt).reply("x")
    assert isinstance(verdict, Verdict) and verdict.status is Status.ERROR
    assert "/initialize gave no answer within 0.2 s" in verdict.detail


def hang(stubs: list[Stub]) -> tuple[AppWorld, Prompt]:
    """Returns tasks on two servers, the first of which has just made a session wait too long and still would."""
    tasks = AppWorld(urls=[stub.url for stub in stubs], **LISTS)
    prompt = tasks.prompt("train", 0)
    stubs[0].seconds, tasks.servers[0]._timeout_s = 1.0, 0.1  # the other one may be as slow as a busy machine is
    lost = tasks.open(prompt).reply("x")
    assert isinstance(lost, Verdict) and lost.status is Status.ERROR and stubs[0].url in lost.detail
    return tasks, prompt


def test_a_server_that_hung_comes_after_one_that_is_free(stubs: list[Stub]) -> None:
    tasks, prompt = hang(stubs)
    for _ in range(2):  # the second time, the one that hung has not been used for longest
        verdict = answers(tasks.open(prompt), solution(prompt.task["task_id"]))[-1]
        assert isinstance(verdict, Verdict) and verdict.correct, verdict


def test_a_server_that_hung_comes_after_one_that_others_use(stubs: list[Stub]) -> None:
    """The hung server comes last, even after one in use: sharing that one costs a replay, waiting for the hung one a trajectory."""
    tasks, prompt = hang(stubs)
    sessions = [tasks.open(prompt) for _ in range(3)]
    rounds = [[session.reply(text) for session in sessions] for text in solution(prompt.task["task_id"])]
    assert all(isinstance(verdict, Verdict) and verdict.correct for verdict in rounds[-1]), rounds[-1]
    assert sum(session.worlds_made for session in sessions) > 3


@pytest.mark.timeout(60)  # it would wait for this very process
def test_a_server_that_hung_is_used_again_where_there_is_no_other(stubs: list[Stub]) -> None:
    tasks, prompt = hang(stubs)
    stubs[0].seconds, tasks.servers[0]._timeout_s = 0.0, 60.0
    with tasks.servers[1].held(block=True):  # somebody is in the middle of a call there
        assert isinstance(tasks.open(prompt).reply(solution(prompt.task["task_id"])[0]), Observation)
    assert stubs[0].world is not None and stubs[1].world is None


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        (
            "/evaluate",
            {"output": {"success": True}},
            "/evaluate gave an answer that is not AppWorld's: KeyError: 'passes'",
        ),
        ("/execute", {"detail": "odd"}, "/execute gave an answer that is not AppWorld's"),
        ("/execute", "<html>", "/execute gave an answer that is not AppWorld's"),
    ],
)
def test_an_answer_that_is_not_appworlds_is_reported(stub: Stub, path: str, answer: Any, words: str) -> None:
    tasks = AppWorld(urls=stub.url, **LISTS)
    prompt = tasks.prompt("train", 0)
    stub.answers[path] = answer
    verdict = tasks.open(prompt).reply(solution(prompt.task["task_id"])[2])
    assert isinstance(verdict, Verdict)
    assert verdict.status is Status.ERROR and words in verdict.detail, verdict.detail


PERSON = {"first_name": "Ada", "last_name": "Bell", "email": "ada@example.com", "phone_number": "5550100"}


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (None, "TypeError: 'NoneType' object is not subscriptable"),
        ("Write it.", "TypeError: string indices must be integers"),
        ({"instruction": "Write it.", "datetime": "2023"}, "KeyError: 'supervisor'"),
        ({"supervisor": None, "instruction": "Write it.", "datetime": "2023"}, "TypeError: 'NoneType'"),
        (
            {"supervisor": {"first_name": "Ada"}, "instruction": "Write it.", "datetime": "2023"},
            "KeyError: 'last_name'",
        ),
        ({"supervisor": PERSON, "datetime": "2023"}, "KeyError: 'instruction'"),
    ],
)
def test_what_is_no_task_is_one_sentence(stub: Stub, task: Any, words: str) -> None:
    stub.answers["/tasks/abc7_1"] = {"output": task}
    tasks = AppWorld(urls=stub.url, train=["abc7_1"], eval=EVAL)
    with pytest.raises(
        ValueError, match="appworld: task abc7_1 cannot be loaded: its answer is not a task: "
    ) as caught:
        tasks.prompt("train", 0)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert stub.calls == ["/tasks/abc7_1"] * tasks.tries


def test_a_server_whose_answer_is_no_task_or_none_at_all_is_not_the_last_word(stubs: list[Stub]) -> None:
    tasks = AppWorld(urls=[stub.url for stub in stubs], tries=2, **LISTS)
    stubs[0].answers[f"/tasks/{tasks._ids['train'][0]}"] = {"output": {}}
    assert "Ada Bell" in tasks.prompt("train", 0).messages[0].content
    stubs[0].seconds, tasks.servers[0]._timeout_s = 1.0, 0.1
    assert "Ada Bell" in tasks.prompt("train", 1).messages[0].content
    assert len(stubs[1].calls) == 2


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"urls": []}, "urls is empty"),
        ({"urls": "localhost:8000"}, "'localhost:8000' is not the address of a server, give http://host:port"),
        ({"urls": "http://h", "reward": "tests"}, "reward is 'tests', it must be success or share"),
        ({"urls": "http://h", "turns": 0}, "turns is 0, it must be above 0"),
        ({"urls": "http://h", "template": "Do it."}, "the template has no {instruction}"),
    ],
)
def test_wrong_parameters_are_one_sentence(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        catalog.load("appworld", {**LISTS, **params})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_no_response_makes_it_raise(stub: Stub) -> None:
    tasks, rng = AppWorld(urls=stub.url, **LISTS), random.Random(7)
    prompt = tasks.prompt("train", 0)
    correct = solution(prompt.task["task_id"])
    session = tasks.open(prompt)
    for _ in range(500):
        answer = session.reply(fuzzed(rng, correct))
        if isinstance(answer, Observation):
            assert answer.messages and len(answer.messages[0].content) < 9_000
            json.dumps([m.content for m in answer.messages], ensure_ascii=False).encode("utf-8")
        else:
            assert answer.status is Status.OK and 0.0 <= answer.reward <= 1.0, answer
            json.dumps([answer.solution, answer.detail], ensure_ascii=False).encode("utf-8")
            session = tasks.open(prompt)


def fuzzed(rng: random.Random, correct: list[str]) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.randrange(60)).decode("utf-16-le", "replace")
    if kind == 1:
        return "```python\n" + "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(40))) + "\n```"
    if kind == 2:
        text, at = rng.choice(correct), rng.randrange(20)
        return text[:at] + rng.choice(["", "'", "\0", "\ud800", "```"]) + text[at:]
    return rng.choice(["", "print('" + "x" * 12_000 + "')", "((" * 4_000, "\ud800", "1" * 30_000, '{"success": true}'])


def test_a_long_output_is_shortened_in_the_middle(stub: Stub) -> None:
    tasks = AppWorld(urls=stub.url, characters=10, **LISTS)
    answer = tasks.open(tasks.prompt("train", 0)).reply("print('" + "a" * 7 + "b" * 7 + "')")
    assert isinstance(answer, Observation) and answer.messages[0].content == "aaaaa\n[4 characters left out]\nbbbbb"


def test_prompt_is_plain(stub: Stub) -> None:
    prompt = AppWorld(urls=stub.url, **LISTS).prompt("train", 0)
    assert isinstance(prompt, Prompt) and json.loads(json.dumps(prompt.task)) == prompt.task
