"""The two protocols an environment is made of, and what it may offer beside them: demonstrations, a form of responses.

An environment is a pure function of its parameters: prompt(split, index) never depends on what was asked before, so a run
can be resumed at any position and every process can build its own copy. A session judges one trajectory and is then thrown
away: there is no reset, hence no state to leak.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from envs.types import Observation, Prompt, Split, Verdict


class Session(Protocol):
    """One trajectory. Deterministic given its responses: a verifier that was restarted replays them."""

    def reply(self, text: str) -> Observation | Verdict:
        """Take the model's response; answer with an observation (the trajectory goes on) or a verdict (it is over)."""
        ...


class Environment(Protocol):
    def size(self, split: Split) -> int | None:
        """How many prompts the split has; None: generated without end."""
        ...

    def prompt(self, split: Split, index: int) -> Prompt:
        """The index-th prompt of a split, index >= 0 (a finite split wraps around). The splits share no task."""
        ...

    def open(self, prompt: Prompt) -> Session: ...


@runtime_checkable
class HasForm(Protocol):
    """What a format term without a pattern asks of an environment: a regular expression for a response as a whole."""

    form: str


@runtime_checkable
class Demonstrates(Protocol):
    """What the warm start asks of an environment of one response, beside the protocol above."""

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """A response that earns full reward, drawn uniformly from ALL correct ones where they can be listed."""
        ...

    def alphabet(self) -> Iterable[str]:
        """Every character that a prompt or a demonstration can contain: the character-level tokenizer's vocabulary."""
        ...


class Expert(Protocol):
    """A policy that earns full reward on its own prompt. Single-use, like the session it plays."""

    def act(self, observation: Observation | None) -> str:
        """The next response. `observation` is what the session said last, None before the first response."""
        ...


@runtime_checkable
class DemonstratesTurns(Environment, Protocol):
    """What the warm start asks of an environment of several turns, instead of `Demonstrates`."""

    def expert(self, prompt: Prompt, rng: random.Random) -> Expert:
        """Plays one of the correct conversations, drawn among those it knows."""
        ...

    def alphabet(self) -> Iterable[str]:
        """Every character that a prompt, an expert's response or an observation can contain."""
        ...


@dataclass(frozen=True, slots=True)
class Played:
    """A conversation: responses[i] was answered with observations[i], the last response with the verdict.

    Example: Played(("8", "12"), (Observation((Message("tool", "higher"),)),), Verdict(1.0, True, "8 12"))
    """

    responses: tuple[str, ...]
    observations: tuple[Observation, ...]
    verdict: Verdict | None  # None: max_turns responses and no verdict yet


def play(session: Session, act: Callable[[Observation | None], str], max_turns: int = 100) -> Played:
    """Let a policy answer a session until its verdict, or until it has replied `max_turns` times."""
    responses: list[str] = []
    observations: list[Observation] = []
    while len(responses) < max_turns:
        responses.append(act(observations[-1] if observations else None))
        answer = session.reply(responses[-1])
        if isinstance(answer, Verdict):
            return Played(tuple(responses), tuple(observations), answer)
        observations.append(answer)
    return Played(tuple(responses), tuple(observations), None)


def demonstrates(environment: object) -> bool:
    return isinstance(environment, Demonstrates | DemonstratesTurns)


def demonstrate(environment: Any, prompt: Prompt, rng: random.Random) -> Played:
    """A conversation that earns full reward, from an environment that `demonstrates`. Its one response alone is not scored."""
    if isinstance(environment, DemonstratesTurns):
        return play(environment.open(prompt), environment.expert(prompt, rng).act)
    return Played((environment.demonstration(prompt, rng),), (), None)
