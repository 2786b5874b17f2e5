"""Watches one run of an untrusted program from the driver's side: its limits, its output, how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "exit", "timeout", "memory", "output", "killed"]

_GRACE_S = 10.0  # beyond the wall limit: start-up, and the supervisor's own clean-up


class IsolationError(Exception):
    """Reports that the program was not run because the isolation asked for is not available; the message says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Holds what one program may use. Memory is of each process, so all together may use processes * memory.

    wall_s, cpu_s  seconds; the CPU time (whole seconds) is of each process
    memory         bytes of address space
    output         bytes of stdout, and of stderr; a program that prints more is ended
    processes      processes and threads at one time
    file           bytes of the largest file; folder, files: bytes and number of all files in the private folder
    """

    wall_s: float = 10.0  # far above cpu_s, since on a busy machine a program waits for the CPU
    cpu_s: int = 2
    memory: int = 256 * 2**20
    output: int = 64 * 2**10
    processes: int = 8
    file: int = 8 * 2**20
    folder: int = 16 * 2**20
    files: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"limits: {name} is {value}, it must be more than 0")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Holds how a program ended and what it printed.

    ok       exit code 0
    exit     another exit code: an uncaught exception is 1
    timeout  it took longer than wall_s, or used more than cpu_s
    memory   it ended with a MemoryError (the program can fake this: it is information for a reader, no decision depends on it)
    output   it printed more than `output` bytes and was ended
    killed   a signal ended it; exit_code is minus the signal's number, or None when the supervisor ended with it

    stdout, stderr: at most Limits.output bytes each, invalid UTF-8 replaced. seconds: wall time of the program.
    """

    status: Status
    stdout: str
    stderr: str
    exit_code: int | None
    seconds: float


class Watch:
    """Sends the request of one run, collects what is printed, and stops what takes too long."""

    def __init__(self, process: subprocess.Popen[bytes], report: int, limits: Limits) -> None:
        assert process.stdin and process.stdout and process.stderr
        self._process, self._limits = process, limits
        self._requests = process.stdin
        self._pipes = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray(), report: bytearray()}
        self._out, self._err, self._report = self._pipes
        for descriptor in self._pipes:
            os.set_blocking(descriptor, False)

    def send(self, request: bytes) -> None:
        """Writes the request to the supervisor's stdin."""
        with contextlib.suppress(
            BrokenPipeError
        ):  # it could not start: `outcome` finds no report and the reason on stderr
            self._requests.write(len(request).to_bytes(8, "big") + request)
            self._requests.flush()

    def outcome(self) -> Outcome:
        """Waits for the end of the program, or ends it at its limits. Raises IsolationError if the program was not started."""
        started = time.monotonic()
        self._collect(started + self._limits.wall_s + _GRACE_S)
        if self._process.poll() is None:
            self._stop()
        self._drain()
        seconds = time.monotonic() - started
        stdout, stderr = (
            self._pipes[x][: self._limits.output].decode("utf-8", "replace") for x in (self._out, self._err)
        )
        line = self._pipes[self._report].partition(b"\n")[0]
        report = json.loads(line) if line else {}
        if "error" in report:
            raise IsolationError(report["error"])
        if not report and 0 < self._process.returncode < 128:  # not ended by a signal: it failed to start
            raise IsolationError(stderr.strip().rpartition("\n")[2] or f"exit code {self._process.returncode}")
        code = os.waitstatus_to_exitcode(report["status"]) if report else None
        seconds = report.get("seconds", seconds)
        if self._too_much_output():
            return Outcome("output", stdout, stderr, code, seconds)
        too_long = report.get("cut_off") or seconds > self._limits.wall_s
        if too_long or (code == -signal.SIGKILL and report["cpu_s"] > self._limits.cpu_s - 0.5):
            return Outcome("timeout", stdout, stderr, code, seconds)
        if code == 1 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
            return Outcome("memory", stdout, stderr, code, seconds)
        status: Status = "killed" if code is None or code < 0 else "exit" if code else "ok"
        return Outcome(status, stdout, stderr, code, seconds)

    def close(self) -> None:
        """Stops the supervisor if it still runs, also after an interrupt, so that nothing is left running."""
        if self._process.poll() is None:
            self._stop()
        os.close(self._report)

    def _too_much_output(self) -> bool:
        return max(len(self._pipes[self._out]), len(self._pipes[self._err])) > self._limits.output

    def _collect(self, deadline: float) -> None:
        """Reads until the supervisor ended, the deadline passed or one stream has more than its limit."""
        ended = os.pidfd_open(self._process.pid)
        poller = select.poll()
        for descriptor in (ended, *self._pipes):
            poller.register(descriptor, select.POLLIN)
        try:
            while (left := deadline - time.monotonic()) > 0:
                ready = [descriptor for descriptor, _ in poller.poll(1000 * left)]
                for descriptor in ready:
                    if descriptor != ended and not self._take(descriptor):
                        poller.unregister(descriptor)
                if ended in ready or self._too_much_output():
                    return
        finally:
            os.close(ended)

    def _take(self, descriptor: int) -> bool:
        """Reads what is available from one pipe; False at the end of the stream."""
        try:
            chunk = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        self._pipes[descriptor] += chunk
        return bool(chunk)

    def _drain(self) -> None:
        """Reads what was printed before the end and not read yet.

        Bounded to 16 reads per pipe: a process that survived and still writes could otherwise keep this going forever.
        """
        for descriptor in self._pipes:
            for _ in range(16):
                before = len(self._pipes[descriptor])
                if not self._take(descriptor) or len(self._pipes[descriptor]) == before:
                    break

    def _stop(self) -> None:
        """Asks the supervisor to end everything by closing its stdin, then kills it if it does not end."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
