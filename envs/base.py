"""Defines the two protocols that every environment implements, and the optional ones for demonstrations and a response format.

An environment is a class with `size`, `prompt` and `open` (Environment); what `open` returns has `reply` (Session). Example:

    class Sums:
        def __init__(self, seed, high=9):  # the run gives the seed, the recipe everything else
            self.seed, self.high = seed, high

        def size(self, split):
            return None  # prompts are generated without end

        def prompt(self, split, index):
            rng = task_random(self.seed, split, index)
            while True:
                a, b = rng.randint(0, self.high), rng.randint(0, self.high)
                if in_split(f"{a}+{b}=", split):  # 20 % of all sums are in the eval split only
                    return Prompt("sums", split, index, (Message("user", f"{a}+{b}="),), {"answer": str(a + b)})

        def open(self, prompt):
            answer = prompt.task["answer"]
            return OneReply(lambda text: Verdict(1.0, correct=True) if text.strip() == answer else Verdict(0.0))

with names from `envs.types` and `envs.tasks`. A recipe uses it as `environments: [{name: "my_module:Sums", params: {high: 99}}]`,
with my_module.py beside the recipe; `isentrope play my_module:Sums high=99` shows a prompt.

An environment must be deterministic: `prompt(split, index)` depends on the constructor's arguments and on its own two
arguments, never on earlier calls. Runs resume at any position and every process builds its own copy of the environment. A
session scores one trajectory and is then discarded; without a reset() no state can leak between trajectories.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from envs.types import Observation, Prompt, Split, Verdict


class Session(Protocol):
    """Scores one trajectory.

    Must be deterministic given the responses: when a verifier process is restarted or replaced, it opens a new session for
    the same prompt and replays the responses so far.
    """

    def reply(self, text: str) -> Observation | Verdict:
        """Takes the model's next response.

        Returns an Observation to continue with another turn (its messages are shown to the model), or a Verdict to end.
        An exception becomes a Verdict with status ERROR, which is left out of training: return Verdict(0.0) for a response
        that is merely wrong or malformed.
        """
        ...


class Environment(Protocol):
    """Provides prompts, and a session that scores the responses to each."""

    def size(self, split: Split) -> int | None:
        """Returns the number of prompts in the split; None if they are generated without end; 0 for an empty eval split."""
        ...

    def prompt(self, split: Split, index: int) -> Prompt:
        """Returns the prompt at `index` >= 0 of a split; in a finite split, index n is prompt n modulo its size.

        "train" and "eval" must have no task in common. Everything `open` needs goes into `Prompt.task` as JSON values.
        """
        ...

    def open(self, prompt: Prompt) -> Session:
        """Returns a new session; called once for each trajectory, possibly in another process than `prompt` was."""
        ...


@runtime_checkable
class Closes(Protocol):
    """Adds an end to a session that holds what costs something: a game, a process, a connection."""

    def close(self) -> None:
        """Lets go of it. Called once nobody will ask the session again: after its verdict or an exception, at a limit on turns,
        tokens or seconds, and when other sessions need the room."""
        ...


@runtime_checkable
class HasForm(Protocol):
    """Declares the format of a well-formed response, used by a reward's format term when the recipe gives no pattern of its own.

    form: regular expression that a whole response matches, surrounding white space aside.
    """

    form: str


@runtime_checkable
class Demonstrates(Protocol):
    """Adds correct responses to an environment of one response, as the warm start (`isentrope init-model`) needs them."""

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns a response that earns the full reward, drawn uniformly from all correct ones where they can be listed."""
        ...

    def alphabet(self) -> Iterable[str]:
        """Returns every character of all prompts and demonstrations: the vocabulary of the warm start's character tokenizer."""
        ...


class Expert(Protocol):
    """Plays one prompt correctly, turn by turn; made for one session and not reused."""

    def act(self, observation: Observation | None) -> str:
        """Returns the next response. `observation` is the session's latest one, None before the first response."""
        ...


@runtime_checkable
class DemonstratesTurns(Environment, Protocol):
    """Adds correct conversations to an environment of several turns, as the warm start (`isentrope init-model`) needs them."""

    def expert(self, prompt: Prompt, rng: random.Random) -> Expert:
        """Returns an expert that plays one of the correct conversations, drawn at random from those it knows."""
        ...

    def alphabet(self) -> Iterable[str]:
        """Returns every character of all prompts, expert responses and observations."""
        ...


@dataclass(frozen=True, slots=True)
class Played:
    """Holds a played conversation: responses[i] was answered with observations[i], the last response with the verdict.

    Example: Played(("8", "12"), (Observation((Message("tool", "higher"),)),), Verdict(1.0, True, "8 12"))
    """

    responses: tuple[str, ...]
    observations: tuple[Observation, ...]
    verdict: Verdict | None  # None: still without a verdict after max_turns responses, or never scored


def play(session: Session, act: Callable[[Observation | None], str], max_turns: int = 100) -> Played:
    """Runs a policy in a session until the verdict, or until it has given `max_turns` responses.

    act: maps the latest observation (None at first) to the next response.
    """
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
    """Returns whether the environment can demonstrate correct responses, in one turn or in several."""
    return isinstance(environment, Demonstrates | DemonstratesTurns)


def demonstrate(environment: Any, prompt: Prompt, rng: random.Random) -> Played:
    """Returns a conversation that earns the full reward, from an environment for which `demonstrates` is true.

    A demonstration of one response is returned unscored, with verdict None.
    """
    if isinstance(environment, DemonstratesTurns):
        return play(environment.open(prompt), environment.expert(prompt, rng).act)
    return Played((environment.demonstration(prompt, rng),), (), None)
