"""Joins a Ray cluster or starts one of its own, watches that it answers, and leaves it within a limit.

A cluster of our own listens on loopback alone, asks for a token that it was made with, and keeps its files (token, sockets, logs,
spilled objects) in one folder that only this user can enter. Nothing is changed about a cluster that is joined.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psutil
import ray
from ray._private import ray_constants, worker
from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]

from learner.weights.network import GLOO_INTERFACES, interface_of
from orchestration.cluster import lean_ray, placement
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError, IsentropeError, PlacementError, Stopped

T = TypeVar("T")
Say = Callable[[str], None]

ATTEMPTS = 3  # at starting a cluster: under load a process of it may not come up in Ray's own time
PAUSE_S = 5.0  # between the first two of them, and twice that before the third
SHUTDOWN_S = 30.0
PING_EVERY_S, PING_S = 3.0, 5.0
SILENT_S = 30.0  # below the 60 s after which Ray itself would end this process without a line
LOOPBACK = "127.0.0.1"
PREFIX, OWNER = "isentrope-", "driver"  # of the folder of a cluster of our own; the file in it that names its driver
LONGEST_FOLDER = 36  # a socket's path has at most 107 bytes, of which Ray takes up to 68 below this folder
TOKENS: Any = AuthenticationTokenLoader.instance()
RAY_SETTINGS = {
    "gcs_rpc_server_reconnect_timeout_s": 24 * 3600,  # `watch` notices that the GCS is gone; Ray would end this process
    "task_events_report_interval_ms": 0,  # none: the GCS keeps 100,000 calls for a dashboard that is not there, and grows
    # Bytes that a call has with it instead of in the object store: a batch of some thousand tokens is there 2 ms earlier.
    "max_direct_call_object_size": 2**20,
}
NICENESS = "RAY_worker_niceness"  # of every worker, as Ray spells it
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class SessionLost(IsentropeError):
    """Reports that Ray's own processes, which carry every call to an actor, are gone or do not answer."""

    at_once = True  # Ray's threads wait for what is gone, and crash the interpreter at its end


class Session:
    """Holds this process's connection to a Ray cluster. `folder` is the cluster's own; None where it was joined."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.lost: str | None = None  # why, once `watch` has found it lost
        # Of our own cluster: the processes that Ray started here by kind, and every one seen below them.
        self._core = {} if folder is None else _core_processes()
        self._family: dict[int, psutil.Process] = {}
        self._remember()
        node = next(n for n in ray.nodes() if n["NodeID"] == ray.get_runtime_context().get_node_id())
        self._servers = {
            "control service (GCS)": ray.get_runtime_context().gcs_address,
            "node manager (raylet)": f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}",
        }

    async def watch(self, on_lost: Say) -> None:
        """Calls `on_lost`, once, with a sentence when Ray's processes are gone or silent for SILENT_S; returns then."""
        heard = dict.fromkeys(self._servers, time.monotonic())
        async with contextlib.AsyncExitStack() as stack:
            # A proxy of the environment is for the world outside.
            options = [("grpc.enable_http_proxy", 0)]
            channels = {
                name: await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
                for name, address in self._servers.items()
            }
            while self.lost is None:
                self._remember()
                answers = await asyncio.gather(*(_answers(channel) for channel in channels.values()))
                now = time.monotonic()
                heard.update({name: now for name, there in zip(channels, answers, strict=True) if there})
                self.lost = self._ended() or next(
                    (
                        f"Ray's {name} at {self._servers[name]} has not answered for {now - at:.0f} s"
                        for name, at in heard.items()
                        if now - at >= SILENT_S
                    ),
                    None,
                )
                await asyncio.sleep(0.0 if self.lost else PING_EVERY_S)
        on_lost(self.lost)

    def close(self, limit_s: float = SHUTDOWN_S, *, keep_logs: bool = False) -> None:
        """Leaves the cluster within the limit. One of our own is ended, by force where it does not end by itself."""
        self._remember()
        atexit.unregister(ray.shutdown)  # it would be waited for once more, without a limit
        if self.lost is None:
            with contextlib.suppress(TimeoutError):
                bounded(ray.shutdown, limit_s)
        if self.folder is None:
            return
        for process in self._family.values():
            with contextlib.suppress(psutil.NoSuchProcess):  # it knows its process from a later one of the same number
                process.kill()
        psutil.wait_procs(self._family.values(), timeout=5)
        (self.folder / "token").unlink(missing_ok=True)
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _remember(self) -> None:
        """Notes the processes of our own cluster while their parents live: those of a dead one would no longer be found."""
        for root in self._core.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (root, *root.children(recursive=True)):
                    self._family.setdefault(process.pid, process)
        self._family = {pid: process for pid, process in self._family.items() if process.is_running()}

    def _ended(self) -> str | None:
        """Returns a sentence if a process that the cluster cannot do without has ended."""
        for kind in ("gcs_server", "raylet"):
            if (process := self._core.get(kind)) is not None and not _lives(process):
                return f"Ray's {kind}, process {process.pid}, has ended"
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _answers(channel: grpc.aio.Channel) -> bool:
    check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
    try:
        await check(b"", timeout=PING_S)
    except grpc.aio.AioRpcError as error:
        # Any answer of the server's own shows that it is there.
        return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return True


