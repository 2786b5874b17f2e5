"""Talks to the job server of a Ray cluster: finds it, gives it the token, waits for it, follows a job to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from envs.quoting import shortened
from orchestration.errors import ConfigError, IsentropeError, PlacementError
from orchestration.text import one_line

T = TypeVar("T")

PORT = 8265  # of Ray's dashboard, which has the job server
STARTING_S = 90.0  # a head that was started just now takes jobs only after its dashboard and an agent have come up
AGAIN_S = 1.0
LOST_S = 120.0  # without an answer, before the following of a log ends
RUN, FOLDER = "isentrope_run", "isentrope_folder"  # in a job's metadata
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray would take their addresses over one that it is given
TOKEN_HELP = (
    "copy the head's ~/.ray/auth_token to the same path here, mode 600, or set RAY_AUTH_TOKEN_PATH to such a file"
)


def address_of(address: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Returns the URL of the job server: as given, from Ray's variables, or of a head on this machine."""
    given = address or next((environ[name] for name in VARIABLES if environ.get(name, "").startswith("http")), None)
    if given is None:
        return f"http://127.0.0.1:{PORT}"
    scheme, _, rest = given.rpartition("://")
    if scheme not in ("", "http", "https") or not rest.strip("/"):
        raise ConfigError(
            f"the address {shortened(given)} cannot be a job server's: give HOST, HOST:{PORT} or http://HOST:{PORT}"
        )
    host = rest.strip("/")
    port = "" if scheme == "https" or host.rpartition("]")[2].rpartition(":")[1] else f":{PORT}"
    return f"{scheme or 'http'}://{host}{port}"


def connect(address: str | None, wait_s: float = 0.0, say: Callable[[str], None] = lambda text: None) -> Jobs:
    """Connects to a job server, for which it waits up to `wait_s`. Raises PlacementError where none answers, or none lets us in."""
    url = address_of(address)
    _use_token()
    deadline, told = time.monotonic() + wait_s, False
    while True:
        try:
            with _without(VARIABLES), _sentences(url):
                return Jobs(JobSubmissionClient(url), url)
        except _NotYet as error:
            if time.monotonic() >= deadline:
                raise PlacementError(str(error)) from None
            if not told:
                say(f"waiting for the job server at {url}, {wait_s:g} s at most")
            told = True
            time.sleep(AGAIN_S)


def _use_token() -> None:
    """Makes Ray send a token where there is one: its job client does so only where RAY_AUTH_MODE says it."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # it would say at length that it does
    for name in ("dashboard_sdk", "job.sdk"):  # which set levels of their own
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


class _NotYet(IsentropeError):
    """Reports that nothing answers, or no agent yet: a head that is starting will."""


@contextlib.contextmanager
def _sentences(url: str) -> Iterator[None]:
    """Turns what Ray's client raises into one sentence."""
    try:
        yield
    except AuthenticationError as error:
        wrong = "403" in str(error) or "invalid" in str(error).lower()
        what = "refuses the token that was sent" if wrong else "asks for a token and none was sent"
        raise PlacementError(f"the cluster at {url} {what}: {TOKEN_HELP}") from None
    except (ConnectionError, OSError) as error:  # requests' own errors are of the latter
        raise _NotYet(
            f"no Ray cluster answers at {url} ({type(error).__name__}): give --address=http://HEAD:{PORT}, or start a head with "
            "`ray start --head`"
        ) from None
    except RuntimeError as error:
        text = one_line(error)
        if "No available agent" in text or "status code 50" in text:
            raise _NotYet(f"the cluster at {url} takes no jobs yet: {shortened(text, 300)}") from None
        if "does not exist" in text or "status code 404" in text:
            raise ConfigError(f"the cluster at {url} has no such job") from None
        raise IsentropeError(f"the cluster at {url} refuses: {shortened(text, 500)}") from None


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Takes variables out of this process's environment for a while."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


