"""Runs a function call that can be killed, in one subprocess that is reused from call to call.

Use it for library code that may never return on an odd response (a symbolic simplification, `9**9**9`): a thread running it
could not be stopped. On a time-out the subprocess and all it started are killed; the next call starts a new one.

Do NOT use it as a sandbox: the subprocess has every right of its parent, to files, network and everything else. A program
that somebody else wrote, above all a model, belongs in envs/isolation/sandbox.py.

One request at a time, a line of JSON each way:
{"function": "module:name", "args": [...]}  ->  {"value": ...} or {"error": "ValueError: .."}
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

START_TIMEOUT_S = 180.0  # interpreter and preloaded modules; the first import of a big library from a cold disk is slow
MAX_ANSWER = 16 * 2**20  # bytes
MEMORY_BYTES = (
    8 * 2**30
)  # limit of the subprocess: a huge number raises MemoryError there instead of exhausting the machine
_PR_SET_PDEATHSIG = 1


class KillableError(Exception):
    """Reports that the function raised, its module cannot be imported, or the subprocess died; the message says which."""


class KillableTimeout(KillableError):
    """Reports that the function did not return in time and that the subprocess was killed."""


class KillableProcess:
    """Owns one subprocess that calls functions.

    Thread-safe: concurrent calls wait for each other. The subprocess dies with its parent; `close()` ends it earlier.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._preloaded: set[str] = set()
        # The kernel sends the parent-death signal when the THREAD that forked ends, not the process. Callers' threads come
        # and go, so every subprocess is started by one thread that lives as long as this object.
        self._starter = ThreadPoolExecutor(1, "killable-starter")

    @property
    def pid(self) -> int | None:
        """Returns the process id of the running subprocess; None before the first call and after a kill."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def call(self, function: str, args: Sequence[Any], timeout_s: float, preload: Sequence[str] = ()) -> Any:
        """Calls `function` ("module:name") with `args` (JSON values) in the subprocess and returns its result, a JSON value too.

        timeout_s  seconds for the call itself
        preload    modules imported before the clock starts, within START_TIMEOUT_S
        Raises KillableTimeout, or KillableError with the type and the text of the exception that the function raised.
        """
        request = {"function": function, "args": list(args)}
        with self._lock:
            if self.pid is None:
                self._start()
            to_import = sorted(set(preload) - self._preloaded)
            if to_import:
                self._exchange({"function": "envs.isolation.killable:_preload", "args": [to_import]}, START_TIMEOUT_S)
                self._preloaded.update(to_import)
            return self._exchange(request, timeout_s)

    def close(self) -> None:
        """Kills the subprocess, if any. A later call starts a new one."""
        with self._lock:
            self._kill()

    def _start(self) -> None:
        self._kill()
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # A fixed string hash: task generators that walk over sets give the same task in every process.
        environ = {**os.environ, **threads, "PYTHONHASHSEED": "0"}
        boot = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from envs.isolation import killable; killable._serve()"
        # The subprocess gets our sys.path, so that it finds the same functions. -P keeps a json.py of the current directory from
        # being imported before that path is set; -W silences warnings of the libraries it imports.
        command = [sys.executable, "-P", "-W", "ignore", "-c", boot, json.dumps(sys.path), str(os.getpid())]
        self._process = self._starter.submit(
            subprocess.Popen,
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            start_new_session=True,  # a process group to kill, and no Ctrl-C from the terminal
        ).result()
        self._exchange({"function": "envs.isolation.killable:_preload", "args": [[]]}, START_TIMEOUT_S)

    def _exchange(self, request: dict[str, Any], timeout_s: float) -> Any:
        assert self._process and self._process.stdin
        try:
            # The subprocess is idle and reading, so this write cannot block for long.
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._read_line(time.monotonic() + timeout_s, request["function"], timeout_s))
        except BrokenPipeError as error:
            self._kill()
            raise KillableError(f"{request['function']}: the subprocess died before the call") from error
        except BaseException:  # also an interrupt: the next call would read this call's answer from the pipe
            self._kill()
            raise
        if "error" in answer:
            raise KillableError(f"{request['function']}: {answer['error']}")
        return answer["value"]

    def _read_line(self, deadline: float, function: str, timeout_s: float) -> bytes:
        assert self._process and self._process.stdout
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise KillableTimeout(f"{function} took longer than {timeout_s:g} s")
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise KillableError(f"{function}: the subprocess died with exit code {self._process.wait()}")
            self._unread += chunk
            if len(self._unread) > MAX_ANSWER:
                raise KillableError(f"{function}: the answer is longer than {MAX_ANSWER} bytes")
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _kill(self) -> None:
        process, self._process, self._unread = self._process, None, b""
        self._preloaded = set()
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):  # a request that was never delivered is still in the buffer
                    pipe.close()


_shared: KillableProcess | None = None
_shared_lock = threading.Lock()


def shared() -> KillableProcess:
    """Returns the subprocess shared by all callers in this process, made on first use."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = KillableProcess()
        return _shared


def call(function: str, args: Sequence[Any], timeout_s: float, preload: Sequence[str] = ()) -> Any:
    """Calls a function in the shared subprocess, see `KillableProcess.call`."""
    return shared().call(function, args, timeout_s, preload)


def close() -> None:
    """Ends the shared subprocess, if any."""
    if _shared is not None:
        _shared.close()


def _forget() -> None:
    """Drops the shared subprocess after a fork: it belongs to the parent, and the child starts its own."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


atexit.register(close)
os.register_at_fork(after_in_child=_forget)


# --- inside the subprocess ---


def _preload(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def _serve() -> None:
    """Answers requests until stdin ends, which happens when the parent closes it or dies."""
    if sys.platform == "linux":
        # So that it dies with the parent even while it computes and does not read stdin.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    if os.getppid() != int(sys.argv[2]):
        return  # the parent died before prctl could take effect
    # Keeps what a library prints out of the answers, and keeps a library from reading requests from stdin.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in requests:
        answers.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
        answers.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    module, _, name = request["function"].partition(":")
    try:
        value = getattr(importlib.import_module(module), name)(*request["args"])
        json.dumps(value)
    except Exception as error:  # noqa: BLE001 - process boundary: the caller gets any exception as a KillableError
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    return {"value": value}
