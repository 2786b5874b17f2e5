"""Runs in a verifier's subprocess: builds environments, keeps their sessions, answers requests.

Requests and answers are JSON values, as `KillableProcess` carries them. actors/verifier.py is the other side.
"""

from __future__ import annotations

import math
import traceback
from contextlib import suppress
from dataclasses import asdict
from typing import Any, cast

from envs import catalog
from envs.base import Closes, Environment, Session
from envs.types import Message, Observation, Prompt, Verdict

# Scorers that every verifier has beside its environments, by the name a request gives.
SCORERS = {
    "format": "envs.reward_terms.format_match:Form",
    "function": "envs.reward_terms.own_function:OwnFunction",
}
MAX_ERROR = 1500  # characters of what is kept of an error; the innermost frames are
MAX_SESSIONS = 100_000  # kept by one subprocess; beyond it the oldest is dropped and, if asked for again, replayed

_environments: list[Environment] = []
_scorers: dict[str, Environment] = {}  # by name, see SCORERS
_sessions: dict[str, tuple[Session, int]] = {}  # session id -> (session, responses it has been given)


def configure(specs: list[dict[str, Any]]) -> None:
    """Builds the environments, and forgets the sessions of those before."""
    for folder in (folder for spec in specs for folder in spec["module_path"]):
        catalog.look_in(folder)
    _environments[:] = [catalog.load(s["name"], s["params"], seed=s["seed"]) for s in specs]
    _scorers.update({name: catalog.load(path, {}, seed=0) for name, path in SCORERS.items()})
    for name in list(_sessions):
        _end(name)


def answers(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one answer a request, in order: an observation, a verdict or the error that the environment raised."""
    out: list[dict[str, Any]] = []
    for request in requests:
        try:
            out.append(_answer(request))
        except Exception as error:  # noqa: BLE001 - the environment's; it costs its own trajectory alone
            _end(request["session"])
            out.append({"error": _told(error)})
    return out


def _told(error: Exception) -> str:
    """Returns the error with the place in the environment that raised it in one line, and below it the environment's frames."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_code.co_filename == __file__:
        at = at.tb_next
    text = catalog.error_in_one_line(error.with_traceback(at))
    frames = "".join(traceback.format_tb(at))
    return f"{text}\n{frames[-(MAX_ERROR - len(text) - 1) :]}".rstrip()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = request["prompt"]
    fields: dict[str, Any] = {**raw, "messages": tuple(Message(**m) for m in raw["messages"])}
    responses: list[str] = request["responses"]
    scorer: str | None = request["scorer"]
    prompt = Prompt(**fields)
    for name in request["ended"]:
        _end(name)
    session, answered = _sessions.pop(request["session"], (None, 0))
    if session is None or answered != len(responses) - 1:
        _close(session)
        session, answered = (_environments[prompt.environment] if scorer is None else _scorers[scorer]).open(prompt), 0
        if len(_sessions) >= MAX_SESSIONS:
            _end(next(iter(_sessions)))  # the one that waited longest
    _sessions[request["session"]] = (session, len(responses))
    result: Observation | Verdict = Observation(())
    for text in responses[answered:]:
        result = session.reply(text)
    _validate(result)
    if isinstance(result, Verdict):
        _end(request["session"])
        return {"observation": None, "verdict": asdict(result)}
    return {"observation": [asdict(m) for m in result.messages], "reward": result.reward, "verdict": None}


def _end(name: str) -> None:
    """Forgets a session, if it is kept, and closes it."""
    _close(_sessions.pop(name, (None, 0))[0])


def _close(session: Session | None) -> None:
    if isinstance(session, Closes):
        with suppress(Exception):  # its answers are given already
            session.close()


def _validate(result: object) -> None:
    """Raises TypeError or ValueError for an answer of the user's code that does not keep to its type."""
    if not isinstance(result, Observation | Verdict):
        raise TypeError(f"a session answered with {type(result).__name__}: it has to be an Observation or a Verdict")
    reward = cast(object, result.reward)
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        raise ValueError(f"the reward is {reward!r}: it has to be a finite number")
