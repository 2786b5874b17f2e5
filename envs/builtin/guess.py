"""Provides two games of several turns whose best play is known exactly, to test masking, turn-level advantages and the warm start.

guess   prompt  17-32     response  24   observation  higher   response  28   ...   the number
bits    prompt  dgbf      response  g    observation  1        response  d    ...   response  0110, the letters' bits in order
"""

from __future__ import annotations

import random
import string
from abc import ABC, abstractmethod
from collections.abc import Iterable

from envs.checks import check_range
from envs.tasks import check_index, in_split, task_random
from envs.types import Message, Observation, Prompt, Split, Verdict

DRAWS = 1_000
MAX_RESPONSE = 16  # characters; a longer response is an invalid move


class _Game(ABC):
    """Holds what both games share: prompts split by their text, a limit on turns, a reward that may decay with the turns."""

    kind: str

    def __init__(self, seed: int, turns: int, needed: int, decay: float, name: str, system: str) -> None:
        if not needed <= turns <= 100:
            raise ValueError(f"{self.kind}: turns is {turns}, best play takes up to {needed}: give {needed} to 100")
        if not 0 < decay <= 1:
            raise ValueError(f"{self.kind}: decay is {decay}, it must be above 0 and at most 1")
        self._seed, self._turns, self._decay = seed, turns, decay
        self._name, self._system = name, system

    @abstractmethod
    def _draw(self, rng: random.Random) -> tuple[str, dict[str, int | str]]:
        """Returns a prompt's text and its task."""

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        check_index(split, index)
        rng = task_random(self._seed, split, index)
        for _ in range(DRAWS):
            text, task = self._draw(rng)
            if in_split(text, split):
                system = (Message("system", self._system),) if self._system else ()
                return Prompt(self._name, split, index, (*system, Message("user", text)), task)
        # The constructors' limits guarantee enough texts for either split.
        raise RuntimeError(f"{self.kind}: {DRAWS} draws gave no {split} prompt")


class GameSession(ABC):
    """Runs one game; a response after the last turn loses."""

    def __init__(self, turns: int, decay: float) -> None:
        self._turns, self._decay = turns, decay
        self._responses: list[str] = []
        self._verdict: Verdict | None = None

    @abstractmethod
    def respond(self, text: str) -> str | bool:
        """Returns the observation's text, or whether the game was won. Pure."""

    def reply(self, text: str) -> Observation | Verdict:
        if self._verdict is None:
            text = text.strip() if len(text) <= MAX_RESPONSE else ""
            outcome = self.respond(text)
            self._responses.append("?" if outcome == "?" else text)  # an invalid move could be any text: not kept
            if outcome is True:
                reward = self._decay ** (len(self._responses) - 1)
                self._verdict = Verdict(reward, correct=True, solution=" ".join(self._responses))
            elif outcome is False or len(self._responses) >= self._turns:
                detail = "wrong" if outcome is False else f"not found within {self._turns} turns"
                self._verdict = Verdict(0.0, detail=detail)
            else:
                return Observation((Message("tool", str(outcome)),))
        return self._verdict


class Guess(_Game):
    """Asks for a hidden number in a range; answers "higher" or "lower".

    numbers  size of the range, 2 to 512
    turns    limit of a game; by default as many as halving needs at worst
    decay    the reward of a win is decay^(turns - 1); by default 1.0
    name     name of its metrics
    system   text of a system message; none by default
    """

    kind = "guess"

    def __init__(
        self,
        seed: int = 0,
        *,
        numbers: int = 16,
        turns: int | None = None,
        decay: float = 1.0,
        name: str = "guess",
        system: str = "",
    ) -> None:
        check_range("guess", "numbers", numbers, 2, 512)
        needed = numbers.bit_length()
        self._numbers = numbers
        super().__init__(seed, needed if turns is None else turns, needed, decay, name, system)

    def _draw(self, rng: random.Random) -> tuple[str, dict[str, int | str]]:
        low = rng.randint(1, 999 - self._numbers)
        high = low + self._numbers - 1
        return f"{low}-{high}", {"low": low, "high": high, "secret": rng.randint(low, high)}

    def open(self, prompt: Prompt) -> GuessSession:
        return GuessSession(int(prompt.task["secret"]), self._turns, self._decay)

    def expert(self, prompt: Prompt, rng: random.Random) -> GuessExpert:
        """Returns an expert that halves the range; of two middles it takes either one, since both win in time."""
        return GuessExpert(prompt.task["low"], prompt.task["high"], rng)

    def alphabet(self) -> Iterable[str]:
        return sorted(set(string.digits + "-?higherlower") | set(self._system))


