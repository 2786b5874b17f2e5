"""The job server's address, a job's exit code, and a log that is followed through connections that break."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from orchestration.errors import ConfigError, IsentropeError, PlacementError
from orchestration.jobs import client
from orchestration.jobs.client import Jobs, address_of, exit_code


def job(status: str, code: int | None = None, name: str = "one", run: str = "smoke", start: int = 1) -> JobDetails:
    return JobDetails.model_validate(
        {"type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": "x", "driver_exit_code": code,
         "metadata": {client.RUN: run}, "start_time": start}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "environ", "url"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        ("head", {}, "http://head:8265"),
        ("head:99", {}, "http://head:99"),
        ("http://head:99/", {}, "http://head:99"),
        ("https://ray.example", {}, "https://ray.example"),
        ("http://[::1]", {}, "http://[::1]:8265"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://other:1"}, "http://other:1"),
        (None, {"RAY_ADDRESS": "head:6379"}, "http://127.0.0.1:8265"),  # not a job server's
        ("head", {"RAY_API_SERVER_ADDRESS": "http://other:1"}, "http://head:8265"),
    ],
)
def test_the_address(given: str | None, environ: dict[str, str], url: str) -> None:
    assert address_of(given, environ) == url


@pytest.mark.parametrize("given", ["ray://head:10001", "http://"])
def test_an_address_of_another_kind_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="8265"):
        address_of(given, {})


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_the_exit_code_is_a_shells(status: str, code: int | None, expected: int) -> None:
    assert exit_code(job(status, code)) == expected


class Server:
    """Stands in for Ray's client: its log grows, and its connection breaks after every chunk."""

    def __init__(self, chunks: list[str], jobs: list[JobDetails] | None = None) -> None:
        self.chunks, self.tails, self.jobs = chunks, 0, jobs or []
        self.error: Exception | None = None
        self.submitted: list[str] = []

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.tails += 1
        for chunk in self.chunks[: self.tails]:  # from its beginning, as Ray's does
            yield chunk
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, job_id: str) -> JobDetails:
        return job("RUNNING" if self.tails < len(self.chunks) else "SUCCEEDED")

    def submit_job(self, *, submission_id: str, **options: Any) -> str:
        self.submitted = [*self.submitted, submission_id]
        if submission_id == "lost":  # it was taken, and no answer came
            self.jobs = [job("PENDING", None, submission_id)]
        if len(self.submitted) == 1:
            raise ConnectionError("gone")
        return submission_id

    def get_job_logs(self, job_id: str) -> str:
        return "".join(self.chunks)

    def list_jobs(self) -> list[JobDetails]:
        if self.error:
            raise self.error
        return self.jobs


def jobs(server: Any) -> Jobs:
    return Jobs(server, "http://head:8265")


def test_a_log_is_printed_once_though_the_connection_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "AGAIN_S", 0.0)
    server, printed = Server(["a\n", "bb\n", "c\n"]), list[str]()
    assert jobs(server).follow("one", printed.append).status == JobStatus.SUCCEEDED
    assert "".join(printed) == "a\nbb\nc\n" and server.tails == 3


@pytest.mark.parametrize(("name", "times"), [("lost", 1), ("new", 2)])
def test_a_job_is_submitted_once_though_an_answer_is_lost(
    monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    monkeypatch.setattr(client, "AGAIN_S", 0.0)
    server = Server([])
    jobs(server).submit(name, "true", {}, {})
    assert server.submitted == [name] * times


def test_a_job_is_found_by_its_id_or_as_the_latest_of_its_run() -> None:
    known = [
        job("FAILED", 1, "old", start=5),
        job("RUNNING", None, "new", start=9),
        job("RUNNING", None, "x", "y", start=10),
    ]
    server = jobs(Server([], known))
    assert server.find("old").submission_id == "old"
    assert server.find("smoke").submission_id == "new"
    with pytest.raises(ConfigError, match="has no job smok and none of a run of that name; its jobs: old, new, x"):
        server.find("smok")


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (AuthenticationError("Authentication required: x"), PlacementError, "asks for a token and none was sent"),
        (AuthenticationError("Authentication failed: invalid"), PlacementError, "refuses the token"),
        (ConnectionError("x"), IsentropeError, "no Ray cluster answers at http://head:8265"),
        (RuntimeError("Request failed with status code 400: a\nb."), IsentropeError, "refuses: "),
    ],
)
def test_what_rays_client_raises_is_one_sentence(error: Exception, kind: type[Exception], sentence: str) -> None:
    server = Server([])
    server.error = error
    with pytest.raises(kind, match=sentence) as caught:
        jobs(server).find("x")
    assert "\n" not in str(caught.value)


def test_the_python_is_the_one_that_runs_ray_on_the_head() -> None:
    class Answer:
        status_code = 200

        def json(self) -> Any:
            worker = {"raylet": {"isHeadNode": False}, "cmdline": ["raylet", "--python_worker_command=/w/python x.py"]}
            head = {"raylet": {"isHeadNode": True}, "cmdline": ["raylet", "--python_worker_command='/h h/python' x.py"]}
            return {"data": {"summary": [worker, head]}}

    class Nodes:
        def _do_request(self, method: str, path: str) -> Answer:
            assert (method, path) == ("GET", "/nodes?view=summary")
            return Answer()

    assert jobs(Nodes()).python() == "/h h/python"