def _core_processes() -> dict[str, psutil.Process]:
    node: Any = worker._global_node
    return {kind: psutil.Process(infos[0].process.pid) for kind, infos in node.all_processes.items() if infos}


def bounded(call: Callable[[], T], limit_s: float) -> T:
    """Returns what `call` returns. Raises TimeoutError after `limit_s`, while `call` goes on in its thread."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"not done within {limit_s:g} s")
    return results[0]


# --- connecting -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(config: RunConfig, copies: int = 1, say: Say = lambda text: None) -> Iterator[Session]:
    """Connects to a Ray cluster with room for `copies` such runs, and leaves it at the end. Several runs in one process share it:
    inside another `connected` it is left to that one."""
    if ray.is_initialized():
        yield Session(None)
        return
    session = connect(config, copies, say)
    keep = False
    try:
        yield session
    except BaseException as error:
        # What the user asked for, or can read off the message, needs no logs.
        keep = not isinstance(error, (ConfigError, PlacementError, Stopped, KeyboardInterrupt))
        raise
    finally:
        session.close(keep_logs=keep)
        if keep and session.folder is not None:
            say(f"Ray's logs of this run are kept in {session.folder}")


def connect(config: RunConfig, copies: int = 1, say: Say = lambda text: None) -> Session:
    """Joins the cluster of cluster.address or RAY_ADDRESS, or starts one in this process. PlacementError if that fails, or if it
    is too small for `copies` such runs side by side."""
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    # An actor with no GPU leaves CUDA_VISIBLE_DEVICES alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    began = time.monotonic()
    session = _join(address, say) if address else _start(config.cluster.num_cpus, say)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        placement.check(placement.plan(config) * copies, ray.cluster_resources(), nodes)
    except BaseException:
        session.close()
        raise
    say(f"Ray is ready after {time.monotonic() - began:.1f} s")
    return session


def _init(**options: Any) -> None:
    """Calls ray.init, which bounds its own waits. In this thread: what it connects in one that ends does not answer afterwards."""
    TOKENS.reset_cache()  # Ray has read another one at its import, or for the session before in this process
    # At once: threads of a session that was lost still ask for one, and Ray ends the process when they find none.
    TOKENS.has_token(ignore_auth_mode=True)
    logging.getLogger("ray").setLevel(logging.ERROR)  # before it is first told `logging_level`
    # An actor that dies is our own event; Ray would print a page about it.
    worker.print_to_stdstream = lambda *_, **__: None
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


def _join(address: str, say: Say) -> Session:
    say(f"joining the Ray cluster at {address}")
    try:
        _init(address=address)
    except Exception as error:  # noqa: BLE001 - Ray raises of every kind, Exception itself too
        raise PlacementError(f"the Ray cluster at {address} cannot be joined: {_one_line(error)}") from None
    if not TOKENS.has_token():
        say(
            f"the Ray cluster at {address} has no token, so that anybody who reaches it can run programs on it; start it with "
            "RAY_AUTH_MODE=token"
        )
    return Session(None)


def _start(num_cpus: int | None, say: Say) -> Session:
    """Starts a cluster of our own. What fails for a moment on a busy machine is tried ATTEMPTS times."""
    say("starting Ray")
    reasons: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        folder = _private_folder()
        before = {p.pid for p in psutil.Process().children()}
        try:
            with _loopback(), _environment(folder), lean_ray.only_what_is_needed():
                _init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    _temp_dir=str(folder / "r"),  # one below: Ray opens its folder to everybody
                    _system_config=RAY_SETTINGS | lean_ray.SETTINGS,  # Ray adds to it, of this session
                )
            return Session(folder)
        except Exception as error:  # noqa: BLE001 - as above
            reasons.append(_one_line(error))
            _clear_away(before, folder)
            if attempt < ATTEMPTS:
                say(f"Ray did not start ({reasons[-1]}); trying again, {attempt + 1} of {ATTEMPTS}")
                time.sleep(
                    PAUSE_S * attempt
                )  # its own limit of 30 s cannot be set: what keeps the machine busy may pass
        except BaseException:
            _clear_away(before, folder)
            raise
    raise PlacementError(f"Ray did not start in {ATTEMPTS} tries, the last time: {reasons[-1]}")


def _clear_away(before: set[int], folder: Path) -> None:
    """Ends what a failed start left: Ray's processes that became children of this one."""
    with contextlib.suppress(Exception):  # it may be in any state; what it leaves is killed below
        bounded(ray.shutdown, 10.0)
    package = str(Path(ray.__file__).parent)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.pid not in before and any(package in part for part in child.cmdline()):
                for process in (*child.children(recursive=True), child):
                    process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _private_folder() -> Path:
    """Makes a folder that only this user can enter, with the token of the cluster in it."""
    temporary = tempfile.gettempdir()
    room = len(temporary) + len(f"/{PREFIX}12345678") <= LONGEST_FOLDER
    parent = Path(temporary if room else "/tmp")
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
    (folder / OWNER).write_text(_owner(psutil.Process()))
    (folder / "token").touch(0o600)
    (folder / "token").write_text(secrets.token_hex(32))
    return folder


