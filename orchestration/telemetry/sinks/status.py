"""Writes status.json and events.log, which say where a run stands while it runs, and reads them.

status.json is replaced as a whole, at most once a second, by a thread of its own: it goes on while the loop's thread works, so an
old heartbeat means that the process is gone or frozen. events.log is appended to, one line an event. Both help a person alone:
where they cannot be written the run goes on.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.telemetry.sinks.base import Row, RunInfo, Sample

STATUS_FILE = "status.json"
EVENTS_FILE = "events.log"
FORMAT = 1
EVENTS = 10  # the last ones, kept in status.json as well
FORMER = 50  # members that are gone, whose logs may still be asked for

Member = Mapping[str, Any]  # {"name": "generator 0", "kind": "generator", "state": "healthy", "node": "...", "pid": 12}


class StatusSink:
    """Keeps status.json current and appends to events.log.

    `beat_s` is the least time between two writes; `clock` gives the time in seconds since 1970.
    """

    def __init__(self, run_dir: Path, beat_s: float = 1.0, clock: Callable[[], float] = time.time) -> None:
        self.run_dir, self._beat_s, self._clock = run_dir, beat_s, clock
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # the draft has one name
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._former: deque[Member] = deque(maxlen=FORMER)
        self._stages: Sequence[Mapping[str, Any]] = ()
        self._status: dict[str, Any] = {
            "format": FORMAT,
            "state": "starting",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began": clock(),
            "beats": 0,
            "members": [],
            "counters": {},
        }

    # ------------------------------------------------------------ the protocol

    def start(self, run: RunInfo) -> None:
        self._stages = run.config.get("stages") or ()
        self._set(
            name=run.name, state="running", iteration=run.resumed_at or 0, of=run.iterations, checkpoint=self._latest()
        )
        resumed = "" if run.resumed_at is None else f", resumed after {run.resumed_at}"
        self.event(f"{run.name}: {run.iterations} iterations{resumed}, driver {os.getpid()} on {socket.gethostname()}")
        self.write()
        if self._thread is None:  # else the run goes on from a checkpoint in this process
            self._thread = threading.Thread(target=self._beat, name="status", daemon=True)
            self._thread.start()

    def progress(self, phase: str, done: float, total: float) -> None:
        now, before = self._clock(), self._status.get("phase") or {}
        again = before.get("name") == phase and before.get("done", 0) <= done
        since = before["since"] if again else now
        moved = before["moved"] if again and before["done"] == done else now
        self._set(phase={"name": phase, "done": done, "total": total, "since": since, "moved": moved})
        if phase == "checkpoint" and done >= total:
            self._set(checkpoint=self._latest())

    def iteration(self, row: Row) -> None:
        fields: dict[str, Any] = {"iteration": int(row["iteration"])}
        if "policy_version" in row:
            fields["policy_version"] = int(row["policy_version"])
        if "stage/index" in row and int(row["stage/index"]) < len(self._stages):
            fields["stage"] = self._stages[int(row["stage/index"])]["name"]
        self._set(**fields)

    def sample(self, rows: Sequence[Sample]) -> None:
        pass

    def event(self, text: str) -> None:
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self._clock()))} {' '.join(text.split())}"
        with self._lock:
            self._events.append(stamped)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            with (self.run_dir / EVENTS_FILE).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(stamped + "\n")
        except OSError:
            pass  # a full disk must not end a run over a line for a person

    def close(self, status: str) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._set(state=status, phase=None, ended=self._clock(), checkpoint=self._latest())
        self.event(status)
        self.write()

    # ------------------------------------------------------------ beside it

    def members(self, members: Iterable[Member], counters: Mapping[str, int]) -> None:
        """Takes the present actors, and counts such as replacements; actors that have left stay known by their pid."""
        present = [dict(member) for member in members]
        names = {member.get("name") for member in present}
        with self._lock:
            self._former.extend(m for m in self._status["members"] if m.get("name") not in names)
            self._status |= {"members": present, "counters": dict(counters)}

    def write(self) -> None:
        """Writes status.json now, as a whole."""
        with self._lock:
            self._status["beats"] += 1
            status = {**self._status, "heartbeat": self._clock(), "events": [*self._events], "former": [*self._former]}
        path = self.run_dir / STATUS_FILE
        draft = path.with_name(f"{STATUS_FILE}.writing")
        with self._writing, contextlib.suppress(OSError):  # the next beat tries again
            self.run_dir.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(status, indent=1, default=str), "utf-8", errors="backslashreplace")
            draft.replace(path)

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            self.write()

    def _set(self, **fields: Any) -> None:
        with self._lock:
            self._status |= fields

    def _latest(self) -> str | None:
        try:
            return (self.run_dir / "checkpoints" / "latest").read_text("utf-8").strip()[:200] or None
        except (OSError, UnicodeDecodeError):
            return None


def read_status(run_dir: Path) -> dict[str, Any]:
    """Reads status.json. Raises ValueError, one sentence, where there is none or where it is not one."""
    path = run_dir / STATUS_FILE
    try:
        status = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{run_dir} has no {STATUS_FILE}: give the folder of a run that has begun") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {str(error)[:300]}") from None
    numbers = (
        all(isinstance(status.get(k), int | float) for k in ("beats", "heartbeat"))
        if isinstance(status, dict)
        else False
    )
    if not numbers or status.get("format") != FORMAT:
        raise ValueError(f"{path} is not a status of this version")
    return status
