"""AppWorld (arXiv 2407.18901) over HTTP: day-to-day tasks in a world of apps, solved by Python that the model writes turn by turn.

AppWorld runs in a process or container of its own, `appworld serve environment --port 8000`; here is a client of what
appworld/serve/environment.py of its release 0.1.3 answers: POST /initialize /execute /task_completed /evaluate /close, GET
/tasks/ID. A server has one world at a time, and the last /initialize decides whose it is. Hence:

- a session sticks to its server; whose world is there stands in a file beside a lock, which other verifiers of the same machine
  respect. A server must be used from one machine: give each node its own, as http://localhost:8000;
- a session whose world was taken, or whose server fell over, is begun again and its code run again: worlds are frozen in time and
  seeded. As many servers as trajectories under way at once make that unnecessary;
- code is never sent twice to one world, since nobody can tell whether it ran before a connection broke.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import random
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from envs.answers.extract import program
from envs.tasks import MAX_RESPONSE, check_index, stable_hash
from envs.types import Message, Observation, Prompt, Split, Status, Verdict

REWARDS = ("success", "share")
MAX_ANSWER = 16 * 2**20  # bytes
HUNG = "gave no answer"  # the owner of a server that ran out of time: any other server is tried before it
PAUSE_S = 0.5  # before the first further try; twice that before the next
TEMPLATE = """\
I am {first_name} {last_name}, {email}, telephone {phone_number}. You do my everyday tasks for me, in my apps. It is {datetime}.

Task: {instruction}

You act through Python. Response with one block
```python
print(apis.api_docs.show_app_descriptions())
```
and you are told what it printed; names stay defined from block to block. That one lists my apps. These tell more:
apis.api_docs.show_api_descriptions(app_name='spotify') what an app can do,
apis.api_docs.show_api_doc(app_name='spotify', api_name='login') how one function is called,
apis.supervisor.show_account_passwords() my passwords.
I cannot be asked. When the task is done, call apis.supervisor.complete_task(), with answer=... if the task is a question."""


class AppWorld:
    """Tasks of AppWorld, over HTTP: write Python, see what it printed, be scored by the state of the apps.

    urls        of the servers: http://host:port, a list of them or one
    root        AppWorld's folder, for the lists of tasks: root/data/datasets/NAME.txt; by default $APPWORLD_ROOT
    train, eval a list's name (train, dev, test_normal, test_challenge), or the ids of tasks themselves
    reward      "success": 1.0 if every test of the task passes; "share": of the tests that pass. `correct` is always success
    turns       responses after which the world is scored as it is; by default only when the task is said to be completed
    template    of the prompt, with {instruction}, {first_name}, {last_name}, {email}, {phone_number}, {datetime}
    characters  the most of an output that the model is shown; the middle of a longer one is left out
    timeout_s   seconds for one call. A server's own limit for a piece of code is 100 s; verifiers.timeout_s has to exceed both
    tries       for a call, where a server cannot be reached
    settings    more arguments of /initialize, as random_seed or max_interactions
    name        what metrics are kept under
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
        if reward not in REWARDS:
            raise ValueError(f"appworld: reward is {reward!r}, it must be {' or '.join(REWARDS)}")
        for key, value in (("turns", turns), ("characters", characters), ("timeout_s", timeout_s), ("tries", tries)):
            if value is not None and value <= 0:
                raise ValueError(f"appworld: {key} is {value}, it must be above 0")
        if "{instruction}" not in template:
            raise ValueError("appworld: the template has no {instruction}, so no task would be asked")
        self.servers = [Server(url, timeout_s) for url in dict.fromkeys([urls] if isinstance(urls, str) else urls)]
        if not self.servers:
            raise ValueError("appworld: urls is empty, give at least one server")
        train_ids, held_ids = (_task_ids(given, root) for given in (train, eval))
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
        """What the template may name. /tasks has no world, so any server may answer."""
        if task_id not in self._tasks:
            faults: list[str] = []
            for attempt in range(self.tries):
                server = self.servers[attempt % len(self.servers)]
                try:
                    found = server.call("GET", f"/tasks/{urllib.parse.quote(task_id, safe='')}")
                    person = {k: found["supervisor"][k] for k in ("first_name", "last_name", "email", "phone_number")}
                    self._tasks[task_id] = {
                        **person,
                        "datetime": found["datetime"],
                        "instruction": found["instruction"],
                    }
                    return self._tasks[task_id]
                except (Unreachable, Refused, TimeoutError) as error:
                    faults.append(str(error))
                except (KeyError, TypeError) as error:
                    faults.append(f"its answer is not a task: {type(error).__name__}: {error}")
                time.sleep(PAUSE_S * 2**attempt if attempt + 1 < self.tries else 0)
            raise ValueError(f"appworld: task {task_id} cannot be had: {faults[-1]}")
        return self._tasks[task_id]


class Unreachable(Exception):
    """No answer: nobody can say whether the call took effect."""


class Refused(Exception):
    """An answer other than 200. A server whose world is another task's, or gone, answers 500."""


