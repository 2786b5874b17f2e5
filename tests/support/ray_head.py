"""Starts a Ray head with token authentication, for tests that submit jobs, and ends it by its process id."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Returns free ports outside 10002-19999, which Ray hands to its workers."""
    held = []
    while len(held) < count:
        server = socket.create_server(("127.0.0.1", 0))
        if not 10002 <= server.getsockname()[1] <= 19999:
            held.append(server)
    ports = [s.getsockname()[1] for s in held]
    for server in held:
        server.close()
    return ports


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True  # 401: it is there and wants the token
    except OSError:
        return False
    return True


def await_agent(address: str, environ: dict[str, str], deadline: float) -> None:
    """Waits until the head takes jobs: its dashboard answers before the agent that starts them is there."""
    submit = [BIN / "ray", "job", "submit", f"--address={address}", "--", "true"]
    while True:
        tried = subprocess.run(submit, env=environ, timeout=120, capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return
        output = tried.stdout + tried.stderr
        assert "No available agent" in output, output[-3000:]
        assert time.monotonic() < deadline, "the head took no job within 120 s"
        time.sleep(1)


@contextlib.contextmanager
def ray_head(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Starts a head node and ends it by its process id; yields (dashboard address, environment)."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    gcs, dashboard, client = free_ports(3)
    environ = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "HF_HUB_OFFLINE": "1"}
    environ["PYTHONPATH"] = str(ROOT)  # as if installed: jobs and workers of the head inherit it
    environ.pop("RAY_ADDRESS", None)
    # Its own, and short for the paths of sockets: Ray notes there which cluster of this machine was started last, and a job of an
    # older one would join that.
    environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="h", dir="/tmp")
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", "--num-cpus=2", "--disable-usage-stats",
        ],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 120
    while not answers(f"{address}/api/version"):
        assert process.poll() is None, "the head ended by itself"
        assert time.monotonic() < deadline, "the head did not come up within 120 s"
        time.sleep(0.3)
    await_agent(address, environ, deadline)
    try:
        yield address, environ
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(30)
        _, alive = psutil.wait_procs(family, timeout=15)
        for child in alive:
            child.kill()
        shutil.rmtree(environ["RAY_TMPDIR"], ignore_errors=True)
