"""Stopping a job: it is waited for until it has ended, and not for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from orchestration.errors import PlacementError
from orchestration.jobs import control


class Jobs:
    """Plays a job server whose one job ends after it was asked for `ends_after` times; None: never."""

    def __init__(self, ends_after: int | None) -> None:
        self.ends_after, self.asked, self.stopped = ends_after, 0, 0

    def find(self, name: str) -> Any:
        return self.info(name)

    def info(self, name: str) -> Any:
        self.asked += 1
        over = self.ends_after is not None and self.asked > self.ends_after
        status = JobStatus.STOPPED if over else JobStatus.RUNNING
        return SimpleNamespace(submission_id="mine", status=status)

    def log(self, name: str) -> str:
        return "before" + (" and after" if self.stopped else "")

    def stop(self, name: str) -> None:
        self.stopped += 1


def stopped(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[Any]]:
    said: list[Any] = []
    monkeypatch.setattr(control, "connect_to", lambda address: jobs)
    monkeypatch.setattr(control, "AGAIN_S", 0.01)
    monkeypatch.setattr(control, "STOPPING_S", 0.2)
    return control.stop("mine", "somewhere", False, said.append), said


def test_a_job_is_waited_for_until_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(ends_after=4)
    text, said = stopped(jobs, monkeypatch)
    assert (text, said, jobs.stopped) == ("mine: stopped", [" and after"], 1)


def test_a_job_that_does_not_end_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlacementError, match="mine was asked to stop and has not ended after"):
        stopped(Jobs(ends_after=None), monkeypatch)
