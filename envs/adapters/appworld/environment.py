"""Adapts AppWorld (arXiv 2407.18901) over HTTP: day-to-day tasks in a world of apps, solved by Python written turn by turn.

AppWorld runs in a process or container of its own, `appworld serve environment --port 8000`; this is a client of its release
0.1.3 (appworld/serve/environment.py): POST /initialize /execute /task_completed /evaluate /close, GET /tasks/ID. A server has
one world at a time, that of the last /initialize. Hence:

- a session keeps its server. A file beside a lock says whose world a server has, which other verifiers of the same machine
  respect. A server must be used from one machine only: give each node its own, as http://localhost:8000;
- a session whose world was replaced, or whose server failed, is initialised again and its code run again: worlds are frozen
  in time and seeded. With as many servers as concurrent trajectories this does not happen;
- code is never sent twice to one world, since after a broken connection it is unknown whether it ran.
"""

from __future__ import annotations

import os
import random
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from envs.adapters.appworld.server import Refused, Server, Unreachable
from envs.answers.extract import program
from envs.checks import check_choice, check_positive
from envs.tasks import MAX_RESPONSE, check_index, stable_hash
from envs.types import Message, Observation, Prompt, Split, Status, Verdict

REWARDS = ("success", "share")
HUNG = "gave no answer"  # recorded as the owner of a server that timed out: any other server is tried first
PAUSE_S = 0.5  # before the second try; doubles with every further try
TEMPLATE = """\
I am {first_name} {last_name}, {email}, telephone {phone_number}. You do my everyday tasks for me, in my apps. It is {datetime}.

Task: {instruction}

You act through Python. Reply with one block
```python
print(apis.api_docs.show_app_descriptions())
```
and you are told what it printed; names stay defined from block to block. That one lists my apps. These tell more:
apis.api_docs.show_api_descriptions(app_name='spotify') what an app can do,
apis.api_docs.show_api_doc(app_name='spotify', api_name='login') how one function is called,
apis.supervisor.show_account_passwords() my passwords.
I cannot be asked. When the task is done, call apis.supervisor.complete_task(), with answer=... if the task is a question."""


