"""Adapts any text environment with reset and step, such as those of gymnasium, GEM and TextArena, without importing them.

    {"make": "gem:make", "params": {"env_id": "game:GuessTheNumber-v0-easy"}, "reward": "sum"}

game.py has the signatures it accepts. Libraries that run the conversation themselves and call the model (verifiers'
env_response) cannot be adapted this way.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from envs import catalog
from envs.adapters.gym.game import Game, has_method
from envs.answers.extract import extract
from envs.checks import check_choice, check_positive
from envs.tasks import MAX_RESPONSE, check_index, in_split, stable_hash
from envs.types import Message, Observation, Prompt, Role, Split, Status, Verdict

DRAWS = 1_000
CHOICES = {
    "reward": ("last", "sum"),
    "action": ("reply", "extract"),
    "split_by": ("seed", "text"),
    "role": ("user", "tool"),
}


class Gym:
    """Wraps a text environment of another library that has reset(seed) and step(text).

    make       "module:factory", which makes one environment; your own module is found as in "module:Class"
    params     arguments of the factory, by name
    reward     the verdict's reward: the "last" step's reward, or the "sum" of all
    success    least reward that counts as correct
    action     argument of step: the whole "reply", or "extract": the answer that envs/answers/extract.py finds in it
    split_by   "seed": train and eval use different seeds, whatever tasks these give. "text": the first observation decides, so
               that the splits share none; for environments that show their task
    role       role of an observation's message: "user" or "tool"
    system     text of a system message; none by default
    characters longest observation shown to the model; the middle of a longer one is left out
    open       most environments open at a time in a process; the least recently used is closed, and replayed when needed again
    name       name of its metrics
    The environment has to be determined by its seed and the actions, since sessions are replayed. Every session has its own
    global random states of Python and numpy. Raises ValueError, one sentence, for a factory or an environment that cannot be used.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        make: str,
        params: dict[str, Any] | None = None,
        reward: str = "last",
        success: float = 1.0,
        action: str = "reply",
        split_by: str = "seed",
        role: str = "user",
        system: str = "",
        characters: int = 8_000,
        open: int = 256,
        name: str = "gym",
    ) -> None:
        for key, value in (("reward", reward), ("action", action), ("split_by", split_by), ("role", role)):
            check_choice("gym", key, value, CHOICES[key])
        check_positive("gym", characters=characters, open=open)
        if not math.isfinite(success):
            raise ValueError(f"gym: success is {success}, it must be a finite number")
        self._factory = catalog.find(make)
        self._seed, self._make, self._params = seed, make, dict(params or {})
        self.reward, self.success, self.action, self.role = reward, success, action, role
        self._split_by, self._system, self.characters, self._name = split_by, system, characters, name
        self._open, self._max_open = OrderedDict[int, GymSession](), open
        try:
            self.prompt("train", 0)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"gym: {make} cannot be used: {catalog.error_in_one_line(error)}") from error

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        check_index(split, index)
        for draw in range(DRAWS):
            seed = stable_hash(f"{self._seed}/{split}/{index}/{draw}") % 2**31  # numpy takes 32 bits
            game = Game(self.build, seed)
            text = self.shown(game.reset())
            game.close()
            if self._split_by == "seed" or in_split(text, split):
                system = (Message("system", self._system),) if self._system else ()
                return Prompt(self._name, split, index, (*system, Message("user", text)), {"seed": seed})
        raise ValueError(
            f"gym: {DRAWS} seeds of {self._make} gave no first observation of the {split} split: it seems to ignore the seed; "
            "use split_by=seed"
        )

    def open(self, prompt: Prompt) -> GymSession:
        return GymSession(self, prompt.task["seed"], prompt.messages[-1].content)

    def build(self) -> Any:
        """Returns a new environment of the library; raises ValueError if it has no reset or step."""
        environment = self._factory(**self._params)
        missing = [method for method in ("reset", "step") if not has_method(environment, method)]
        if missing:
            raise ValueError(
                f"gym: what {self._make} makes is a {type(environment).__name__} and has no {', no '.join(missing)}"
            )
        return environment

    def shown(self, text: str) -> str:
        """Returns the text as a message can carry it: without lone surrogates, at most `characters` long."""
        text = text.encode("utf-8", "replace").decode()
        if len(text) <= self.characters:
            return text
        half = self.characters // 2
        return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[len(text) - half :]}"

    def touch(self, session: GymSession) -> None:
        """Marks the session's game as used; closes the least recently used while more than `open` are open."""
        self._open[id(session)] = session
        self._open.move_to_end(id(session))
        while len(self._open) > self._max_open:
            self._open.popitem(last=False)[1].park()

    def release(self, session: GymSession) -> None:
        """Forgets a session whose game is closed."""
        self._open.pop(id(session), None)


class GymSession:
    """Runs one game; an exception of the environment becomes a verdict with status ERROR."""

    def __init__(self, owner: Gym, seed: int, first: str) -> None:
        self._owner, self._seed, self._first = owner, seed, first
        self._game: Game | None = None
        self._responses: list[str] = []
        self._rewards: list[float] = []
        self._verdict: Verdict | None = None

    def reply(self, text: str) -> Observation | Verdict:
        if self._verdict is None:
            try:
                answer = self._step(text)
            except Exception as error:  # noqa: BLE001 - foreign code; its failure costs only this trajectory
                answer = Verdict(0.0, status=Status.ERROR, detail=catalog.error_in_one_line(error))
            if isinstance(answer, Observation):
                return answer
            self._verdict = answer
            self.park()
        return self._verdict

    def park(self) -> None:
        """Closes the game; if the session continues, the game is replayed from its seed."""
        self._owner.release(self)
        game, self._game = self._game, None
        if game is not None:
            with suppress(Exception):  # the verdict is known already
                game.close()

    def close(self) -> None:
        """Closes the game for good: nobody asks the session again."""
        self.park()

    def _step(self, text: str) -> Observation | Verdict:
        if len(text) > MAX_RESPONSE:
            return Verdict(0.0, detail=f"the response has {len(text)} characters, at most {MAX_RESPONSE} are scored")
        game = self._opened()
        self._owner.touch(self)
        observation, reward, done, detail = game.step(self._action(text))
        self._responses.append(text)
        self._rewards.append(reward)
        if not done:
            # With `sum` the verdict includes it: turn-level advantages would count it twice.
            earned = reward if self._owner.reward == "last" else 0.0
            if not math.isfinite(earned):
                raise ValueError(f"the reward of a step is {earned}: it must be a finite number")
            return Observation((Message(_role(self._owner.role), self._owner.shown(observation)),), earned)
        total = self._rewards[-1] if self._owner.reward == "last" else math.fsum(self._rewards)
        if not math.isfinite(total):
            raise ValueError(f"the reward is {total}: it must be a finite number")
        if total < self._owner.success:
            return Verdict(total, detail=detail)
        solution = " | ".join(" ".join(self._action(response).split()) for response in self._responses)
        return Verdict(total, True, self._owner.shown(solution), detail=detail)

    def _action(self, text: str) -> str:
        return extract(text) if self._owner.action == "extract" else text

    def _opened(self) -> Game:
        if self._game is None:
            game = self._game = Game(self._owner.build, self._seed)
            if self._owner.shown(game.reset()) != self._first:
                raise ValueError(
                    f"reset(seed={self._seed}) gave another observation than for the prompt: an environment has to be determined "
                    "by its seed, in every process"
                )
            for response in self._responses:
                game.step(self._action(response))
        return self._game


def _role(name: str) -> Role:
    return "tool" if name == "tool" else "user"