class GuessSession(GameSession):
    def __init__(self, secret: int, turns: int, decay: float) -> None:
        super().__init__(turns, decay)
        self._secret = secret

    def respond(self, text: str) -> str | bool:
        if not (text.isascii() and text.isdigit()):
            return "?"
        guess = int(text)
        return True if guess == self._secret else "higher" if guess < self._secret else "lower"


class GuessExpert:
    def __init__(self, low: int, high: int, rng: random.Random) -> None:
        self._low, self._high, self._rng = low, high, rng
        self._last = 0

    def act(self, observation: Observation | None) -> str:
        if observation is not None:
            if observation.messages[0].content == "higher":
                self._low = self._last + 1
            else:
                self._high = self._last - 1
        self._last = (self._low + self._high + self._rng.randint(0, 1)) // 2  # an odd count has one middle
        return str(self._last)


def best_chance(numbers: int, turns: int) -> float:
    """Returns the chance that best play finds one of `numbers` equally likely numbers within `turns` guesses.

    t guesses tell at most 2^t - 1 numbers apart: each leaves two halves to the guesses after it.
    """
    return min(1.0, (2**turns - 1) / numbers)


class Bits(_Game):
    """Hides a bit behind each letter, to be asked for one by one and then given all at once; each turn's contribution is known.

    letters  in a prompt, each with a hidden bit, 2 to 8
    turns    limit of a game; by default one for each letter and one for the answer
    decay    the reward of a win is decay^(turns - 1); by default 1.0
    name     name of its metrics
    system   text of a system message; none by default
    """

    kind = "bits"

    def __init__(
        self,
        seed: int = 0,
        *,
        letters: int = 3,
        turns: int | None = None,
        decay: float = 1.0,
        name: str = "bits",
        system: str = "",
    ) -> None:
        check_range("bits", "letters", letters, 2, 8)
        self._letters = letters
        super().__init__(seed, letters + 1 if turns is None else turns, letters + 1, decay, name, system)

    def _draw(self, rng: random.Random) -> tuple[str, dict[str, int | str]]:
        letters = "".join(rng.sample("abcdefghij", self._letters))
        return letters, {"letters": letters, "bits": "".join(rng.choice("01") for _ in letters)}

    def open(self, prompt: Prompt) -> BitsSession:
        return BitsSession(prompt.task["letters"], prompt.task["bits"], self._turns, self._decay)

    def expert(self, prompt: Prompt, rng: random.Random) -> BitsExpert:
        """Returns an expert that asks in random order, uniform over all orders."""
        return BitsExpert(prompt.task["letters"], rng)

    def alphabet(self) -> Iterable[str]:
        return sorted(set("abcdefghij01?") | set(self._system))


class BitsSession(GameSession):
    def __init__(self, letters: str, bits: str, turns: int, decay: float) -> None:
        super().__init__(turns, decay)
        self._letters, self._bits = letters, bits

    def respond(self, text: str) -> str | bool:
        if len(text) == 1 and text in self._letters:
            return self._bits[self._letters.index(text)]
        if len(text) == len(self._bits) and not set(text) - {"0", "1"}:
            return text == self._bits
        return "?"


class BitsExpert:
    def __init__(self, letters: str, rng: random.Random) -> None:
        self._letters = letters
        self._left = rng.sample(letters, len(letters))
        self._known: dict[str, str] = {}
        self._asked = ""

    def act(self, observation: Observation | None) -> str:
        if observation is not None:
            self._known[self._asked] = observation.messages[0].content
        if not self._left:
            return "".join(self._known[letter] for letter in self._letters)
        self._asked = self._left.pop()
        return self._asked
