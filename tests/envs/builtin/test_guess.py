"""Tests both games: observations, wins, and that experts play as well as possible."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from envs.base import play
from envs.builtin.guess import Bits, Guess, best_chance
from envs.types import Observation, Prompt, Verdict

NUMBER = Prompt("guess", "train", 0, (), {"low": 17, "high": 32, "secret": 20})
LETTERS = Prompt("bits", "train", 0, (), {"letters": "dgb", "bits": "011"})


def text_of(answer: Observation | Verdict) -> str:
    assert isinstance(answer, Observation)
    return answer.messages[0].content


def test_higher_lower_and_a_win_that_decays() -> None:
    session = Guess(decay=0.5).open(NUMBER)
    assert [text_of(session.reply(text)) for text in ("18", " 24\n", "many")] == ["higher", "lower", "?"]
    assert session.reply("20") == Verdict(0.125, correct=True, solution="18 24 ? 20")
    assert session.reply("18") == session.reply("20")  # it is over


def test_bits_are_told_one_by_one_and_said_together() -> None:
    session = Bits().open(LETTERS)
    assert [text_of(session.reply(text)) for text in ("g", "d", "x")] == ["1", "0", "?"]
    assert session.reply("011") == Verdict(1.0, correct=True, solution="g d ? 011")
    assert Bits().open(LETTERS).reply("010") == Verdict(0.0, detail="wrong")


@pytest.mark.parametrize(("environment", "prompt", "response"), [(Guess(), NUMBER, "18"), (Bits(), LETTERS, "g")])
def test_a_game_ends_with_its_turns(environment: Any, prompt: Prompt, response: str) -> None:
    played = play(environment.open(prompt), lambda _: response)
    assert len(played.responses) == (5 if isinstance(environment, Guess) else 4)
    assert played.verdict is not None and played.verdict.reward == 0.0 and "turns" in played.verdict.detail


@pytest.mark.parametrize("numbers", [2, 7, 8, 13, 16])
def test_halving_wins_every_game_in_time(numbers: int) -> None:
    tasks = Guess(numbers=numbers)
    for secret in range(1, numbers + 1):
        prompt = Prompt("guess", "train", 0, (), {"low": 1, "high": numbers, "secret": secret})
        for seed in range(20):
            played = play(tasks.open(prompt), tasks.expert(prompt, random.Random(seed)).act)
            assert played.verdict is not None and played.verdict.correct, (secret, played)


def test_ties_are_drawn() -> None:
    first = Counter(Guess().expert(NUMBER, random.Random(seed)).act(None) for seed in range(200))
    assert set(first) == {"24", "25"} and min(first.values()) > 60
    orders = {Bits().expert(LETTERS, random.Random(seed)).act(None) for seed in range(50)}
    assert orders == set("dgb")


def by_recursion(numbers: int, turns: int) -> int:
    """Returns how many of `numbers` secrets the best play finds, by trying every first guess."""
    if not numbers or not turns:
        return 0
    parts = ((left, numbers - 1 - left) for left in range(numbers))
    return max(1 + by_recursion(a, turns - 1) + by_recursion(b, turns - 1) for a, b in parts)


def test_the_best_chance_is_that_of_all_play_tried() -> None:
    for numbers in range(1, 9):
        for turns in range(5):
            assert best_chance(numbers, turns) == pytest.approx(by_recursion(numbers, turns) / numbers)


@pytest.mark.parametrize(
    ("build", "params", "words"),
    [
        (Guess, {"numbers": 1}, "numbers is 1, it must be 2 to 512"),
        (Guess, {"numbers": 16, "turns": 4}, "turns is 4, best play takes up to 5"),
        (Bits, {"letters": 9}, "letters is 9, it must be 2 to 8"),
        (Bits, {"turns": 3}, "turns is 3, best play takes up to 4"),
        (Bits, {"decay": 0.0}, "decay is 0.0"),
    ],
)
def test_impossible_parameters_are_a_sentence(build: Any, params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(**params)
