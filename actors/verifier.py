"""Scores responses by their environments, in a killable subprocess with a time limit per response.

The subprocess runs actors/verifier_worker.py. A request carries all responses of its trajectory so far. A session that the
subprocess still has is given the last one; any other (first turn, subprocess restarted, another verifier) is opened anew and
replayed, which sessions promise is deterministic. An environment that raises or does not come back costs its own trajectory a
Verdict with status ERROR or TIMEOUT; nothing is lost and the other sessions go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from envs.isolation.killable import KillableError, KillableProcess, KillableTimeout
from envs.types import Message, Observation, Prompt, Status, Verdict

MAX_TOGETHER = 64
BUILD_TIMEOUT_S = 600.0  # for the environments: some load data sets
WORKER = "actors.verifier_worker"  # the module that the subprocess runs


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """Holds what catalog.load needs to build the same environment in another process. Example: EnvSpec("countdown", {}, 0)"""

    name: str
    params: Mapping[str, Any]
    seed: int
    module_path: tuple[str, ...] = ()  # where modules of the user are, see catalog.module_path


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Asks for the score of a trajectory's last response.

    session    unique to the trajectory and to who scores it
    prompt     what was asked; its `environment` is an index into the verifier's specs
    responses  all responses of the trajectory so far, the last one not yet scored
    ended      other sessions, which nobody will ask about again: those that a limit ended, since a verdict ends its own
    scorer     a key of verifier_worker.SCORERS, for what is scored by something else than the prompt's own environment
    Example: ScoreRequest("iteration 3/0:toy/train/7/2", Prompt("toy", "train", 7, ()), ("4",))
    """

    session: str
    prompt: Prompt
    responses: tuple[str, ...]
    scorer: str | None = None
    ended: tuple[str, ...] = ()


class Verifier:
    """Scores requests in one subprocess. Not thread-safe: one call at a time."""

    def __init__(self, specs: Sequence[EnvSpec], timeout_s: float) -> None:
        self._specs = [asdict(s) for s in specs]
        self._timeout_s = timeout_s
        self._process = KillableProcess()
        self._configured: int | None = None  # process id of the subprocess that has the environments
        self._together = MAX_TOGETHER  # responses scored in one call
        self.done = (
            0  # calls of the subprocess that ended, with or without an answer: it grows as long as work makes progress
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        """Returns one answer a request, in order. Never raises for what an environment does."""
        answers: list[Observation | Verdict] = []
        while len(answers) < len(requests):
            answers += self._score_together(requests[len(answers) : len(answers) + self._together])
        return answers

    def _score_together(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        """Scores several responses in one call, as long as that takes no longer than one response may: a call costs more
        than most verdicts. Where it does take longer, or ends the subprocess, they are scored again, each by itself."""
        if len(requests) > 1:
            try:
                answers = self._call(requests)
            except KillableError:
                self._together = 1
            else:
                self._together = min(MAX_TOGETHER, 2 * self._together)
                return [_read(answer) for answer in answers]
        answer = self._score_alone(requests[0])
        if isinstance(answer, Observation) or answer.status.scored:
            self._together = min(MAX_TOGETHER, 2 * self._together)
        return [answer]

    def _score_alone(self, request: ScoreRequest) -> Observation | Verdict:
        try:
            return _read(self._call([request])[0])
        except KillableTimeout:
            return Verdict(
                0.0, status=Status.TIMEOUT, detail=f"no verdict within verifiers.timeout_s = {self._timeout_s:g} s"
            )
        except KillableError as error:
            return Verdict(0.0, status=Status.ERROR, detail=str(error))

    def prepare(self) -> None:
        """Builds the environments. Raises KillableError with the sentence of the first that cannot be."""
        if self._configured is None or self._configured != self._process.pid:
            self._process.call(f"{WORKER}:configure", [self._specs], BUILD_TIMEOUT_S)
            self._configured = self._process.pid
            self.done += 1

    def _call(self, requests: Sequence[ScoreRequest]) -> list[dict[str, Any]]:
        self.prepare()
        try:
            return self._process.call(f"{WORKER}:answers", [[asdict(r) for r in requests]], self._timeout_s)
        finally:
            self.done += 1

    def configure(self, specs: Sequence[EnvSpec]) -> None:
        """Changes to other environments; sessions under way are forgotten."""
        self._specs = [asdict(s) for s in specs]
        self._configured = None

    def close(self) -> None:
        self._process.close()


def _read(answer: dict[str, Any]) -> Observation | Verdict:
    if "error" in answer:
        return Verdict(0.0, status=Status.ERROR, detail=answer["error"])
    if answer["observation"] is not None:
        return Observation(tuple(Message(**m) for m in answer["observation"]), answer["reward"])
    verdict = Verdict(**answer["verdict"])
    return replace(verdict, status=Status(verdict.status))
