"""Tests a user's file: what it may hold, how it is split, and the sentence for a broken line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envs.builtin.questions.environment import Questions
from envs.types import Message, Prompt, Verdict


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def rows(count: int) -> list[Any]:
    return [{"prompt": f"q{i}", "answer": i} for i in range(count)]


def asked(tasks: Questions, split: Any) -> list[str]:
    return [tasks.prompt(split, i).messages[-1].content for i in range(tasks.size(split) or 0)]


def score(tasks: Questions, prompt: Prompt, response: str) -> Verdict:
    verdict = tasks.open(prompt).reply(response)
    assert isinstance(verdict, Verdict)
    return verdict


def test_rows_of_both_kinds(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "2+2?"}]
    lines = ['\ufeff{"prompt": "Half of 1?", "answer": 0.5, "source": "x"}', "", {"messages": chat, "answer": " Vier "}]
    tasks = Questions(path=write(tmp_path / "q.jsonl", lines), eval_fraction=0.0, system="Think.")
    prompts = {tasks.prompt("train", i).task["where"]: tasks.prompt("train", i) for i in range(2)}
    half, four = prompts["q.jsonl:1"], prompts["q.jsonl:3"]
    assert half.messages == (Message("system", "Think."), Message("user", "Half of 1?"))
    assert four.messages == (Message("system", "Brief."), Message("user", "2+2?"))
    assert half.task["answer"] == "0.5" and four.task["answer"] == "Vier"
    assert score(tasks, half, "It is \\boxed{\\frac{1}{2}}.").reward == 1.0
    assert score(tasks, half, "It is \\boxed{\\frac{1}{3}}.").reward == 0.0
    assert score(tasks, four, "the answer is vier.").solution == "vier"


def test_equal_solutions_have_one_form(tmp_path: Path) -> None:
    tasks = Questions(path=write(tmp_path / "q", [{"prompt": "a", "answer": "1/2"}]), eval_fraction=0.0)
    prompt = tasks.prompt("train", 0)
    assert {score(tasks, prompt, text).solution for text in ("0.5", "50%", "#### 1/2")} == {"1/2"}


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        ("Max has 4 + 5 = 9 cookies.", True),
        ("4 + 5 = 9\n\nMax has nine, that is 9.0 of them", True),
        ("Answer: 9 cookies", True),
        ("It could be 9, or 8.", False),
        ("Nine.", False),
        ("Answer: 8, not 9", False),
        ("There are 9 of them.\nI hope this helps, 100 %.", False),
    ],
)
def test_a_sentence_with_the_number_asked_for_is_right(tmp_path: Path, response: str, correct: bool) -> None:
    tasks = Questions(path=write(tmp_path / "q", [{"prompt": "a", "answer": 9}]), eval_fraction=0.0)
    assert score(tasks, tasks.prompt("train", 0), response).correct == correct


def test_a_sentence_is_no_answer_where_words_are_asked_for(tmp_path: Path) -> None:
    tasks = Questions(path=write(tmp_path / "q", [{"prompt": "a", "answer": "room 9"}]), eval_fraction=0.0)
    assert not score(tasks, tasks.prompt("train", 0), "It is in 9").correct


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(30, None, 3), (30, 0.5, 15), (3, 0.01, 1), (3, 0.99, 2), (5, 0.0, 0)]
)
def test_division(tmp_path: Path, count: int, fraction: float | None, held: int) -> None:
    lines = rows(count)
    tasks = Questions(path=write(tmp_path / "a", lines + lines[:2]), eval_fraction=fraction)
    train, evaluation = asked(tasks, "train"), asked(tasks, "eval")
    assert len(set(evaluation)) == held and len(set(train)) == count - held and not set(train) & set(evaluation)
    again = Questions(seed=9, path=write(tmp_path / "b", lines[::-1] + lines[:2]), eval_fraction=fraction)
    assert set(asked(again, "eval")) == set(evaluation)
    if held == 0:
        with pytest.raises(ValueError, match="eval split is empty"):
            tasks.prompt("eval", 0)


def test_train_order_is_the_seeds_and_wraps_around(tmp_path: Path) -> None:
    path = write(tmp_path / "q", rows(20))
    orders = [asked(Questions(seed=seed, path=path), "train") for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
    tasks = Questions(seed=1, path=path)
    assert tasks.prompt("train", 18).messages == tasks.prompt("train", 0).messages
    assert tasks.prompt("train", 18).key != tasks.prompt("train", 0).key


def test_a_file_for_eval(tmp_path: Path) -> None:
    path, held = write(tmp_path / "a", rows(3)), write(tmp_path / "b", [{"prompt": "new", "answer": 1}])
    tasks = Questions(path=path, eval_path=held)
    assert asked(tasks, "eval") == ["new"] and sorted(asked(tasks, "train")) == ["q0", "q1", "q2"]
    with pytest.raises(ValueError, match="c:2 asks what a:3 asks"):
        Questions(
            path=path, eval_path=write(tmp_path / "c", [{"prompt": "new", "answer": 1}, {"prompt": "q2", "answer": 2}])
        )
    with pytest.raises(ValueError, match="not both"):
        Questions(path=path, eval_path=held, eval_fraction=0.1)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"prompt": "a", "answer": 1', "not JSON"),
        ('["a", 1]', "is a list"),
        ('{"prompt": "a"}', '"answer" is missing; the columns are "prompt"'),
        ('{"answer": 1}', '"prompt" or "messages"'),
        ('{"prompt": "a", "messages": [], "answer": 1}', "not both"),
        ('{"messages": [], "answer": 1}', "at least one message"),
        ('{"messages": [{"role": "user"}], "answer": 1}', 'message 1 must be an object with "role" and "content"'),
        ('{"messages": [{"role": "boss", "content": "a"}], "answer": 1}', "'boss'"),
        ('{"prompt": " ", "answer": 1}', "not empty"),
        ('{"prompt": 3, "answer": 1}', "must be a string"),
        ('{"prompt": "a", "answer": true}', '"answer" is true'),
        ('{"prompt": "a", "answer": NaN}', '"answer" is NaN'),
        ('{"prompt": "a", "answer": " "}', '"answer" is " "'),
        ('{"prompt": "a", "answer": ' + "9" * 5000 + "}", "digits"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, fault: str) -> None:
    path = write(tmp_path / "mine.jsonl", [*rows(2), "", line, *rows(1)])
    with pytest.raises(ValueError) as caught:
        Questions(path=path)
    assert "mine.jsonl, line 4: " in str(caught.value) and fault in str(caught.value), str(caught.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl cannot be read: No such file"):
        Questions(path=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(ValueError, match="has no line"):
        Questions(path=write(tmp_path / "empty", ["", " "]))
    with pytest.raises(ValueError, match="cannot be divided"):
        Questions(path=write(tmp_path / "one", rows(1)))
    (tmp_path / "latin").write_bytes(b'{"prompt": "caf\xe9", "answer": 1}')
    with pytest.raises(ValueError, match="latin, line 1: 'utf-8'"):
        Questions(path=str(tmp_path / "latin"))


def test_alphabet_has_what_the_file_has(tmp_path: Path) -> None:
    tasks = Questions(path=write(tmp_path / "q", [{"prompt": "π?", "answer": "é"}]), eval_fraction=0.0)
    assert {"π", "é", "a", "\n"} <= set(tasks.alphabet())


def test_twins_in_other_spaces_are_on_one_side(tmp_path: Path) -> None:
    lines = [{"prompt": f"What is{space}{i} + {i}?", "answer": 2 * i} for i in range(20) for space in (" ", "  ")]
    tasks = Questions(path=write(tmp_path / "q", lines), eval_fraction=0.5)
    sides = [{" ".join(text.split()) for text in asked(tasks, split)} for split in ("train", "eval")]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [10, 10]
