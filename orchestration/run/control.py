"""Takes requests to a run that goes on, through files in RUN/control, so that they come from any host that sees the folder.

A request is ID.request.json, written as a whole; the driver polls once a second, carries it out and writes ID.answer.json, which
the asking side reads and removes. Requests that were there before the driver are refused: nobody waits for them any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError, IsentropeError
from orchestration.telemetry.sinks.status import read_status

FOLDER = "control"
LOCK_FILE = ".lock"  # held by the driver
POLL_S = 1.0
ANSWER_S = 8.0  # for a driver that polls once a second, on a busy machine
SILENT_S = 30.0  # a heartbeat this old is one of a driver that is gone or frozen
LOOK_AGAIN_S = 2.5  # clocks of two hosts differ: only a heartbeat that stands still is old
LARGEST = 10_000  # bytes of a request


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds what the driver said: one sentence, and whether it does what was asked."""

    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Handlers:
    """Holds what a driver does on request. Each returns a sentence at once; what takes longer goes on behind it.

    stop   True: at once, without a checkpoint
    scale  the number of generators that there should be
    """

    stop: Callable[[bool], str]
    scale: Callable[[int], str]
    tick: Callable[[], None] = lambda: None  # at every look, once a second: tells the status of the members


# --- the driver's side ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(run: Path, handlers: Handlers, poll_s: float = POLL_S) -> AsyncIterator[None]:
    """Answers requests to the run of this folder while the context lasts."""
    task = asyncio.create_task(serve(run, handlers, poll_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def serve(run: Path, handlers: Handlers, poll_s: float = POLL_S) -> None:
    """Answers requests until it is cancelled."""
    folder = run / FOLDER
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who may write here may stop the run
        for path in folder.iterdir():
            _take(path, lambda text: Answer(False, "the run began only after this was asked: ask again"))
    while True:
        # Listing is done in a thread: a shared file system that hangs must not hold the loop.
        for path in await asyncio.to_thread(_requests, folder):
            _take(path, lambda text: _answer(text, handlers))
        handlers.tick()
        await asyncio.sleep(poll_s)


def _requests(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.request.json"))
    except OSError:
        return []


def _take(path: Path, answer: Callable[[bytes], Answer]) -> None:
    """Answers one request file and removes it, whatever it is."""
    if not path.name.endswith(".request.json"):
        return
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        path.unlink()  # before it is carried out: a request that cannot be removed would be carried out every second
    except OSError:
        return
    reply = path.with_name(path.name.removesuffix(".request.json") + ".answer.json")
    with contextlib.suppress(OSError):
        _write(reply, asdict(answer(text)))


def _answer(text: bytes, handlers: Handlers) -> Answer:
    try:
        request = json.loads(text) if len(text) <= LARGEST else None
    except (ValueError, RecursionError):
        request = None
    try:
        match request:
            case {"do": "stop", "now": bool(now)}:
                return Answer(True, handlers.stop(now))
            case {"do": "scale", "generators": int(wanted)} if not isinstance(wanted, bool):
                return Answer(True, handlers.scale(wanted))
    except IsentropeError as error:
        return Answer(False, str(error))
    return Answer(
        False, 'a request is {"do": "stop", "now": false} or {"do": "scale", "generators": 2}: this is neither'
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_name(path.name + ".writing")
    draft.write_text(json.dumps(content), "utf-8")
    draft.replace(path)


# --- the asking side ------------------------------------------------------------------------------------------------------


def ask(run: Path, request: dict[str, Any], wait_s: float = ANSWER_S) -> str:
    """Asks the driver of a run; returns its sentence. Raises IsentropeError where it refuses, or does not answer in time."""
    state = alive(run)
    if state != "running":
        raise IsentropeError(f"{run} cannot be asked: {_WHY.get(state, f'the run has {state}')}")
    folder = run / FOLDER
    name = f"{time.time():.6f}-{os.urandom(4).hex()}"
    asked, answered = folder / f"{name}.request.json", folder / f"{name}.answer.json"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _write(asked, request)
    except OSError as error:
        raise IsentropeError(f"{folder} cannot be written, so the run cannot be asked: {error}") from None
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if answered.exists():
            reply = json.loads(answered.read_text("utf-8"))
            answered.unlink(missing_ok=True)
            if not reply["ok"]:
                raise IsentropeError(reply["text"])
            return reply["text"]
        time.sleep(0.1)  # another process, perhaps another host: there is nothing to wait on
    try:
        asked.unlink()  # so that nothing happens later that nobody waits for
    except FileNotFoundError:
        raise IsentropeError(
            f"the driver took the request and has not answered within {wait_s:g} s: see the status"
        ) from None
    raise IsentropeError(
        f"the driver has not looked at its requests for {wait_s:g} s: it may be starting or busy; the request was taken back, "
        "ask again"
    )


_WHY = {
    "dead": f"the driver has written nothing for more than {SILENT_S:g} s and holds no lock: it is dead, resume the run",
    "frozen": f"the driver holds its lock and has written nothing for more than {SILENT_S:g} s: it is frozen, or its disk is",
}


def alive(run: Path) -> str:
    """Returns "running", how the run ended (finished, stopped, failed), or, where the heartbeat stands still, "dead" or "frozen".

    Raises ConfigError where the folder is not a run's.
    """
    status = _read(run)
    if status.get("ended") is not None:
        return str(status["state"])
    if abs(time.time() - float(status["heartbeat"])) <= SILENT_S:
        return "running"
    time.sleep(LOOK_AGAIN_S)
    if _read(run)["beats"] != status["beats"]:
        return "running"
    return "frozen" if _locked(run / LOCK_FILE) else "dead"


def _read(run: Path) -> dict[str, Any]:
    try:
        return read_status(run)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _locked(path: Path) -> bool:
    """Says whether another process holds the lock; only asked when the heartbeat is old, so as not to stand in a start's way."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or the file system has no locks
        return False
    return False