class Jobs:
    """Holds the connection to a job server. Every method raises an IsentropeError, one sentence."""

    def __init__(self, client: JobSubmissionClient, url: str) -> None:
        self._client, self.url = client, url

    def python(self) -> str:
        """Returns the Python that runs Ray on the head, which is that of every actor there. Raises PlacementError."""
        with _sentences(self.url):
            # Ray's client has no call for this; its own request adds the token and reports a refusal.
            answer = self._client._do_request("GET", "/nodes?view=summary")
        nodes = answer.json()["data"]["summary"] if answer.status_code == 200 else []
        for node in nodes:
            if (node.get("raylet") or {}).get("isHeadNode"):
                for word in node.get("cmdline") or ():
                    name, _, command = word.partition("=")
                    if name == "--python_worker_command" and command:
                        return shlex.split(command)[0]
        raise PlacementError(
            f"the head at {self.url} does not say which Python it runs: give it as --python=PATH, the one of the environment "
            "that isentrope is installed in there"
        )

    def submit(self, job: str, command: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Submits a job, and waits for an agent that takes it, STARTING_S at most."""
        deadline, again = time.monotonic() + STARTING_S, False
        while True:
            try:
                if again and any(known.submission_id == job for known in self._known()):
                    return  # it was taken, and the answer was lost
                with _sentences(self.url):
                    self._client.submit_job(
                        entrypoint=command, submission_id=job, runtime_env=runtime_env, metadata=metadata
                    )
                return
            except _NotYet as error:
                if time.monotonic() >= deadline:
                    raise PlacementError(str(error)) from None
                again = True
                time.sleep(AGAIN_S)

    def _known(self) -> list[JobDetails]:
        """Returns the jobs that were submitted, of which some may have ended."""
        with _sentences(self.url):
            return [job for job in self._client.list_jobs() if job.submission_id]

    def info(self, job: str) -> JobDetails:
        """Returns what the server knows of a job."""
        with _sentences(self.url):
            return self._client.get_job_info(job)

    def find(self, name: str) -> JobDetails:
        """Returns the job of this id, or else the latest one of the run of this name. Raises ConfigError naming those there are."""
        known = self._known()
        for job in known:
            if job.submission_id == name:
                return job
        known.sort(key=lambda job: job.start_time or 0)
        of_run = [job for job in known if (job.metadata or {}).get(RUN) == name]
        if of_run:
            return of_run[-1]
        names = ", ".join(str(job.submission_id) for job in known[-5:]) or "none"
        raise ConfigError(
            f"the cluster at {self.url} has no job {shortened(name)} and none of a run of that name; its jobs: {names}"
        )

    def log(self, job: str) -> str:
        """Returns all that the job's driver has printed so far."""
        with _sentences(self.url):
            return self._client.get_job_logs(job)

    def stop(self, job: str) -> None:
        """Asks a job to end: its driver gets SIGTERM."""
        with _sentences(self.url):
            self._client.stop_job(job)

    def follow(self, job: str, out: Callable[[str], Any]) -> JobDetails:
        """Prints the log of a job as it grows until the job has ended; returns the job as it then is.

        A connection that breaks is made again, and nothing is printed twice. Raises PlacementError after LOST_S without one.
        """
        shown, heard = 0, time.monotonic()
        while True:
            try:
                with _sentences(self.url):
                    shown = asyncio.run(self._tail(job, shown, out))
                info = self.info(job)
                heard = time.monotonic()
            except _NotYet as error:
                if time.monotonic() - heard > LOST_S:
                    raise PlacementError(f"{error}; the job may go on: isentrope status {job}") from None
                info = None
            if info is not None and ended(info):
                rest = self.log(job)[shown:]
                out(rest)
                return info
            time.sleep(AGAIN_S)

    async def _tail(self, job: str, shown: int, out: Callable[[str], Any]) -> int:
        """Prints what comes after the first `shown` characters; returns how many there are now."""
        seen = 0
        import aiohttp

        try:
            async for text in self._client.tail_job_logs(job):
                new = text[max(0, shown - seen) :]
                seen += len(text)
                shown = max(shown, seen)
                if new:
                    out(new)
        except (aiohttp.ClientError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "closed unexpectedly" not in str(error):
                raise
        return shown


def ended(job: JobDetails) -> bool:
    """Returns whether a job has ended."""
    return JobStatus(job.status).is_terminal()


def exit_code(job: JobDetails) -> int:
    """Returns the exit code of a job that has ended, as a shell would: 128 + N for a driver that signal N ended."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    code = job.driver_exit_code
    if code is None:
        return 143 if job.status == JobStatus.STOPPED else 1
    return 128 - code if code < 0 else code
