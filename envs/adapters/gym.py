"""Any object with reset and step on text, as gymnasium, GEM and TextArena have it; nothing of them is imported here.

    reset(seed=7) -> text | (text, info)                     no seed parameter: seed(7) is called before, where there is one
    step(text)    -> (text, reward, terminated, truncated, info) | (text, reward, done, info)
    close()                                                  if there is one

A game of TextArena for one player (textarena/core.py) has step(text) -> (done, info), get_observation() -> (player, text or
messages), and its reward in what close() returns: ({player: reward}, info).

    {"make": "gem:make", "params": {"env_id": "game:GuessTheNumber-v0-easy"}, "reward": "sum"}

Libraries that run the conversation themselves and ask for the model (verifiers' env_response) are not of this kind.
"""

from __future__ import annotations

import inspect
import math
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from envs import catalog
from envs.answers.extract import extract
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
    """A text environment of another library, with reset(seed) and step(text).

    make       "module:factory", what makes one; a module of yours is found as in "module:Class"
    params     arguments of the factory, by name
    reward     what the verdict's reward is: "last" of the rewards, or their "sum"
    success    the least reward that counts as correct
    action     what step is given: the whole "reply", or the answer that envs/answers/extract.py finds in it
    split_by   "seed": train and eval have seeds of their own, whatever tasks these give. "text": the first observation decides,
               so that the splits share none; for environments that show their task
    role       of the message that an observation is: "user" or "tool"
    system     text of a system message; none by default
    characters the most of an observation that the model is shown; the middle of a longer one is left out
    open       environments held at a time in a process; the one not used for longest is closed, and played again if asked for
    name       what metrics are kept under
    It has to be determined by its seed and the actions: sessions are replayed. The global random states of Python and numpy are
    kept for each session apart. Raises ValueError, one sentence, for a factory or an environment that cannot be used.
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
            if value not in CHOICES[key]:
                raise ValueError(f"gym: {key} is {value!r}, it must be {' or '.join(CHOICES[key])}")
        for key, value in (("characters", characters), ("open", open)):
            if value < 1:
                raise ValueError(f"gym: {key} is {value}, it must be above 0")
        if not math.isfinite(success):
            raise ValueError(f"gym: success is {success}, it must be a finite number")
        self._factory = catalog.find(make)
        self._seed, self._make, self._params = seed, make, dict(params or {})
        self.reward, self.success, self.action, self.role = reward, success, action, role
        self._split_by, self._system, self.characters, self._name = split_by, system, characters, name
        self._open, self._most = OrderedDict[int, GymSession](), open
        try:
            self.prompt("train", 0)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"gym: {make} cannot be used: {catalog.told(error)}") from error

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
            f"gym: {DRAWS} seeds of {self._make} gave no first observation of the {split} split: it seems to be always the same; "
            "use split_by=seed"
        )

    def open(self, prompt: Prompt) -> GymSession:
        return GymSession(self, prompt.task["seed"], prompt.messages[-1].content)

    def build(self) -> Any:
        made = self._factory(**self._params)
        missing = [method for method in ("reset", "step") if not callable(getattr(made, method, None))]
        if missing:
            raise ValueError(
                f"gym: what {self._make} makes is a {type(made).__name__} and has no {', no '.join(missing)}"
            )
        return made

    def shown(self, text: str) -> str:
        """As a message can carry it: no lone surrogates, no more than `characters`."""
        text = text.encode("utf-8", "replace").decode()
        if len(text) <= self.characters:
            return text
        half = self.characters // 2
        return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[len(text) - half :]}"

    def touch(self, session: GymSession) -> None:
        """The session's game is in use; beyond `open` of them the one not used for longest is closed."""
        self._open[id(session)] = session
        self._open.move_to_end(id(session))
        while len(self._open) > self._most:
            self._open.popitem(last=False)[1].park()

    def release(self, session: GymSession) -> None:
        self._open.pop(id(session), None)


