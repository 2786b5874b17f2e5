"""Words around the prompts of any environment, and the examples shown before them."""

from __future__ import annotations

from typing import Any

import pytest

from envs import catalog
from envs.base import Demonstrates, HasForm
from envs.types import Message, Split, Verdict


def test_template_system_and_examples_are_around_every_prompt() -> None:
    plain = catalog.load("arithmetic", {}, seed=3)
    framed = catalog.load("arithmetic", {"system": "Be brief.", "template": "Compute {prompt}?", "shots": 2}, seed=3)
    tried: list[tuple[Split, int]] = [("train", 0), ("train", 7), ("eval", 1)]
    for split, index in tried:
        own, prompt = plain.prompt(split, index), framed.prompt(split, index)
        assert (prompt.task, prompt.key) == (own.task, own.key)
        system, *shown, last = prompt.messages
        assert system == Message("system", "Be brief.")
        assert last == Message("user", f"Compute {own.messages[0].content}?")
        assert [message.role for message in shown] == ["user", "assistant"] * 2
        for question, answer in zip(shown[::2], shown[1::2], strict=True):
            sum_ = question.content.removeprefix("Compute ").removesuffix("=?")
            assert eval(sum_) == int(answer.content)
    assert framed.prompt("train", 0).messages[:5] == framed.prompt("eval", 5).messages[:5]  # the same for every prompt


def test_the_rest_of_an_environment_stays_what_it_is() -> None:
    framed: Any = catalog.load("arithmetic", {"template": "Say {prompt}"}, seed=0)
    assert all(isinstance(framed, protocol) for protocol in (Demonstrates, HasForm))
    prompt = framed.prompt("train", 0)
    assert framed.open(prompt).reply(prompt.task["answer"]) == Verdict(1.0, True, prompt.task["answer"])
    assert set("Say ") <= set(framed.alphabet())


def test_a_parameter_of_the_environments_own_is_meant_before(tmp_path: Any) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": 2}')
    tasks = catalog.load("questions", {"path": str(tmp_path / "q.jsonl"), "template": "{prompt}!", "shots": 1}, seed=0)
    question, answer, last = tasks.prompt("train", 0).messages
    assert (question.role, answer.role) == ("user", "assistant") and last.content in ("a!", "b!")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"template": "no place"}, "in it, as {prompt}"),
        ({"template": 3}, "template is 3"),
        ({"shots": -1}, "0 to 64"),
        ({"shots": True}, "whole number"),
        ({"system": ["x"]}, "must be text"),
        ({"tempalte": "{prompt}"}, "did you mean 'template'"),
    ],
)
def test_what_cannot_work_is_a_sentence(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as raised:
        catalog.load("arithmetic", params)
    assert words in str(raised.value) and "arithmetic" in str(raised.value)


def test_an_environment_of_turns_shows_no_examples() -> None:
    with pytest.raises(ValueError, match="leave shots out"):
        catalog.load("guess", {"shots": 2})
    assert catalog.load("guess", {"system": "Guess."}).prompt("train", 0).messages[0].role == "system"
