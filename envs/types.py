"""Defines the wire types: everything that crosses between environments, generators, verifiers and the learner.

All are frozen and hold plain Python values, so they pickle small and import without torch.
Token ids come from the engine and are what is trained on: nothing re-tokenises a response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Split = Literal["train", "eval"]
Role = Literal["system", "user", "assistant", "tool"]


class Status(StrEnum):
    """Says how a trajectory ended. OK and TRUNCATED carry a reward the environment chose; from all others it is 0.

    TURNS, TOKENS and SECONDS are limits of the run: the policy was not done within them, which is as much its failure as
    a wrong answer is. `Verdict.detail` names the limit.
    """

    OK = "ok"
    TRUNCATED = "truncated"  # the last response hit max_tokens before the model ended it, and was scored all the same
    TURNS = "turns"  # another turn was wanted beyond sampling.max_turns
    TOKENS = "tokens"  # another turn was wanted beyond sampling.max_total_tokens or generators.max_model_len
    SECONDS = "seconds"  # another turn was wanted beyond sampling.max_seconds
    TIMEOUT = "timeout"  # the verdict took longer than verifiers.timeout_s
    ERROR = "error"  # the environment raised, or a term of the reward failed; `Verdict.detail` has the reason

    @property
    def scored(self) -> bool:
        """Says whether the reward is about the policy: a verifier that fails must not teach it."""
        return self not in (Status.TIMEOUT, Status.ERROR)


@dataclass(frozen=True, slots=True)
class Message:
    """Holds one chat message. Example: Message("user", "Make 24 from 4 6 1 1.")"""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Holds one task. `env` is the name its metrics are kept under: a mixture gives each family its own.

    Example: Prompt("countdown", "train", 7, (Message("user", "3 4 5 6 = 21"),), {"numbers": [3, 4, 5, 6], "target": 21})
    """

    env: str
    split: Split
    index: int
    messages: tuple[Message, ...]
    task: Mapping[str, Any] = field(
        default_factory=dict
    )  # JSON values only: what the session needs to score a response
    environment: int = 0  # index among the run's environments; the curriculum sets it

    @property
    def key(self) -> str:
        """Names the prompt, uniquely among its environment's in a run: 'countdown/train/7'."""
        return f"{self.env}/{self.split}/{self.index}"


@dataclass(frozen=True, slots=True)
class Observation:
    """Answers a response that does not end the trajectory. Example: Observation((Message("tool", "42"),))

    reward    what that response earned by itself, any finite float: for turn-level advantages (objective.credit) and nothing else
    """

    messages: tuple[Message, ...]
    reward: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Says how a trajectory was scored.

    reward    any finite float; the built-in tasks give 0.0 or 1.0. Where a run has terms (actors/rewards), their weighted sum
    correct   what pass@k counts: the environment's word alone, whatever the reward is made of
    solution  canonical form of a correct answer, equal for equal solutions, so that distinct ones can be counted
    terms     what the reward was made of, before weights, by name: "verdict" is what the environment gave
    Example: Verdict(1.0, correct=True, solution="(3+4)*3")
    """

    reward: float
    correct: bool = False
    solution: str | None = None
    status: Status = Status.OK
    detail: str = ""
    terms: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """Holds one exchange: the tokens put before the model, then the tokens it sampled.

    context_ids   tokens added since the last turn (the whole prompt in turn 0, an observation later): masked in training
    response_ids  sampled tokens, the end-of-turn token included when finish == "stop"
    logprobs      engine log-prob of each response token at the sampling temperature, same length as response_ids
    version_min / version_max  oldest and newest policy version that sampled a token of this response
    reward        of the observation that followed; the verdict's reward is not in it
    Example: Turn((5, 9, 1), (12, 2), (-0.7, -0.1), "stop", 3, 3)
    """

    context_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    version_min: int
    version_max: int
    reward: float = 0.0


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Holds a prompt's turns and the verdict on them."""

    prompt: Prompt
    turns: tuple[Turn, ...]
    texts: tuple[str, ...]  # each turn's response, decoded
    verdict: Verdict

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Joins all tokens in order, contexts and responses."""
        return tuple(t for turn in self.turns for t in (*turn.context_ids, *turn.response_ids))

    @property
    def action_mask(self) -> tuple[bool, ...]:
        """Marks with True the tokens that the policy sampled; same length as token_ids."""
        return tuple(
            m for turn in self.turns for m in (*(False,) * len(turn.context_ids), *(True,) * len(turn.response_ids))
        )

    @property
    def engine_logprobs(self) -> tuple[float, ...]:
        """Gives the engine's log-prob where action_mask, 0.0 elsewhere; same length as token_ids."""
        return tuple(x for turn in self.turns for x in (*(0.0,) * len(turn.context_ids), *turn.logprobs))

    @property
    def tokens(self) -> int:
        """Counts all tokens, contexts and responses."""
        return sum(len(turn.context_ids) + len(turn.response_ids) for turn in self.turns)

    @property
    def response_tokens(self) -> int:
        return sum(len(turn.response_ids) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Group:
    """Holds all trajectories of one prompt: the unit a group baseline is taken over."""

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
