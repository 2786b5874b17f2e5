"""Chooses the network interface of a process group, and opens its store on a port that was held from the start.

Torch listens on every interface unless it is told otherwise, and finds "its" address by looking its host name up, which many Linux
systems answer with 127.0.x.1. Here a member listens on the interface that leads to rank 0's store, and on no other.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

GLOO_INTERFACES = "GLOO_SOCKET_IFNAME"  # gloo's own variable: names of interfaces, with commas between them


def listen(host: str, port: int = 0) -> socket.socket:
    """Opens a listening socket on a port of `host`, an address of this node, for `open_store(listener=...)`: nobody else can take
    the port meanwhile. 0 is a free one."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)


def open_store(
    host: str, port: int, members: int, *, root: bool, timeout_s: float, listener: socket.socket | None = None
) -> TCPStore:
    """Opens the store at host:port on rank 0 (`root`), and connects to it elsewhere. It does not wait for the members to come.

    listener: what `listen` gave, on rank 0; the store closes it. Without one rank 0 opens the port here.
    """
    from torch._C._distributed_c10d import TCPStore

    if root and listener is None:
        listener = listen(host, port)
    return TCPStore(
        host,
        port,
        members,
        is_master=root,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_address(peer: str) -> str:
    """Returns this node's address on the interface that leads to `peer`. Nothing is sent."""
    family, _, _, _, target = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return probe.getsockname()[0]


def interface_of(address: str) -> str | None:
    """Returns the name of this node's interface that has `address`; None if none has."""
    found = psutil.net_if_addrs().items()
    return next((name for name, entries in found if any(e.address == address for e in entries)), None)


def prefer_interface(peer: str) -> None:
    """Makes gloo groups of this process that are given no device listen where `peer` is reached, unless the user chose already."""
    if GLOO_INTERFACES not in os.environ and (name := interface_of(own_address(peer))) is not None:
        os.environ[GLOO_INTERFACES] = name


def gloo_devices(store_host: str) -> list[Any]:
    """Returns where a member of a gloo group with this store listens: loopback if the store does, as all members are on one node
    then; else what GLOO_SOCKET_IFNAME names; else the interface that leads to the store."""
    from torch.distributed import ProcessGroupGloo

    group: Any = ProcessGroupGloo  # the stubs leave the arguments of create_device open
    chosen = os.environ.get(GLOO_INTERFACES)
    if chosen and not is_loopback(store_host):
        return [group.create_device(interface=name) for name in chosen.split(",")]
    return [group.create_device(hostname=own_address(store_host))]