class GymSession:
    """A game from its seed to its verdict; what the environment raises is a verdict with status ERROR."""

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
            except Exception as error:  # noqa: BLE001 - somebody else's environment: it costs this trajectory alone
                answer = Verdict(0.0, status=Status.ERROR, detail=catalog.told(error))
            if isinstance(answer, Observation):
                return answer
            self._verdict = answer
            self.park()
        return self._verdict

    def park(self) -> None:
        """Close the game; one that goes on is played again from its seed."""
        self._owner.release(self)
        game, self._game = self._game, None
        if game is not None:
            with suppress(Exception):  # the verdict is there already
                game.close()

    def _step(self, text: str) -> Observation | Verdict:
        if len(text) > MAX_RESPONSE:
            return Verdict(0.0, detail=f"the response has {len(text)} characters, at most {MAX_RESPONSE} are scored")
        game = self._opened()
        self._owner.touch(self)
        observation, reward, done, detail = game.step(self._action(text))
        self._responses.append(text)
        self._rewards.append(reward)
        if not done:
            # With `sum` the verdict has it: credit by the turn would count it twice.
            earned = reward if self._owner.reward == "last" else 0.0
            if not math.isfinite(earned):
                raise ValueError(f"the reward of a step is {earned}: it has to be a finite number")
            return Observation((Message(_role(self._owner.role), self._owner.shown(observation)),), earned)
        total = self._rewards[-1] if self._owner.reward == "last" else math.fsum(self._rewards)
        if not math.isfinite(total):
            raise ValueError(f"the reward is {total}: it has to be a finite number")
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


class Game:
    """One environment of the library, whatever its dialect, with global random states of its own."""

    def __init__(self, build: Callable[[], Any], seed: int) -> None:
        self._seed = seed
        self._states: dict[str, Any] = {}
        self._final: Any = None
        self._closed = False
        with self._randomness():
            self._environment = build()

    def reset(self) -> str:
        """The first observation."""
        with self._randomness():
            known = _parameters(self._environment.reset)
            arguments: dict[str, Any] = {"seed": self._seed} if known is None or "seed" in known else {}
            if not arguments and callable(getattr(self._environment, "seed", None)):
                self._environment.seed(self._seed)
            if known is not None and "num_players" in known:
                arguments["num_players"] = 1
            found = self._environment.reset(**arguments)
            if self._textarena:
                return self._seen()
        if isinstance(found, tuple) and len(found) == 2:
            found = found[0]
        return _text(found, "reset")

    def step(self, action: str) -> tuple[str, float, bool, str]:
        """(observation, reward, whether it is over, why if it was cut short)."""
        with self._randomness():
            found = self._environment.step(action)
            if self._textarena:
                done, _ = found
                if not done:
                    return self._seen(), 0.0, False, ""
                self.close()
                rewards = self._final[0] if isinstance(self._final, tuple) else self._final
                return "", float((rewards or {}).get(0, 0.0)), True, ""
        if not isinstance(found, tuple) or len(found) not in (4, 5):
            length = f" of {len(found)}" if isinstance(found, tuple) else ""
            raise TypeError(
                f"step gave a {type(found).__name__}{length}, it must be (text, reward, terminated, truncated, info) or "
                "(text, reward, done, info)"
            )
        ended = [bool(flag) for flag in found[2:-1]]
        cut = len(ended) == 2 and ended[1] and not ended[0]
        return _text(found[0], "step"), float(found[1]), any(ended), "cut short by the environment" if cut else ""

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            close = getattr(self._environment, "close", None)
            if callable(close):
                with self._randomness():
                    self._final = close()

    @property
    def _textarena(self) -> bool:
        return callable(getattr(self._environment, "get_observation", None))

    def _seen(self) -> str:
        """TextArena's observation: a text, or messages (from, text, type) where no wrapper has put them together."""
        _, found = self._environment.get_observation()
        if isinstance(found, list):
            found = "\n".join(str(message[1]) for message in found)
        return _text(found, "get_observation")

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """The global random states are this game's while it computes, and afterwards what they were: games take turns in one
        process, and TextArena for one seeds and draws from Python's."""
        numpy = sys.modules.get("numpy.random")
        outside = random.getstate(), numpy.get_state() if numpy else None
        random.setstate(self._states["python"]) if self._states else random.seed(self._seed)
        if numpy:
            state = self._states.get("numpy")
            numpy.set_state(state) if state is not None else numpy.seed(self._seed)
        try:
            yield
        finally:
            numpy = sys.modules.get("numpy.random")
            self._states = {"python": random.getstate(), "numpy": numpy.get_state() if numpy else None}
            random.setstate(outside[0])
            if numpy and outside[1] is not None:
                numpy.set_state(outside[1])


def _parameters(function: Callable[..., Any]) -> set[str] | None:
    """Names of the parameters; None where any may be given."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found):
        return None
    return {parameter.name for parameter in found}


def _text(value: Any, method: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{method} gave a {type(value).__name__} as observation, it must be text")
    return value
