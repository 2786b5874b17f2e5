"""Calls a server of AppWorld over HTTP, and records which session's world it has."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.tasks import stable_hash

MAX_ANSWER = 16 * 2**20  # bytes


class Unreachable(Exception):
    """Reports that no answer came, so that it is unknown whether the call took effect."""


class Refused(Exception):
    """Reports an answer other than 200. A server answers 500 when its world is another task's, or closed."""


class Server:
    """Calls one `appworld serve environment` and records which session's world it has."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"appworld: {url!r} is not the address of a server, give http://host:port")
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._parts = parts
        self.owner_file = Path(tempfile.gettempdir()) / f"isentrope-appworld-{os.getuid()}-{stable_hash(self.url):016x}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Returns the "output" of the answer. Raises Unreachable, Refused, or TimeoutError after timeout_s."""
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
            raise Refused(f"{self.url}{path} gave an answer that is not AppWorld's: {content[:300]!r}") from error

    @contextmanager
    def held(self, block: bool) -> Iterator[bool]:
        """Locks the server against other processes of this machine; yields False if another has it and `block` is not set."""
        descriptor = os.open(self.owner_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)  # which releases the lock

    @property
    def owner(self) -> str:
        """Returns the session whose world the server has; '' if that session no longer needs it.

        Written only while held; also read before, to choose a server.
        """
        try:
            return self.owner_file.read_text("utf-8")
        except OSError:
            return ""

    @owner.setter
    def owner(self, session: str) -> None:
        self.owner_file.write_text(session, "utf-8")

    @property
    def used(self) -> float:
        """Returns when the owner last changed or made a call (Unix time); 0.0 if never."""
        try:
            return self.owner_file.stat().st_mtime
        except OSError:
            return 0.0
