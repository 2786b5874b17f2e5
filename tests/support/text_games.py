"""Small games in the dialects of text environments, for the adapter envs/adapters/gym. Shapes, not code, of

GEM        gem/core.py and gem/envs/textarena/guess_the_number.py of axon-rl/gem: reset(seed) -> (text, {}), five values of a step,
           numbers drawn from Python's global random state, also within the first observation
TextArena  textarena/core.py of TextArena/TextArena: reset(num_players, seed), get_observation() -> (player, messages),
           step -> (done, info), close() -> (rewards, info); State.__init__ seeds Python's global random state
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

CLOSED: list[str] = []


class Gem:
    """Asks for a number, with hints "higher" and "lower"; the answer is in a box."""

    def __init__(self, top: int = 20, turns: int = 6) -> None:
        self.top, self.turns = top, turns
        self.reset()

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self.secret = random.randint(1, self.top)
        self.turn = 0
        return f"A number from 1 to {self.top}. For example \\boxed{{{random.randint(1, self.top)}}}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        inside = action.rpartition("\\boxed{")[2].partition("}")[0]
        if not inside.isdecimal():
            return "[TERMINAL_STATE]", -0.1, True, False, {}
        guess = int(inside[:9])
        if guess == self.secret:
            return f"Congratulations! {guess}.", 1.0, True, False, {}
        if self.turn >= self.turns:
            return "[TERMINAL_STATE]", 0.0, False, True, {}
        return f"{'lower' if guess > self.secret else 'higher'} than {guess}", 0.0, False, False, {}

    def close(self) -> None:
        CLOSED.append("gem")


class Classic:
    """Has the older gym's interface: a separate seed() and four values of a step; every step draws from numpy's global state.

    The task is to say the shown letters.
    """

    def __init__(self, letters: int = 3) -> None:
        self.letters = letters

    def seed(self, seed: int) -> None:
        self.random = random.Random(seed)

    def reset(self) -> str:
        self.word = "".join(self.random.choice("abcdefgh") for _ in range(self.letters))
        self.at = 0
        return f"say {self.word}"

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        hit = action.strip() == self.word[self.at]
        self.at += 1
        share = np.float64(1 / self.letters)
        return f"noise {np.random.randint(1000)}", share if hit else np.float64(0), self.at == self.letters, {}


class Arena:
    """Has TextArena's interface: a game of one player, whose reward is returned when it is closed."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        assert num_players == 1
        random.seed(seed)
        self.number, self.done, self.rewards = random.randint(0, 9), False, None
        self.messages = [(-1, "Say the digit.", "PROMPT"), (-1, f"It is {self.number}.", "GAME_BOARD")]

    def get_observation(self) -> tuple[int, list[tuple[int, str, str]]]:
        messages, self.messages = self.messages, []
        return 0, messages

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        if not action.strip().isdecimal():
            self.messages = [(0, action, "PLAYER_ACTION"), (-1, f"Not a digit. {random.randint(0, 999)}", "GAME_ADMIN")]
            return False, {}
        self.rewards = {0: 1 if int(action.strip()[:3]) == self.number else -1}
        return True, {}

    def close(self) -> tuple[dict[int, int] | None, dict[int, Any]]:
        CLOSED.append("arena")
        return self.rewards, {0: {"turn_count": 1}}


class Faulty:
    """Fails in the way that `fault` names: every way in which an environment of another library can."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        if fault == "made":
            raise KeyError("made")

    def reset(self, seed: int = 0) -> Any:
        if self.fault == "reset":
            raise KeyError("reset")
        if self.fault == "pixels":
            return [[0, 1]]
        if self.fault == "seedless":
            return f"{id(object())} {random.SystemRandom().random()}"
        return "go"

    def step(self, action: str) -> Any:
        if self.fault == "step":
            raise RuntimeError("the engine\nstopped")
        if self.fault == "three":
            return "text", 1.0, True
        if self.fault == "array":
            return [1], 0.0, False, {}
        return action, float("nan") if self.fault == "nan" else 1.0, action != "on", {}

    def close(self) -> None:
        CLOSED.append("faulty")
        if self.fault == "close":
            raise OSError("close")


class Nothing:
    def step(self, action: str) -> str:
        return action
