"""Runs one vLLM engine in a process of its own, without Ray: for commands that sample and train nothing."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from actors.inference import Completion, EngineDead, Request
from actors.settings import VLLMSettings


class EngineProcess:
    """Serves requests of an asyncio program; the process ends with the `with` block.

    begin: sends requests as a whole, and returns one future for each, in order; a request that fails raises EngineDead or
    ResponseFailed. start_timeout_s: how long the engine may take to be ready, EngineDead after it.
    """

    def __init__(self, settings: VLLMSettings, start_timeout_s: float = 600.0) -> None:
        self._settings, self._timeout_s = settings, start_timeout_s
        self._waiting: dict[str, asyncio.Future[Completion]] = {}
        self._lost: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._settings, self._timeout_s), daemon=False)
        with _quiet_tracker():
            self._process.start()
        theirs.close()
        try:
            self._started()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def begin(self, requests: Sequence[Request]) -> list[asyncio.Future[Completion]]:
        """Begins responses; called from a running event loop, the same every time."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._listen, name="engine-answers", daemon=True).start()
        futures = [self._loop.create_future() for _ in requests]
        self._waiting.update((request.id, future) for request, future in zip(requests, futures, strict=True))
        if self._lost is not None:
            self._fail(self._lost)
        else:
            self._pipe.send(list(requests))
        return futures

    def _started(self) -> None:
        try:
            if not self._pipe.poll(self._timeout_s):
                raise EngineDead(f"the engine was not ready within {self._timeout_s:g} s")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(30)
            raise EngineDead(f"the engine's process ended with exit code {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise EngineDead(answer)

    def _listen(self) -> None:
        assert self._loop is not None
        while True:
            try:
                name, answer = self._pipe.recv()
            except (EOFError, OSError):
                self._lost = EngineDead("the engine's process has ended")
                break
            self._loop.call_soon_threadsafe(self._answer, name, answer)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fail, self._lost)

    def _answer(self, name: str, answer: Completion | BaseException) -> None:
        future = self._waiting.pop(name, None)
        if future is None or future.done():
            return
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _fail(self, error: BaseException) -> None:
        for name in list(self._waiting):
            self._answer(name, error)

    def _end(self) -> None:
        self._process.kill()  # it has nothing to save, and would take seconds to shut down
        self._process.join()
        self._pipe.close()


@contextmanager
def _quiet_tracker() -> Generator[None, None, None]:
    """Keeps multiprocessing's resource tracker, which begins with the first process, from warning of the killed engine's semaphore.

    It unlinks that semaphore all the same.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _serve(pipe: Any, settings: VLLMSettings, start_timeout_s: float) -> None:
    """Runs in the child until the parent kills it: answers each request with (its id, a completion or an error)."""
    import logging
    import warnings

    # Errors go through the pipe; log lines and warnings would only disturb the terminal.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from actors.vllm_engine import VLLMEngine

    lock = threading.Lock()

    def answer(name: str, what: Any) -> None:
        with lock:
            pipe.send((name, what))

    try:
        engine = VLLMEngine(settings, start_timeout_s)
    except EngineDead as error:
        pipe.send(" ".join(str(error).split()))
        return
    pipe.send(None)
    while True:
        for request in pipe.recv():  # each by itself: an error does not say whose it is
            try:
                engine.submit([request], lambda done, name=request.id: answer(name, done))
            except (EngineDead, ValueError) as error:
                answer(request.id, EngineDead(" ".join(str(error).split())))