def _sweep(parent: Path) -> None:
    """Removes the folders of clusters whose driver was killed. One that ends removes its own, or the token if it keeps the logs."""
    for token in parent.glob(f"{PREFIX}*/token"):
        with contextlib.suppress(OSError, ValueError):  # of another user, or going just now
            host, pid, created = (token.parent / OWNER).read_text("utf-8").split()
            # Another host: a container that shares this folder, whose processes are not seen here.
            if host == socket.gethostname() and token.stat().st_uid == os.getuid() and not _runs(int(pid), created):
                shutil.rmtree(token.parent, ignore_errors=True)


def _owner(process: psutil.Process) -> str:
    """Names a process for good: its number comes again."""
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


def _runs(pid: int, created: str) -> bool:
    try:
        return f"{psutil.Process(pid).create_time():.2f}" == created
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Makes Ray take loopback for this node's address.

    It replaces a loopback address that it is given by the machine's own. Where clusters are off by default, on macOS, it does not,
    and everything it starts then listens on loopback alone; this switches to that.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Sets what the processes of our own cluster inherit, and no other: the token's path, and loopback for their groups."""
    interface = interface_of(LOOPBACK)
    variables: Mapping[str, str | None] = {
        **dict.fromkeys(TOKEN_VARIABLES),  # without a RAY_AUTH_MODE Ray switches to a token, in this process too
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        **{name: os.environ.get(name, interface) for name in (GLOO_INTERFACES, "NCCL_SOCKET_IFNAME")},
        "VLLM_HOST_IP": os.environ.get("VLLM_HOST_IP", LOOPBACK),
        # Ray's own 15 gives way to everything else that runs: on a busy machine iterations took ten times as long.
        NICENESS: os.environ.get(NICENESS, "0"),
    }
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
