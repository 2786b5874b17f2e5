"""A verifier: sessions of environments, scored in a killable subprocess with a time limit per response.

A request carries all responses of its trajectory so far. A session that the subprocess still has is given the last one; any
other (first turn, subprocess restarted, another verifier) is opened anew and replayed, which sessions promise is
deterministic. An environment that raises or does not come back costs its own trajectory a Verdict with status ERROR or
TIMEOUT; nothing is lost and the other sessions go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from envs import catalog
from envs.base import Environment, Session
from envs.isolation.killable import Sandbox, SandboxError, SandboxTimeout
from envs.types import Message, Observation, Prompt, Status, Verdict

# Scorers that every verifier has beside its environments, by the name a request gives.
SCORERS = {"format": "envs.reward_terms.format_match:Form"}
MAX_TOGETHER = 64
MAX_SESSIONS = 100_000  # kept by one subprocess; beyond it the oldest is dropped and, if asked for again, replayed


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """What catalog.load needs to build the same environment in another process. Example: EnvSpec("countdown", {}, 0)"""

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
    scorer     a key of SCORERS, for what is scored by something else than the prompt's own environment
    Example: ScoreRequest("iteration 3/0:toy/train/7/2", Prompt("toy", "train", 7, ()), ("4",))
    """

    session: str
    prompt: Prompt
    responses: tuple[str, ...]
    scorer: str | None = None


class Verifier:
    """Plain class around one subprocess. Not thread-safe: one call at a time."""

    def __init__(self, specs: Sequence[EnvSpec], timeout_s: float) -> None:
        self._specs = [asdict(s) for s in specs]
        self._timeout_s = timeout_s
        self._sandbox = Sandbox()
        self._configured: int | None = None  # process id of the subprocess that has the environments
        self._together = MAX_TOGETHER  # responses scored in one call

    def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        """One answer a request, in order. Never raises for what an environment does."""
        answers: list[Observation | Verdict] = []
        while len(answers) < len(requests):
            answers += self._judge_together(requests[len(answers) : len(answers) + self._together])
        return answers

    def _judge_together(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        """Several responses in one call, as long as that takes no longer than one response may: a call costs more than most
        verdicts. Where it does take longer, or ends the subprocess, they are scored again, each by itself."""
        if len(requests) > 1:
            try:
                found = self._call("_answers", [[asdict(r) for r in requests]])
            except SandboxError:
                self._together = 1
            else:
                self._together = min(MAX_TOGETHER, 2 * self._together)
                return [_read(answer) for answer in found]
        answer = self._judge(requests[0])
        if isinstance(answer, Observation) or answer.status.scored:
            self._together = min(MAX_TOGETHER, 2 * self._together)
        return [answer]

    def _judge(self, request: ScoreRequest) -> Observation | Verdict:
        try:
            return _read(self._call("_answers", [[asdict(request)]])[0])
        except SandboxTimeout:
            return Verdict(
                0.0, status=Status.TIMEOUT, detail=f"no verdict within verifiers.timeout_s = {self._timeout_s:g} s"
            )
        except SandboxError as error:
            return Verdict(0.0, status=Status.ERROR, detail=str(error))

    def prepare(self) -> None:
        """Build the environments. Raises SandboxError with the sentence of the first that cannot be."""
        if self._configured is None or self._configured != self._sandbox.pid:
            self._sandbox.call("actors.verifier:_configure", [self._specs], 600.0)
            self._configured = self._sandbox.pid

    def _call(self, function: str, arguments: list[Any]) -> Any:
        self.prepare()
        return self._sandbox.call(f"actors.verifier:{function}", arguments, self._timeout_s)

    def configure(self, specs: Sequence[EnvSpec]) -> None:
        """Other environments from now on; sessions under way are forgotten."""
        self._specs = [asdict(s) for s in specs]
        self._configured = None

    def close(self) -> None:
        self._sandbox.close()


def _read(answer: dict[str, Any]) -> Observation | Verdict:
    if "error" in answer:
        return Verdict(0.0, status=Status.ERROR, detail=answer["error"])
    if answer["observation"] is not None:
        return Observation(tuple(Message(**m) for m in answer["observation"]), answer["reward"])
    verdict = Verdict(**answer["verdict"])
    return replace(verdict, status=Status(verdict.status))


# --- inside the subprocess ---------------------------------------------------------------------------------------------

_environments: list[Environment] = []
_scorers: dict[str, Environment] = {}
_sessions: dict[str, tuple[Session, int]] = {}  # session id -> (session, responses it has been given)


def _configure(specs: list[dict[str, Any]]) -> None:
    for place in (place for spec in specs for place in spec["module_path"]):
        catalog.look_in(place)
    _environments[:] = [catalog.load(s["name"], s["params"], seed=s["seed"]) for s in specs]
    _scorers.update({name: catalog.load(path, {}, seed=0) for name, path in SCORERS.items()})
    _sessions.clear()


def _answers(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for request in requests:
        try:
            out.append(_answer(request))
        except Exception as error:  # noqa: BLE001 - the environment's; it costs its own trajectory alone
            out.append({"error": f"{type(error).__name__}: {error}"[:2000]})
    return out


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    raw = request["prompt"]
    prompt = Prompt(**{**raw, "messages": tuple(Message(**m) for m in raw["messages"])})
    responses = request["responses"]
    session, given = _sessions.pop(request["session"], (None, 0))
    if session is None or given != len(responses) - 1:
        scorer = request["scorer"]
        session, given = (_environments[prompt.environment] if scorer is None else _scorers[scorer]).open(prompt), 0
    result: Observation | Verdict = Observation(())
    for text in responses[given:]:
        result = session.reply(text)
    if not isinstance(result, Observation | Verdict):
        raise TypeError(f"a session answered with {type(result).__name__}: it has to be an Observation or a Verdict")
    if not isinstance(result.reward, int | float) or not math.isfinite(result.reward):
        raise ValueError(f"the reward is {result.reward!r}: it has to be a finite number")
    if isinstance(result, Verdict):
        return {"observation": None, "verdict": asdict(result)}
    if len(_sessions) >= MAX_SESSIONS:
        _sessions.pop(next(iter(_sessions)))
    _sessions[request["session"]] = (session, len(responses))
    return {"observation": [asdict(m) for m in result.messages], "reward": result.reward, "verdict": None}