class AppWorld:
    """Asks tasks of AppWorld: the model writes Python, reads what it printed, and is scored by the state of the apps.

    urls        addresses of the servers: http://host:port, one or a list
    root        AppWorld's folder, for the lists of tasks: root/data/datasets/NAME.txt; by default $APPWORLD_ROOT
    train, eval name of a list (train, dev, test_normal, test_challenge), or the ids of tasks
    reward      "success": 1.0 if every test of the task passes; "share": the share of tests that pass. `correct` is always success
    turns       responses after which the world is scored as it is; by default only when the task is marked as completed
    template    of the prompt, with {instruction}, {first_name}, {last_name}, {email}, {phone_number}, {datetime}
    characters  longest output shown to the model; the middle of a longer one is left out
    timeout_s   seconds for one call. A server's own limit for a piece of code is 100 s; verifiers.timeout_s has to exceed both
    tries       number of tries for a call when a server cannot be reached
    settings    more arguments of /initialize, such as random_seed or max_interactions
    name        name of its metrics
    Raises ValueError, one sentence, for lists that cannot be read and servers that do not answer.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        urls: str | list[str],
        root: str | None = None,
        train: str | list[str] = "train",
        eval: str | list[str] = "dev",
        reward: str = "success",
        turns: int | None = None,
        template: str = TEMPLATE,
        characters: int = 8_000,
        timeout_s: float = 120.0,
        tries: int = 3,
        settings: dict[str, Any] | None = None,
        name: str = "appworld",
    ) -> None:
        check_choice("appworld", "reward", reward, REWARDS)
        check_positive("appworld", turns=turns, characters=characters, timeout_s=timeout_s, tries=tries)
        if "{instruction}" not in template:
            raise ValueError("appworld: the template has no {instruction}, so it would not ask the task")
        self.servers = [Server(url, timeout_s) for url in dict.fromkeys([urls] if isinstance(urls, str) else urls)]
        if not self.servers:
            raise ValueError("appworld: urls is empty, give at least one server")
        train_ids, held_ids = (_task_ids(tasks, root) for tasks in (train, eval))
        if both := sorted(set(train_ids) & set(held_ids)):
            raise ValueError(f"appworld: {len(both)} tasks, {both[0]} first, are in both train and eval")
        random.Random(f"{seed}/appworld").shuffle(train_ids)
        self._ids: dict[Split, list[str]] = {"train": train_ids, "eval": held_ids}
        self._tasks: dict[str, dict[str, Any]] = {}
        self.reward, self.turns, self.characters, self.tries = reward, turns, characters, tries
        self.settings, self._template, self._name = dict(settings or {}), template, name

    def size(self, split: Split) -> int | None:
        return len(self._ids[split])

    def prompt(self, split: Split, index: int) -> Prompt:
        check_index(split, index)
        ids = self._ids[split]
        if not ids:
            raise ValueError(f"{self._name}: the {split} split is empty")
        task_id = ids[index % len(ids)]
        text = self._template
        for key, value in self._task(task_id).items():
            text = text.replace("{" + key + "}", str(value))
        return Prompt(self._name, split, index, (Message("user", text),), {"task_id": task_id})

    def open(self, prompt: Prompt) -> AppWorldSession:
        return AppWorldSession(self, prompt.task["task_id"])

    def _task(self, task_id: str) -> dict[str, Any]:
        """Returns what the template may name. /tasks needs no world, so any server may answer."""
        if task_id not in self._tasks:
            faults: list[str] = []
            for attempt in range(self.tries):
                server = self.servers[attempt % len(self.servers)]
                try:
                    task = server.call("GET", f"/tasks/{urllib.parse.quote(task_id, safe='')}")
                    person = {k: task["supervisor"][k] for k in ("first_name", "last_name", "email", "phone_number")}
                    self._tasks[task_id] = {
                        **person,
                        "datetime": task["datetime"],
                        "instruction": task["instruction"],
                    }
                    return self._tasks[task_id]
                except (Unreachable, Refused, TimeoutError) as error:
                    faults.append(str(error))
                except (KeyError, TypeError) as error:
                    faults.append(f"its answer is not a task: {type(error).__name__}: {error}")
                time.sleep(PAUSE_S * 2**attempt if attempt + 1 < self.tries else 0)
            raise ValueError(f"appworld: task {task_id} cannot be loaded: {faults[-1]}")
        return self._tasks[task_id]


class AppWorldSession:
    """Runs one task, from its world to its verdict; faults of servers become verdicts with status ERROR."""

    def __init__(self, owner: AppWorld, task_id: str) -> None:
        self._owner, self._task_id = owner, task_id
        self._name = uuid.uuid4().hex
        self._codes: list[str] = []  # what was executed
        self._server: Server | None = None  # the one that had the world last
        self._verdict: Verdict | None = None
        self.worlds_made = 0

    def reply(self, text: str) -> Observation | Verdict:
        if self._verdict is None:
            if len(text) > MAX_RESPONSE:
                detail = f"the response has {len(text)} characters, at most {MAX_RESPONSE} are scored"
                self._verdict = Verdict(0.0, detail=detail)
                return self._verdict
            try:
                answer = self._execute(program(text).encode("utf-8", "replace").decode())
            except (Unreachable, Refused, TimeoutError) as error:
                answer = Verdict(0.0, status=Status.ERROR, detail=f"appworld: {error}"[:900])
            if isinstance(answer, Observation):
                return answer
            self._verdict = answer
        return self._verdict

    def _execute(self, code: str) -> Observation | Verdict:
        """Executes the code in this session's world, wherever that is or can be made again."""
        fault: Exception | None = None
        for attempt in range(self._owner.tries):
            if attempt:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            with self._world(avoid=self._server if fault else None) as server:
                try:
                    self._make(server)
                    output = self._call(server, "/execute", code=code)
                    return self._answered(server, code, str(output))
                except (Unreachable, Refused) as error:
                    fault, server.owner = error, ""  # the server no longer has this session's world
                except TimeoutError:
                    server.owner = HUNG
                    raise
        raise fault or Unreachable("no server was tried")

    @contextmanager
    def _world(self, avoid: Server | None) -> Iterator[Server]:
        """Yields a server, locked, in this order of preference.

        The session's own; one that no session needs; the one used least recently; one that hung, only if all others are locked.
        """
        servers = [s for s in self._owner.servers if s is not avoid] or self._owner.servers
        last = self._server if self._server in servers else None
        if last is not None and last.owner == self._name:
            candidates = [last]
        else:
            candidates = sorted(servers, key=lambda s: (s.owner == HUNG, s is last, s.owner != "", s.used))
        for server in candidates:
            with server.held(block=False) as locked:
                if locked:
                    yield server
                    return
        server = candidates[0] if last is None or last.owner == HUNG else last
        with server.held(block=True):
            yield server

    def _make(self, server: Server) -> None:
        """Makes the session's world on this server, in the state its code so far led to."""
        if server.owner != self._name:
            self.worlds_made += 1
            server.owner = ""
            experiment = (
                f"isentrope-{stable_hash(server.url):016x}"  # a folder of its own, since servers may share a disk
            )
            server.call(
                "POST", "/initialize", {"experiment_name": experiment, **self._owner.settings, "task_id": self._task_id}
            )
            for code in self._codes:
                self._call(server, "/execute", code=code)
        self._server, server.owner = server, self._name

    def _call(self, server: Server, path: str, **body: Any) -> Any:
        return server.call("POST", path, {"task_id": self._task_id, **body})

    def _answered(self, server: Server, code: str, output: str) -> Observation | Verdict:
        done = bool(self._call(server, "/task_completed"))
        turns = self._owner.turns
        if not done and (turns is None or len(self._codes) + 1 < turns):
            self._codes.append(code)
            return Observation((Message("user", self._shown(output)),))
        # With suppress_errors the answer lists the tests that fail; without, the first failure is answered with 500.
        tests = self._call(server, "/evaluate", suppress_errors=True, report=False)
        with suppress(Unreachable, Refused, TimeoutError):  # the verdict is known already
            self._call(server, "/close")
        server.owner = ""
        try:
            passed, total, success = len(tests["passes"]), int(tests["num_tests"]), bool(tests["success"])
            failed = "; ".join(str(failure["requirement"]) for failure in tests["failures"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(
                f"{server.url}/evaluate gave an answer that is not AppWorld's: {type(error).__name__}: {error}"
            ) from error
        unfinished = "" if done else f", not completed within {turns} turns"
        detail = (
            f"{passed} of {total} tests passed{unfinished}{'; failed: ' if failed else ''}{' '.join(failed.split())}"
        )
        reward = float(success) if self._owner.reward == "success" else passed / total if total else 0.0
        solution = "\n".join((*self._codes, code)) if success else None
        return Verdict(reward, success, solution, detail=detail[:900].encode("utf-8", "replace").decode())

    def _shown(self, output: str) -> str:
        output = output.encode("utf-8", "replace").decode()
        if len(output) > self._owner.characters:
            half, omitted = self._owner.characters // 2, len(output) - self._owner.characters
            output = f"{output[:half]}\n[{omitted} characters left out]\n{output[half + omitted :]}"
        return output


def _task_ids(tasks: str | list[str], root: str | None) -> list[str]:
    """Returns ids as given, or those of one of AppWorld's lists.

    A list has one id a line, some with a tag behind a colon (appworld/task.py:load_task_ids).
    """
    if not isinstance(tasks, str):
        return list(dict.fromkeys(tasks))
    folder = root or os.environ.get("APPWORLD_ROOT")
    if folder is None:
        raise ValueError(
            f"appworld: the tasks of {tasks!r} are in AppWorld's folder: give the folder as root, or set APPWORLD_ROOT"
        )
    file = Path(folder).expanduser() / "data" / "datasets" / f"{tasks}.txt"
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
        raise ValueError(f"appworld: the list {file} cannot be read: {error.strerror}; there are {known}") from error
    ids = [line.strip().partition(":")[0] for line in lines if line.strip()]
    if not ids:
        raise ValueError(f"appworld: the list {file} is empty")
    return list(dict.fromkeys(ids))
