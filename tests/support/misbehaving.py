"""An environment whose sessions do what a response asks for: raise, hang, return invalid values, or go on."""

from __future__ import annotations

import os
import time
from typing import Any

from envs.base import Session
from envs.types import Message, Observation, Prompt, Split, Verdict


class Misbehaving:
    """Opens misbehaving sessions; `opens` counts those of this process and is shown in every observation."""

    def __init__(self, seed: int = 0, *, turns: int = 1) -> None:
        self._seed, self._turns, self.opens = seed, turns, 0

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        return Prompt("misbehaving", split, index, (Message("user", "go"),), {"secret": [index, self._seed]})

    def open(self, prompt: Prompt) -> Session:
        self.opens += 1
        return MisbehavingSession(self, prompt, self._turns)


class MisbehavingSession:
    def __init__(self, environment: Misbehaving, prompt: Prompt, turns: int) -> None:
        self._environment, self._prompt, self._turns = environment, prompt, turns
        self.closed = False
        self._seen: list[str] = []

    def reply(self, text: str) -> Any:
        self._seen.append(text)
        if text == "raise":
            raise RuntimeError("the task is broken")
        if text == "hang":
            time.sleep(60)
        if text == "die":
            os._exit(7)
        odd = {"nan": float("nan"), "inf": float("inf"), "text": "1.0", "none": None}
        if text in odd:
            return Verdict(odd[text])  # type: ignore[arg-type]
        if text == "nonsense":
            return 1.0
        if text in ("half", "unpaid"):
            return Observation((), 0.5 if text == "half" else odd["nan"])  # type: ignore[arg-type]
        if len(self._seen) < self._turns:
            return Observation((Message("tool", f"opens={self._environment.opens} seen={','.join(self._seen)}"),))
        return Verdict(len(self._seen), True, solution=f"{self._prompt.task['secret']} {','.join(self._seen)}")

    def close(self) -> None:
        self.closed = True
        raise RuntimeError("closing failed")  # which costs nothing
