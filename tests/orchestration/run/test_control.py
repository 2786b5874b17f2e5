"""Requests to a run: answered by the driver that lives, refused by one that does not, never fatal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.settings import GeneratorSettings
from orchestration.errors import ConfigError, IsentropeError
from orchestration.run import control
from orchestration.run.control import Handlers, ask, serve
from orchestration.telemetry.sinks.base import RunInfo
from orchestration.telemetry.sinks.status import STATUS_FILE, StatusSink

STOP = {"do": "stop", "now": False}


def running(folder: Path) -> StatusSink:
    sink = StatusSink(folder, 0.05)
    sink.start(RunInfo("sums", folder, 6))
    return sink


def handlers(heard: list[Any]) -> Handlers:
    def scale(wanted: int) -> str:
        heard.append(wanted)
        if wanted > 4:
            raise ConfigError("there are 4 at most: nothing was changed")
        return f"2 generators become {wanted}"

    return Handlers(lambda now: heard.append(now) or f"stops, now={now}", scale)


def served(folder: Path, heard: list[Any], client: Callable[[], Any]) -> Any:
    """Runs a driver's loop here and `client` in a thread; returns what that returned or raises what it raised."""

    async def both() -> Any:
        task = asyncio.create_task(serve(folder, handlers(heard), poll_s=0.02))
        await asyncio.sleep(0.05)
        try:
            return await asyncio.to_thread(client)
        finally:
            task.cancel()

    sink = running(folder)
    try:
        return asyncio.run(both())
    finally:
        sink.close("finished")


def test_a_request_is_carried_out_once_and_answered(tmp_path: Path) -> None:
    heard: list[Any] = []
    assert served(tmp_path, heard, lambda: ask(tmp_path, STOP)) == "stops, now=False"
    assert served(tmp_path, heard, lambda: ask(tmp_path, {**STOP, "now": True})) == "stops, now=True"
    assert served(tmp_path, heard, lambda: ask(tmp_path, {"do": "scale", "generators": 4})) == "2 generators become 4"
    assert heard == [False, True, 4]
    assert not list((tmp_path / control.FOLDER).iterdir())


def test_a_request_that_is_refused_is_answered_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(IsentropeError, match="4 at most: nothing was changed"):
        served(tmp_path, [], lambda: ask(tmp_path, {"do": "scale", "generators": 5}))


BROKEN = [
    b"", b"{", b"\xff", b"[" * 9000, b"x" * 20_000, b"[]", b'{"do": "stop"}', b'{"do": "stop", "now": 1}',
    b'{"do": "scale", "generators": true}', b'{"do": "scale", "generators": "2"}', b'{"do": "eat"}',
]  # fmt: skip


def test_a_broken_request_is_answered_and_the_next_one_works(tmp_path: Path) -> None:
    heard: list[Any] = []

    def client() -> str:
        for number, text in enumerate(BROKEN):
            (tmp_path / control.FOLDER / f"{number}.request.json").write_bytes(text)
        return ask(tmp_path, STOP)

    assert served(tmp_path, heard, client) == "stops, now=False"
    assert heard == [False]
    answers = [json.loads(p.read_text()) for p in (tmp_path / control.FOLDER).glob("*.answer.json")]
    assert len(answers) == len(BROKEN)
    assert all(not a["ok"] and "this is neither" in a["text"] for a in answers)


def test_what_was_asked_before_the_driver_began_is_not_carried_out(tmp_path: Path) -> None:
    (tmp_path / control.FOLDER).mkdir()
    (tmp_path / control.FOLDER / "1.request.json").write_text(json.dumps(STOP))
    heard: list[Any] = []
    assert served(tmp_path, heard, lambda: ask(tmp_path, {**STOP, "now": True})) == "stops, now=True"
    assert heard == [True]
    assert "ask again" in (tmp_path / control.FOLDER / "1.answer.json").read_text()


def test_the_folder_is_closed_to_others_and_may_vanish(tmp_path: Path) -> None:
    def client() -> str:
        folder = tmp_path / control.FOLDER
        assert folder.stat().st_mode & 0o077 == 0
        folder.rmdir()
        return ask(tmp_path, STOP)

    assert served(tmp_path, [], client) == "stops, now=False"


def test_a_request_that_nobody_takes_is_taken_back(tmp_path: Path) -> None:
    sink = running(tmp_path)
    with pytest.raises(IsentropeError, match="taken back"):
        ask(tmp_path, STOP, wait_s=0.2)
    assert not list((tmp_path / control.FOLDER).iterdir())
    sink.close("finished")
    with pytest.raises(IsentropeError, match="the run has finished"):
        ask(tmp_path, STOP)


def test_a_driver_that_is_gone_is_told_from_a_frozen_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOOK_AGAIN_S", 0.01)
    StatusSink(tmp_path, clock=lambda: 1000.0).write()  # 1970: long ago
    assert control.alive(tmp_path) == "dead"
    (tmp_path / control.LOCK_FILE).touch()
    assert control.alive(tmp_path) == "dead"
    with (tmp_path / control.LOCK_FILE).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert control.alive(tmp_path) == "frozen"
        with pytest.raises(IsentropeError, match="frozen"):
            ask(tmp_path, STOP)
    with pytest.raises(IsentropeError, match="dead, resume"):
        ask(tmp_path, STOP)


def test_another_hosts_clock_does_not_make_a_driver_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOOK_AGAIN_S", 0.3)
    sink = StatusSink(tmp_path, 0.02, clock=lambda: 1000.0)
    sink.start(RunInfo("sums", tmp_path, 6))
    assert control.alive(tmp_path) == "running"
    sink.close("failed")
    assert control.alive(tmp_path) == "failed"


def test_a_folder_that_is_no_run_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=STATUS_FILE):
        control.alive(tmp_path)


@pytest.mark.parametrize("bounds", [{"count": 1, "min": 2}, {"count": 5, "max": 4}, {"count": 2, "min": 3, "max": 2}])
def test_the_count_lies_within_its_bounds(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"{bounds['count']} generators, and there have to be .*generators.min"):
        GeneratorSettings.model_validate({"max_model_len": 8, **bounds})


def test_serving_ends_with_its_context(tmp_path: Path) -> None:
    ticks: list[int] = []

    async def run() -> set[asyncio.Task[Any]]:
        h = Handlers(lambda now: "", lambda n: "", lambda: ticks.append(1))
        async with control.serving(tmp_path, h, poll_s=0.01):
            await asyncio.sleep(0.2)
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    assert not asyncio.run(run())
    assert ticks
    assert threading.active_count() >= 1
