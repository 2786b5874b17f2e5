"""Computes a trajectory's reward: the weighted sum of the environment's verdict and of other terms. Knows nothing of Ray or HTTP.

Every scorer of text answers a `ScoreRequest` with a `Verdict`, as the environments' verifiers do: the format of a response (the
same verifiers), a reward model (a pool of its own), a language model as judge. Terms of the length are formulas of
envs/reward_terms/length.py.
`correct` is never touched: pass@k and the success rate stay the environment's word, which is what shows a reward being gamed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from actors.settings import FunctionSettings, LengthSettings, OverlongSettings
from actors.verifier import ScoreRequest
from envs.reward_terms import length
from envs.types import Message, Observation, Prompt, Status, Trajectory, Verdict

ScoreFn = Callable[[ScoreRequest], Awaitable[Observation | Verdict]]
VERDICT = "verdict"  # the name of the environment's own term


@dataclass(frozen=True, slots=True)
class FinishedTrajectory:
    """Holds a trajectory that its environment, or a limit, has ended, with what the terms of a reward need beside it.

    name          unique over the run: "iteration 3/0:toy/train/7/2"
    conversation  every message, the last response at its end
    max_tokens    sampling.max_tokens, whatever room was left for this response
    """

    name: str
    trajectory: Trajectory
    conversation: tuple[Message, ...]
    max_tokens: int


class TermFailed(RuntimeError):
    """Reports that a term has no value for a response, and why. The response is left out; it never counts as a 0."""


@dataclass(frozen=True, slots=True)
class Term:
    """Names a term of the reward and its weight. `value` raises TermFailed where it has none; weight 0 only measures."""

    name: str
    weight: float
    value: Callable[[FinishedTrajectory], Awaitable[float]]


class RewardFunction:
    """Computes verdict_weight x verdict + the sum of weight x term: a rollout's RewardFn.

    A verdict that is not scored stays as it is, and the terms are not computed. Where a term fails, the verdict has status ERROR
    with the reason and is left out of its group's baseline. The terms of a trajectory are computed concurrently. `on_event` gets
    one sentence at the first failure of each term.
    """

    def __init__(
        self, verdict_weight: float, terms: Sequence[Term], on_event: Callable[[str], None] = lambda text: None
    ) -> None:
        self.verdict_weight, self.terms, self._on_event = verdict_weight, tuple(terms), on_event
        self._reported: set[str] = set()  # names of terms whose failure was reported

    async def __call__(self, finished: FinishedTrajectory) -> Verdict:
        own = finished.trajectory.verdict
        if not own.status.scored:
            return own
        results = await asyncio.gather(*(_finite(term, finished) for term in self.terms))
        values = {VERDICT: own.reward}
        values |= {t.name: v for t, v in zip(self.terms, results, strict=True) if isinstance(v, float)}
        failed = {t.name: v for t, v in zip(self.terms, results, strict=True) if isinstance(v, TermFailed)}
        if failed:
            self._report(failed)
            detail = "the reward has no " + "; ".join(f"{name}: {error}" for name, error in failed.items())
            return replace(own, reward=0.0, status=Status.ERROR, detail=detail, terms=values)
        reward = self.verdict_weight * own.reward + math.fsum(t.weight * values[t.name] for t in self.terms)
        return replace(own, reward=reward, terms=values)

    def _report(self, failed: Mapping[str, TermFailed]) -> None:
        for name, error in failed.items():
            if name not in self._reported:
                self._reported.add(name)
                self._on_event(
                    f"rewards.{name} failed, and such responses are left out and counted in status/error: {error}"
                )


async def _finite(term: Term, finished: FinishedTrajectory) -> float | TermFailed:
    try:
        value = float(await term.value(finished))
    except TermFailed as error:
        return error
    return value if math.isfinite(value) else TermFailed(f"its value is {value}, it has to be a finite number")


# --- terms --------------------------------------------------------------------------------------------------------------


def length_term(settings: LengthSettings) -> Term:
    """Builds the term "length", a function of the tokens in all responses of a trajectory.

    It is the first value of `correct` or `wrong` up to `free` tokens and the second from `full` on (None: sampling.max_tokens).
    """

    async def value(finished: FinishedTrajectory) -> float:
        trajectory, s = finished.trajectory, settings
        share = length.progress(trajectory.response_tokens, s.free, finished.max_tokens if s.full is None else s.full)
        start, end = s.correct if trajectory.verdict.correct else s.wrong
        return length.between(start, end, share, s.shape)

    return Term("length", settings.weight, value)


def overlong_term(settings: OverlongSettings) -> Term:
    """Builds the term "overlong" from the longest response of a trajectory, since max_tokens limits each response by itself."""

    async def value(finished: FinishedTrajectory) -> float:
        longest = max(len(turn.response_ids) for turn in finished.trajectory.turns)
        return length.overlong(longest, finished.max_tokens, settings.buffer)

    return Term("overlong", settings.weight, value)


def scored_term(
    name: str, weight: float, score: ScoreFn, request: Callable[[FinishedTrajectory], ScoreRequest]
) -> Term:
    """Builds a term whose value is the reward that `score` gives; a verdict that is not scored raises TermFailed."""

    async def value(finished: FinishedTrajectory) -> float:
        answer = await score(request(finished))
        if not isinstance(answer, Verdict):
            raise TermFailed("it answered with an observation where a verdict was asked for")
        if not answer.status.scored:
            raise TermFailed(answer.detail or str(answer.status))
        return answer.reward

    return Term(name, weight, value)


def last_response(finished: FinishedTrajectory) -> ScoreRequest:
    """Asks for a score of the last response, with the whole conversation before it as the prompt (judges, reward models)."""
    prompt = replace(finished.trajectory.prompt, messages=finished.conversation[:-1])
    return ScoreRequest(finished.name, prompt, (finished.conversation[-1].content,))


def function_request(settings: FunctionSettings) -> Callable[[FinishedTrajectory], ScoreRequest]:
    """Returns the function that asks a verifier for what the user's own function gives the last response.

    The scorer is envs/reward_terms/own_function.py.
    """

    def request(finished: FinishedTrajectory) -> ScoreRequest:
        plain = last_response(finished)
        task = {
            "function": settings.path,
            "reference": settings.reference,
            "chat": settings.chat,
            "task": dict(plain.prompt.task),
        }
        prompt = replace(plain.prompt, task=task)
        return replace(plain, session=f"{finished.name}/function", prompt=prompt, scorer="function")

    return request


def format_request(patterns: Sequence[str]) -> Callable[[FinishedTrajectory], ScoreRequest]:
    """Returns the function that asks a verifier how many responses match their environment's pattern.

    patterns: one regular expression for each environment of the run. The scorer is envs/reward_terms/format_match.py.
    """

    def request(finished: FinishedTrajectory) -> ScoreRequest:
        texts, prompt = finished.trajectory.texts, finished.trajectory.prompt
        task = {"pattern": patterns[prompt.environment], "responses": len(texts)}
        asked = Prompt(prompt.env, prompt.split, prompt.index, (), task, prompt.environment)
        return ScoreRequest(f"{finished.name}/form", asked, texts, scorer="format")

    return request