class Server:
    """One `appworld serve environment`, and the file that says whose world it has."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"appworld: {url!r} is no address of a server, give http://host:port")
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._parts = parts
        self.owner_file = Path(tempfile.gettempdir()) / f"isentrope-appworld-{os.getuid()}-{stable_hash(self.url):016x}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The "output" of the answer. Raises Unreachable, Refused, or TimeoutError after timeout_s."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=self._timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(
                method, f"{self._parts.path.rstrip('/')}{path}", data, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            content = answer.read(MAX_ANSWER + 1)
        except TimeoutError as error:
            raise TimeoutError(f"{self.url}{path} gave no answer within {self._timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self.url} cannot be reached ({type(error).__name__}: {error})") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise Refused(f"{self.url}{path} answered {answer.status}: {content[:300].decode('utf-8', 'replace')}")
        if len(content) > MAX_ANSWER:
            raise Refused(f"{self.url}{path} answered with more than {MAX_ANSWER} bytes")
        try:
            return json.loads(content)["output"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(f"{self.url}{path} answered what is not AppWorld's: {content[:300]!r}") from error

    @contextmanager
    def held(self, block: bool) -> Iterator[bool]:
        """Nobody else of this machine uses the server meanwhile; False where somebody does and `block` is not set."""
        descriptor = os.open(self.owner_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)  # and with it the lock

    @property
    def owner(self) -> str:
        """The session whose world is there; '' when nobody waits for it. Written while held; read before as well, to choose."""
        try:
            return self.owner_file.read_text("utf-8")
        except OSError:
            return ""

    @owner.setter
    def owner(self, session: str) -> None:
        self.owner_file.write_text(session, "utf-8")

    @property
    def used(self) -> float:
        """When its owner last changed or went on."""
        try:
            return self.owner_file.stat().st_mtime
        except OSError:
            return 0.0


class AppWorldSession:
    """One task, from its world to its verdict; faults of servers are verdicts with status ERROR."""

    def __init__(self, owner: AppWorld, task_id: str) -> None:
        self._owner, self._task_id = owner, task_id
        self._name = uuid.uuid4().hex
        self._codes: list[str] = []  # what was executed
        self._server: Server | None = None  # where the world was last
        self._verdict: Verdict | None = None
        self.begun = 0  # worlds that were made for it

    def reply(self, text: str) -> Observation | Verdict:
        if self._verdict is None:
            if len(text) > MAX_RESPONSE:
                detail = f"the response has {len(text)} characters, at most {MAX_RESPONSE} are scored"
                self._verdict = Verdict(0.0, detail=detail)
                return self._verdict
            try:
                answer = self._judged(program(text).encode("utf-8", "replace").decode())
            except (Unreachable, Refused, TimeoutError) as error:
                answer = Verdict(0.0, status=Status.ERROR, detail=f"appworld: {error}"[:900])
            if isinstance(answer, Observation):
                return answer
            self._verdict = answer
        return self._verdict

    def _judged(self, code: str) -> Observation | Verdict:
        """The code executed in this session's world, wherever that is or can be made again."""
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
                    fault, server.owner = error, ""  # whatever is there now, it is not this session's world
                except TimeoutError:
                    server.owner = HUNG
                    raise
        raise fault or Unreachable("no server was tried")

    @contextmanager
    def _world(self, avoid: Server | None) -> Iterator[Server]:
        """A server, held: the session's own, else one that nobody waits for, else the one not used for longest; one that hung only
        if every other is held at the moment."""
        servers = [s for s in self._owner.servers if s is not avoid] or self._owner.servers
        mine = self._server if self._server in servers else None
        if mine is not None and mine.owner == self._name:
            able = [mine]
        else:
            able = sorted(servers, key=lambda s: (s.owner == HUNG, s is mine, s.owner != "", s.used))
        for server in able:
            with server.held(block=False) as got:
                if got:
                    yield server
                    return
        server = able[0] if mine is None or mine.owner == HUNG else mine
        with server.held(block=True):
            yield server

    def _make(self, server: Server) -> None:
        """The session's world on this server, as its code so far left it."""
        if server.owner != self._name:
            self.begun += 1
            server.owner = ""
            experiment = f"isentrope-{stable_hash(server.url):016x}"  # its folder: servers may share a disk
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
        # With suppress_errors the tests that fail are told; without, the first of them is a 500.
        tests = self._call(server, "/evaluate", suppress_errors=True, report=False)
        with suppress(Unreachable, Refused, TimeoutError):  # the verdict is known
            self._call(server, "/close")
        server.owner = ""
        try:
            passed, total, success = len(tests["passes"]), int(tests["num_tests"]), bool(tests["success"])
            failed = "; ".join(str(failure["requirement"]) for failure in tests["failures"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(
                f"{server.url}/evaluate answered what is not AppWorld's: {type(error).__name__}: {error}"
            ) from error
        said = "" if done else f", not completed within {turns} turns"
        detail = f"{passed} of {total} tests passed{said}{'; failed: ' if failed else ''}{' '.join(failed.split())}"
        reward = float(success) if self._owner.reward == "success" else passed / total if total else 0.0
        solution = "\n".join((*self._codes, code)) if success else None
        return Verdict(reward, success, solution, detail=detail[:900].encode("utf-8", "replace").decode())

    def _shown(self, output: str) -> str:
        output = output.encode("utf-8", "replace").decode()
        if len(output) > self._owner.characters:
            half, left = self._owner.characters // 2, len(output) - self._owner.characters
            output = f"{output[:half]}\n[{left} characters left out]\n{output[half + left :]}"
        return output


def _task_ids(given: str | list[str], root: str | None) -> list[str]:
    """Ids as given, or of a list of AppWorld's: one a line, some with a tag behind a colon (appworld/task.py:load_task_ids)."""
    if not isinstance(given, str):
        return list(dict.fromkeys(given))
    folder = root or os.environ.get("APPWORLD_ROOT")
    if folder is None:
        raise ValueError(
            f"appworld: the tasks of {given!r} are in AppWorld's folder: give it as root, or set APPWORLD_ROOT"
        )
    file = Path(folder).expanduser() / "data" / "datasets" / f"{given}.txt"
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
        raise ValueError(f"appworld: the list {file} cannot be read: {error.strerror}; there are {known}") from error
    ids = [line.strip().partition(":")[0] for line in lines if line.strip()]
    if not ids:
        raise ValueError(f"appworld: the list {file} is empty")
    return list(dict.fromkeys(ids))
