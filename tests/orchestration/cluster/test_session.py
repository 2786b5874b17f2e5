"""A cluster of our own: who gets in, where it listens, how its loss is noticed, and that it ends within a limit."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
from ray._private import parameter

from orchestration.cluster import session
from orchestration.cluster.session import Session, bounded
from orchestration.errors import PlacementError


def test_a_call_that_hangs_is_given_up() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
        bounded(lambda: time.sleep(20), 0.2)
    assert time.monotonic() - begun < 5
    assert bounded(lambda: 7, 5) == 7
    with pytest.raises(ValueError, match="broken"):
        bounded(lambda: int("broken"), 5)


def test_the_token_is_for_this_user_and_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-users-own")
    folder = session._private_folder()
    try:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
        token = (folder / "token").read_text()
        assert len(token) == 64
        before = dict(os.environ)
        with session._environment(folder):
            assert "RAY_AUTH_TOKEN" not in os.environ
            assert "RAY_AUTH_MODE" not in os.environ
            assert os.environ[session.NICENESS] == "0"  # actors give way to nothing
            assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(folder / "token")
            assert token not in os.environ.values()
        assert dict(os.environ) == before
    finally:
        shutil.rmtree(folder)


def test_a_start_that_fails_is_tried_again_and_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load ray.init raised a bare Exception, which ended the run with a traceback."""
    tries: list[str] = []

    def init(**options: Any) -> None:
        tries.append(str(Path(options["_temp_dir"]).parent))
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(session, "_init", init)
    monkeypatch.setattr(session, "PAUSE_S", 0.0)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    said: list[str] = []
    with pytest.raises(
        PlacementError, match=r"in 3 tries, the last time: Exception: The current node timed out during"
    ):
        session._start(1, said.append)
    assert len(tries) == 3
    assert not any(Path(folder).exists() for folder in tries)
    assert said[0] == "starting Ray"


def test_a_folder_that_is_too_long_for_sockets_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 60)))
    folder = session._private_folder()
    assert len(str(folder)) <= session.LONGEST_FOLDER
    shutil.rmtree(folder)


def test_the_folder_of_a_driver_that_was_killed_goes_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LONGEST_FOLDER", 4096)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders = [session._private_folder() for _ in range(6)]
    child = subprocess.Popen([sys.executable, "-c", ""])
    gone = session._owner(psutil.Process(child.pid))
    child.wait(20)
    (folders[1] / session.OWNER).write_text(gone)
    (folders[2] / session.OWNER).write_text(gone)
    (folders[2] / "token").unlink()  # it failed, and keeps its logs
    (folders[3] / session.OWNER).write_text(f"{socket.gethostname()} {os.getpid()} 1.00")  # the number has come again
    (folders[4] / session.OWNER).write_text(f"elsewhere {os.getpid()} 1.00")
    (folders[5] / session.OWNER).write_text("")
    session._private_folder()
    assert [folder.exists() for folder in folders] == [True, False, True, False, True, True]


@pytest.fixture
def own() -> Iterator[Session]:
    found = session._start(1, lambda text: None)
    yield found
    found.close(15.0)


NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"


def ask(address: str, token: str | None, method: str = NODES) -> grpc.StatusCode:
    """Asks a process of Ray's something that it knows the answer to, and returns how it answers."""
    metadata = None if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        call: Any = channel.unary_unary(method)
        try:
            call(b"", timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined]
    return grpc.StatusCode.OK


@ray.remote(num_cpus=0)
class Worker:
    def pid(self) -> int:
        return os.getpid()


def listening() -> dict[int, list[tuple[str, int]]]:
    """Returns where this process and all below it listen, by process."""
    found: dict[int, list[tuple[str, int]]] = {p.pid: [] for p in psutil.Process().children(recursive=True)}
    found[os.getpid()] = []
    sockets: list[Any] = psutil.net_connections("tcp")
    for c in sockets:
        if c.pid in found and c.status == psutil.CONN_LISTEN:
            found[c.pid].append((c.laddr.ip.removeprefix("::ffff:"), c.laddr.port))
    return found


