"""Wraps one text environment of another library behind reset, step and close with one signature each.

    reset(seed=7) -> text | (text, info)                     no seed parameter: seed(7) is called before, if it exists
    step(text)    -> (text, reward, terminated, truncated, info) | (text, reward, done, info)
    close()                                                  if it exists

A game of TextArena for one player (textarena/core.py) has step(text) -> (done, info), get_observation() -> (player, text or
messages), and its reward in what close() returns: ({player: reward}, info).
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Game:
    """Wraps one environment of the library, whichever of the interfaces it has, with global random states of its own."""

    def __init__(self, build: Callable[[], Any], seed: int) -> None:
        self._seed = seed
        self._states: dict[str, Any] = {}
        self._final: Any = None
        self._closed = False
        with self._randomness():
            self._environment = build()

    def reset(self) -> str:
        """Returns the first observation."""
        with self._randomness():
            parameters = _parameters(self._environment.reset)
            arguments: dict[str, Any] = {"seed": self._seed} if parameters is None or "seed" in parameters else {}
            if not arguments and has_method(self._environment, "seed"):
                self._environment.seed(self._seed)
            if parameters is not None and "num_players" in parameters:
                arguments["num_players"] = 1
            answer = self._environment.reset(**arguments)
            if self._textarena:
                return self._textarena_observation()
        if isinstance(answer, tuple) and len(answer) == 2:
            answer = answer[0]
        return _text(answer, "reset")

    def step(self, action: str) -> tuple[str, float, bool, str]:
        """Returns (observation, reward, whether it is over, reason if it was cut short)."""
        with self._randomness():
            answer = self._environment.step(action)
            if self._textarena:
                done, _ = answer
                if not done:
                    return self._textarena_observation(), 0.0, False, ""
                self.close()
                rewards = self._final[0] if isinstance(self._final, tuple) else self._final
                return "", float((rewards or {}).get(0, 0.0)), True, ""
        if not isinstance(answer, tuple) or len(answer) not in (4, 5):
            length = f" of {len(answer)}" if isinstance(answer, tuple) else ""
            raise TypeError(
                f"step gave a {type(answer).__name__}{length}, it must be (text, reward, terminated, truncated, info) or "
                "(text, reward, done, info)"
            )
        flags = [bool(flag) for flag in answer[2:-1]]
        truncated = len(flags) == 2 and flags[1] and not flags[0]
        return (
            _text(answer[0], "step"),
            float(answer[1]),
            any(flags),
            "cut short by the environment" if truncated else "",
        )

    def close(self) -> None:
        """Closes the environment, if it has close() and is still open."""
        if not self._closed:
            self._closed = True
            if has_method(self._environment, "close"):
                with self._randomness():
                    self._final = self._environment.close()

    @property
    def _textarena(self) -> bool:
        return has_method(self._environment, "get_observation")

    def _textarena_observation(self) -> str:
        """Returns TextArena's observation: a text, or messages (from, text, type) where no wrapper has joined them."""
        _, observation = self._environment.get_observation()
        if isinstance(observation, list):
            observation = "\n".join(str(message[1]) for message in observation)
        return _text(observation, "get_observation")

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Swaps in this game's global random states while it computes, and restores the outer ones afterwards.

        Games take turns in one process, and TextArena, for one, seeds and draws from Python's global generator.
        """
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


def has_method(foreign: Any, name: str) -> bool:
    """Returns whether an object of another library has a method of this name."""
    return callable(getattr(foreign, name, None))


def _parameters(function: Callable[..., Any]) -> set[str] | None:
    """Returns the names of the parameters; None where any name may be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _text(value: Any, method: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{method} gave a {type(value).__name__} as observation, it must be text")
    return value
