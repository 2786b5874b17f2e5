"""What a response earns: the environment's verdict and other terms, each with its weight. Knows nothing of Ray or HTTP.

Whoever judges a text answers a `ScoreRequest` with a `Verdict`, as the environments' verifiers do: the form of a response (the same
verifiers), a reward model (a pool of its own), a language model as judge. Terms of the length are formulas of
envs/reward_terms/length.py.
`correct` is never touched: pass@k and the success rate stay the environment's word, which is what shows a reward being gamed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from actors.settings import LengthSettings, OverlongSettings
from actors.verifier import ScoreRequest
from envs.reward_terms import length as shaping
from envs.types import Message, Observation, Prompt, Status, Trajectory, Verdict

ScoreFn = Callable[[ScoreRequest], Awaitable[Observation | Verdict]]
VERDICT = "verdict"  # the name of the environment's own term


@dataclass(frozen=True, slots=True)
class FinishedTrajectory:
    """A trajectory that its environment, or a limit, has ended."""

    name: str  # unique over the run
    environment: int  # index in the run's environments
    trajectory: Trajectory
    said: tuple[Message, ...]  # the whole conversation, the last response at its end
    max_tokens: int  # sampling.max_tokens, whatever room was left for this response


class TermFailed(RuntimeError):
    """A term has no value for a response; the message says why. The response is left out, never given 0 for it."""


@dataclass(frozen=True, slots=True)
class Term:
    """`value` raises TermFailed where there is none. A weight of 0 measures without rewarding."""

    name: str
    weight: float
    value: Callable[[FinishedTrajectory], Awaitable[float]]


class RewardFunction:
    """A rollout's RewardFn: weight x verdict + the sum of weight x term.

    What the environment could not judge stays as it is, and no term is asked. Where a term fails, the verdict has status ERROR
    with the reason: it is left out of its group's baseline. Terms of a trajectory are asked all at once. on_event hears of the
    first failure of each term.
    """

    def __init__(
        self, verdict_weight: float, terms: Sequence[Term], on_event: Callable[[str], None] = lambda text: None
    ) -> None:
        self.verdict_weight, self.terms, self._on_event = verdict_weight, tuple(terms), on_event
        self._told: set[str] = set()

    async def __call__(self, ended: FinishedTrajectory) -> Verdict:
        own = ended.trajectory.verdict
        if not own.status.scored:
            return own
        found = await asyncio.gather(*(_finite(term, ended) for term in self.terms))
        values = {VERDICT: own.reward}
        values |= {t.name: v for t, v in zip(self.terms, found, strict=True) if isinstance(v, float)}
        failed = {t.name: v for t, v in zip(self.terms, found, strict=True) if isinstance(v, TermFailed)}
        if failed:
            self._tell(failed)
            detail = "the reward has no " + "; ".join(f"{name}: {error}" for name, error in failed.items())
            return replace(own, reward=0.0, status=Status.ERROR, detail=detail, terms=values)
        reward = self.verdict_weight * own.reward + math.fsum(t.weight * values[t.name] for t in self.terms)
        return replace(own, reward=reward, terms=values)

    def _tell(self, failed: Mapping[str, TermFailed]) -> None:
        for name, error in failed.items():
            if name not in self._told:
                self._told.add(name)
                self._on_event(
                    f"rewards.{name} failed, and such responses are left out and counted in status/error: {error}"
                )


async def _finite(term: Term, ended: FinishedTrajectory) -> float | TermFailed:
    try:
        value = float(await term.value(ended))
    except TermFailed as error:
        return error
    return value if math.isfinite(value) else TermFailed(f"its value is {value}, it has to be a finite number")


# --- terms --------------------------------------------------------------------------------------------------------------


def length_term(settings: LengthSettings) -> Term:
    """Rewards by the tokens of all responses of a trajectory: the first value of `correct` or `wrong` up to `free`, the second
    from `full` on (None: the most that one response may have)."""

    async def value(ended: FinishedTrajectory) -> float:
        trajectory, s = ended.trajectory, settings
        share = shaping.progress(trajectory.response_tokens, s.free, ended.max_tokens if s.full is None else s.full)
        start, end = s.correct if trajectory.verdict.correct else s.wrong
        return shaping.between(start, end, share, s.shape)

    return Term("length", settings.weight, value)


def overlong_term(settings: OverlongSettings) -> Term:
    """Punishes the length of the longest response of a trajectory, since the limit is one response's."""

    async def value(ended: FinishedTrajectory) -> float:
        longest = max(len(turn.response_ids) for turn in ended.trajectory.turns)
        return shaping.overlong(longest, ended.max_tokens, settings.buffer)

    return Term("overlong", settings.weight, value)


def asked_term(name: str, weight: float, score: ScoreFn, request: Callable[[FinishedTrajectory], ScoreRequest]) -> Term:
    """The reward that somebody gives who can fail, but answers in any case: a verdict that is not scored is no value."""

    async def value(ended: FinishedTrajectory) -> float:
        answer = await score(request(ended))
        if not isinstance(answer, Verdict):
            raise TermFailed("it answered with an observation where a verdict was asked for")
        if not answer.status.scored:
            raise TermFailed(answer.detail or str(answer.status))
        return answer.reward

    return Term(name, weight, value)


def last_response(ended: FinishedTrajectory) -> ScoreRequest:
    """The last response, to the whole conversation before it as the prompt: what judges of a text are asked about."""
    prompt = replace(ended.trajectory.prompt, messages=ended.said[:-1])
    return ScoreRequest(ended.name, ended.environment, prompt, (ended.said[-1].content,))


def form_request(forms: Sequence[str], index: int) -> Callable[[FinishedTrajectory], ScoreRequest]:
    """Of envs/reward_terms/format_match.py, which verifiers have as environment `index`; forms: a pattern for each environment
    of the run."""

    def request(ended: FinishedTrajectory) -> ScoreRequest:
        texts, asked = ended.trajectory.texts, ended.trajectory.prompt
        task = {"pattern": forms[ended.environment], "responses": len(texts)}
        return ScoreRequest(f"{ended.name}/form", index, Prompt(asked.env, asked.split, asked.index, (), task), texts)

    return request
