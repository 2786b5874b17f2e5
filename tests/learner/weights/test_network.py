"""Where stores and groups listen: on the interface that is needed, on a port that was held, and on no other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch

from learner.weights.network import gloo_devices, interface_of, listen, open_store, own_address
from learner.weights.protocol import make_manifest, make_rendezvous
from learner.weights.publisher import Publisher
from learner.weights.subscriber import Subscriber

ROOT = Path(__file__).parents[3]


def node_address() -> str:
    """Returns an address of this machine that is not loopback."""
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family == socket.AF_INET and not entry.address.startswith("127."):
                return entry.address
    pytest.skip("this machine has a loopback interface only")


def listening() -> set[tuple[str, int]]:
    """Returns the addresses and ports on which this process listens."""
    sockets = psutil.Process().net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in sockets if c.status == psutil.CONN_LISTEN}


def addresses(sockets: set[tuple[str, int]]) -> set[str]:
    return {ip.removeprefix("::ffff:") for ip, _ in sockets}


@pytest.mark.parametrize("loopback", [True, False])
def test_a_weight_group_listens_where_its_store_does_and_nowhere_else(
    loopback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    host = "127.0.0.1" if loopback else node_address()
    before = listening()
    listener = listen(host)
    own, other = make_rendezvous(host, listener.getsockname()[1], [("generator 0", 1)], "gloo", 0)
    found: list[Subscriber] = []
    joining = threading.Thread(target=lambda: found.append(Subscriber(other, 20.0)))
    joining.start()
    publisher = Publisher(own, 20.0, listener=listener)
    joining.join(20)
    assert addresses(listening() - before) == {host}, "the store or a device listens elsewhere too"
    sent = [("a", torch.arange(4.0))]
    manifest = make_manifest(sent, 1)
    sending = threading.Thread(target=lambda: publisher.publish(manifest, sent))
    sending.start()
    assert all(torch.equal(t, torch.arange(4.0)) for _, t in found[0].receive(manifest))
    sending.join(20)
    publisher.close()
    found[0].channel.close()


def test_a_host_name_of_loopback_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Debian the host name is 127.0.1.1: torch's default device listens there, where no other node gets."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    host = node_address()
    assert own_address(host) == host
    before = listening()
    devices = gloo_devices(host)
    assert devices
    assert addresses(listening() - before) == {host}


def test_the_interface_that_the_user_names_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    with pytest.raises(RuntimeError, match="no-such-interface"):
        gloo_devices("192.0.2.77")
    assert gloo_devices("127.0.0.1")  # a store on loopback: all members are here
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    before = listening()
    devices = gloo_devices("192.0.2.77")
    assert devices
    assert addresses(listening() - before) == {"127.0.0.1"}


def test_an_address_has_its_interface() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.9") is None


def test_a_held_port_is_nobody_elses() -> None:
    """`address` gave a port that it had closed again: another process could take it before the store was opened."""
    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))
    store = open_store("127.0.0.1", port, 1, root=True, timeout_s=10.0, listener=listener)
    store.set("key", "value")
    assert open_store("127.0.0.1", port, 1, root=False, timeout_s=10.0).get("key") == b"value"


@pytest.mark.slow
def test_the_learners_group_listens_on_loopback_alone() -> None:
    """Real DeepSpeed on one rank, in a process of its own: the store that LearnerActor holds, and gloo's devices."""
    code = (
        "import psutil\n"
        "from learner.deepspeed_engine import DeepSpeedEngine\n"
        "from learner.rank_settings import RankPlace\n"
        "from learner.settings import EngineSettings\n"
        "from learner.weights.network import listen\n"
        "held = listen('127.0.0.1')\n"
        "place = RankPlace(0, 1, '127.0.0.1', held.getsockname()[1], False, 60.0)\n"
        "DeepSpeedEngine(place, EngineSettings(), precision='fp32', lr=1e-3, listener=held)\n"
        "import torch.distributed as dist\n"
        "assert dist.is_initialized() and dist.new_group([0]) is not None\n"
        "ports = [c.laddr.ip for c in psutil.Process().net_connections('tcp') if c.status == 'LISTEN']\n"
        "print('listening', sorted({p.removeprefix('::ffff:') for p in ports}))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environ.pop("GLOO_SOCKET_IFNAME", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "listening ['127.0.0.1']" in done.stdout
