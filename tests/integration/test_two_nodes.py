"""Two nodes of a Ray cluster on one machine, with networks and processes of their own: learner on one, generators on the other."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.ray_head import BIN, ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

NODES = {"learner-node": "10.213.0.1", "generator-node": "10.213.0.2"}
PLACES = {"learner": "learner_node", "generators": "generator_node", "verifiers": "generator_node"}


def done(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


@contextlib.contextmanager
def networks() -> Iterator[dict[str, str]]:
    """Makes a network for each node, joined by a cable; yields the name of each. Skips where this user may not."""
    if os.getuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs root, ip and unshare, for networks of its own")
    mark = uuid.uuid4().hex[:6]
    names = {node: f"{node[0]}{mark}" for node in NODES}
    left, right = names.values()
    try:
        if not all(done("ip", "netns", "add", name) for name in (left, right)):
            pytest.skip("this machine lets nobody make networks")
        cable = [
            "ip",
            "link",
            "add",
            f"v{left}",
            "netns",
            left,
            "type",
            "veth",
            "peer",
            "name",
            f"v{right}",
            "netns",
            right,
        ]
        assert done(*cable)
        for node, name in names.items():
            inside = ["ip", "-netns", name]
            assert done(*inside, "addr", "add", f"{NODES[node]}/24", "dev", f"v{name}")
            assert done(*inside, "link", "set", f"v{name}", "up") and done(*inside, "link", "set", "lo", "up")
            assert done(*inside, "route", "add", "default", "via", NODES[node])  # Ray asks which address leads outside
        yield names
    finally:
        for name in names.values():
            done("ip", "netns", "del", name)


@contextlib.contextmanager
def node(network: str, name: str, environ: dict[str, str], folder: Path, *arguments: str) -> Iterator[None]:
    """Runs `ray start` in a network, with a host name and a table of processes of its own: all of them end with it."""
    own = 'hostname $0 && mount --bind $HOSTS /etc/hosts && mount -t tmpfs tmpfs $FOLDER && exec "$@"'
    command = [
        "ip", "netns", "exec", network, "unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
        "bash", "-c", own, name, str(BIN / "ray"), "start", "--block", "--disable-usage-stats", f"--temp-dir={environ['FOLDER']}",
        f"--node-ip-address={NODES[name]}", *arguments,
    ]  # fmt: skip
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.kill()
        process.wait(30)


def started(network: str, address: str, cwd: Path, environ: dict[str, str]) -> None:
    """Waits until the head takes questions: a node that comes before it gives up."""
    deadline = time.monotonic() + 120
    while "has no job" not in (asked := inside(network, ["status", "x", f"--address={address}"], cwd, environ)).stderr:
        assert time.monotonic() < deadline, asked.stderr


def inside(network: str, words: Sequence[str], cwd: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["ip", "netns", "exec", network, sys.executable, "-P", "-m", "orchestration", *words]
    return subprocess.run(command, cwd=cwd, env=environ, timeout=400, capture_output=True, text=True, check=False)


def members(run: Path) -> dict[str, Any]:
    return {member["name"]: member for member in json.loads((run / "status.json").read_text())["members"]}


def test_learner_and_generators_are_on_nodes_of_their_own(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(uuid.uuid4().hex * 2)
    token.chmod(0o600)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in NODES.items()))
    environ = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
        "HOSTS": str(hosts),
    }  # fmt: skip
    environ.pop("RAY_ADDRESS", None)
    learner, generators = NODES
    with contextlib.ExitStack() as stack:
        # Ray's own files: a folder of each node's at one path, short for the paths of sockets; here it is empty.
        environ["FOLDER"] = tempfile.mkdtemp(prefix="n", dir="/tmp")
        stack.callback(Path(environ["FOLDER"]).rmdir)
        names = stack.enter_context(networks())
        head = ["--head", "--dashboard-host=0.0.0.0", "--num-cpus=1", resources("learner_node")]
        stack.enter_context(node(names[learner], learner, environ, tmp_path, *head))
        started(names[generators], NODES[learner], tmp_path, environ)
        other = [f"--address={NODES[learner]}:6379", "--num-cpus=2", resources("generator_node")]
        stack.enter_context(node(names[generators], generators, environ, tmp_path, *other))
        made = inside(names[generators], ["init-model", "--recipe", "smoke", "steps=0"], tmp_path, environ)
        assert made.returncode == 0, made.stderr[-3000:]
        job = [
            "submit", "smoke", f"--address={NODES[learner]}", f"run.dir={tmp_path}/runs", "run.iterations=4",
            "evaluation.prompts=0", f"cluster.node_resources={json.dumps(PLACES)}",
        ]  # fmt: skip
        deadline = time.monotonic() + 200
        while (
            sent := inside(names[generators], job, tmp_path, environ)
        ).returncode == 3 and time.monotonic() < deadline:
            assert "the cluster has" in sent.stdout, (
                sent.stdout[-3000:] + sent.stderr[-3000:]
            )  # the other is still joining
    assert sent.returncode == 0, sent.stdout[-3000:] + sent.stderr[-3000:]
    run = tmp_path / "runs" / "smoke"
    where = {name: member["node"] for name, member in members(run).items()}
    assert where == {"learner rank 0": learner, "generator 0": generators, "verifier 0": generators}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["sync/bytes"] > 0 and row["sync/logprob_gap_max"] < 1e-4 for row in rows)


def resources(name: str) -> str:
    return f'--resources={{"{name}": 1}}'