@pytest.mark.slow
def test_who_has_no_token_is_refused_and_nothing_listens_beyond_loopback(own: Session) -> None:
    assert own.folder is not None
    token = (own.folder / "token").read_text()
    worker: Any = Worker.remote()
    pid: Any = ray.get(worker.pid.remote())
    sockets = listening()
    assert {ip for pairs in sockets.values() for ip, _ in pairs} == {"127.0.0.1"}
    assert sockets[own._core["gcs_server"].pid] and sockets[own._core["raylet"].pid]
    ((_, port),) = sockets[pid]
    asked = {
        own._servers["control service (GCS)"]: NODES,
        own._servers["node manager (raylet)"]: "/ray.rpc.NodeManagerService/GetNodeStats",
        f"127.0.0.1:{port}": "/ray.rpc.CoreWorkerService/NumPendingTasks",
    }
    for address, method in asked.items():
        assert ask(address, token, method) == grpc.StatusCode.OK
        assert ask(address, None, method) == grpc.StatusCode.UNAUTHENTICATED
        assert ask(address, "0" * 64, method) == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.slow
def test_nothing_runs_that_nobody_asks(own: Session) -> None:
    assert own._core.keys() == {"gcs_server", "raylet"}  # neither dashboard nor monitors
    time.sleep(2.0)  # Ray starts idle workers a moment after the rest
    below = [" ".join(process.cmdline()) for process in own._core["raylet"].children()]
    assert below and not [line for line in below if "worker" in line or "IDLE" in line]
    # Ray is as it was, for a cluster that somebody else starts here.
    assert not isinstance(parameter.RayParams, partial)


@pytest.mark.slow
def test_what_ray_keeps_is_in_one_folder_of_this_user_alone(own: Session) -> None:
    assert own.folder is not None
    assert stat.S_IMODE(own.folder.stat().st_mode) == 0o700  # Ray opens the folder that it is given to everybody
    below = own.folder / "r" / "session_latest"
    assert list((below / "logs").iterdir()) and list((below / "sockets").iterdir())
    token = (own.folder / "token").read_text()
    for process in own._family.values():
        assert token not in " ".join([*process.environ().values(), *process.cmdline()])
    for kind in ("gcs_server", "raylet"):
        assert own._core[kind].environ()["RAY_AUTH_TOKEN_PATH"] == str(own.folder / "token")


@pytest.mark.slow
def test_a_node_manager_that_ends_is_noticed_and_closing_is_bounded(own: Session) -> None:
    assert own.folder is not None
    reasons: list[str] = []

    async def watched() -> None:
        watching = asyncio.create_task(own.watch(reasons.append))
        await asyncio.sleep(1)
        os.kill(own._core["raylet"].pid, signal.SIGKILL)
        await asyncio.wait_for(watching, 20)

    asyncio.run(watched())
    assert reasons == [f"Ray's raylet, process {own._core['raylet'].pid}, has ended"]
    family, begun = dict(own._family), time.monotonic()
    own.close(15.0)
    assert time.monotonic() - begun < 30
    assert not [p for p in family.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not own.folder.exists()


@pytest.mark.slow
def test_closing_with_a_frozen_node_manager_is_bounded(own: Session) -> None:
    os.kill(own._core["raylet"].pid, signal.SIGSTOP)
    begun = time.monotonic()
    own.close(5.0)
    assert time.monotonic() - begun < 25
    assert not own._core["raylet"].is_running() or own._core["raylet"].status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_the_control_service_keeps_no_record_of_every_call(own: Session) -> None:
    """It grew by 60 % over 1,300 iterations with the records of a hundred thousand calls, which nobody reads."""
    import ray

    def total(a: int, b: int) -> int:
        return a + b

    add: Any = ray.remote(num_cpus=0.1)(total)
    assert ray.get([add.remote(i, 1) for i in range(20)]) == list(range(1, 21))
    time.sleep(3)  # workers report their calls every second
    assert ray.timeline() == []
