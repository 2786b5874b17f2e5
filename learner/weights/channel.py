"""Connects the members of a weight transfer: meeting, broadcasting and waiting, each with a time limit."""

from __future__ import annotations

import socket
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from learner.weights.protocol import Rendezvous, WeightSyncError


def listen(host: str = "") -> socket.socket:
    """Opens a listening socket on a free port for `Publisher(listener=...)`: nobody else can take the port meanwhile."""
    return socket.create_server((host, 0))


class Channel:
    """Connects one member to a process group made from its own store, beside the groups of vLLM and DeepSpeed.

    The constructor blocks until all members have come or `timeout_s` has passed.
    """

    def __init__(self, rendezvous: Rendezvous, timeout_s: float, listener: socket.socket | None = None) -> None:
        self.rendezvous = rendezvous
        self.timeout_s = timeout_s
        self._round = 0
        self._group: Any = None  # ProcessGroupGloo or ProcessGroupNCCL; the stubs know little of either
        limit = timedelta(seconds=timeout_s)
        fd = listener.detach() if listener is not None else None  # the store closes it
        root = rendezvous.rank == 0
        try:
            store = TCPStore(
                rendezvous.host,
                rendezvous.port,
                rendezvous.world_size,
                is_master=root,
                timeout=limit,
                wait_for_workers=False,  # we wait ourselves, to be able to say who did not come
                master_listen_fd=fd,
            )
        except (dist.DistError, RuntimeError) as error:
            detail = f"no store at {rendezvous.host}:{rendezvous.port} within {timeout_s:g} s ({_first_line(error)})"
            raise WeightSyncError(rendezvous.member, "connect", detail) from error
        self._store = PrefixStore(f"isentrope/{rendezvous.epoch}", store)
        self._gather("here", rendezvous.member, timeout_s, "connect")
        try:
            self._group = _group(rendezvous, self._store, limit)
        except (dist.DistError, RuntimeError) as error:
            self.close()
            raise WeightSyncError(rendezvous.member, "connect", _first_line(error)) from error

    def begin(self, digest: str, phase: str, timeout_s: float) -> None:
        """Meets the other members before a transfer: rank 0 learns who is missing or has another manifest before it sends."""
        if self._group is None:
            raise WeightSyncError(
                self.rendezvous.member, phase, "this channel was closed, by us or by an earlier error"
            )
        self._round += 1
        digests = self._gather(f"begin/{self._round}", digest, timeout_s, phase)
        wrong = [self._name(rank) for rank, value in digests.items() if value != digest]
        if wrong:
            self.close()
            raise WeightSyncError(", ".join(wrong), phase, "another manifest was given to it than to the learner")

    def broadcast(self, buffer: torch.Tensor, timeout_s: float | None = None) -> dist.Work:
        """Starts broadcasting `buffer` from rank 0 (filled in place elsewhere); `wait` finishes it."""
        if self._group is None:
            raise WeightSyncError(self.rendezvous.member, "broadcast", "this channel was closed")
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = timedelta(seconds=self.timeout_s if timeout_s is None else timeout_s)
        try:
            return self._group.broadcast([buffer], options)
        except (dist.DistError, RuntimeError) as error:  # NCCL meets here, and may refuse: two members on one GPU
            self.close()
            detail = " ".join(line for line in str(error).splitlines() if line.strip())[-200:]
            raise WeightSyncError(self.rendezvous.member, "broadcast", detail) from error

    def wait(self, work: dist.Work, phase: str, timeout_s: float | None = None) -> None:
        """Blocks until `work` is done; WeightSyncError (and the channel is closed) if it fails or takes too long."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            work.wait(timedelta(seconds=limit))
        except (dist.DistError, RuntimeError) as error:
            self.close()
            detail = f"not done within {limit:g} s, or a member was lost ({_first_line(error)})"
            raise WeightSyncError(self.rendezvous.member, phase, detail) from error

    def close(self) -> None:
        """Leaves the group. Members still in a broadcast see the connection break instead of waiting on."""
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def _gather(self, key: str, value: str, timeout_s: float, phase: str) -> dict[int, str]:
        """Gathers every member's `value` at rank 0, which returns them by rank; the others wait until it has them all."""
        me, limit = self.rendezvous, timedelta(seconds=timeout_s)
        try:
            if me.rank != 0:
                self._store.set(f"{key}/{me.rank}", value)
                self._store.wait([f"{key}/all"], limit)
                return {}
            keys = {rank: f"{key}/{rank}" for rank in range(1, me.world_size)}
            try:
                self._store.wait(list(keys.values()), limit)
            except dist.DistStoreError as error:
                missing = [self._name(rank) for rank, k in keys.items() if not self._store.check([k])]
                detail = f"{', '.join(missing)} did not arrive at {me.host}:{me.port} within {timeout_s:g} s"
                raise WeightSyncError(", ".join(missing) or me.member, phase, detail) from error
            values = {rank: self._store.get(k).decode() for rank, k in keys.items()}
            self._store.set(f"{key}/all", "")
            return values
        except WeightSyncError:
            self.close()
            raise
        except (dist.DistError, RuntimeError) as error:
            self.close()
            detail = f"no answer from the learner within {timeout_s:g} s ({_first_line(error)})"
            raise WeightSyncError(me.member, phase, detail) from error

    def _name(self, rank: int) -> str:
        return self.rendezvous.members[rank] if self.rendezvous.members else f"rank {rank}"


def _group(rendezvous: Rendezvous, store: Store, limit: timedelta) -> Any:
    if rendezvous.backend == "gloo":
        make: Any = dist.ProcessGroupGloo  # its options and devices are not in the stubs
        options = make._Options()
        options._timeout = limit
        # A loopback store means all members share this machine: then do not depend on what its host name resolves to.
        local = _is_loopback(rendezvous.host)
        options._devices = [make.create_device(hostname=rendezvous.host) if local else make.create_default_device()]
        return make(store, rendezvous.rank, rendezvous.world_size, options)
    if not dist.is_nccl_available():
        raise RuntimeError("this torch build has no NCCL: use the gloo backend on CPU")
    options = dist.ProcessGroupNCCL.Options()
    # Our own waits raise first; the group's watchdog, which ends the whole process, is only the second line.
    options._timeout = 2 * limit
    return dist.ProcessGroupNCCL(store, rendezvous.rank, rendezvous.world_size, options)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


def buffer_device(rendezvous: Rendezvous) -> torch.device:
    """Returns where buckets live: NCCL sends from GPU to GPU, gloo from host to host."""
    return torch.device("cuda", torch.cuda.current_device()) if rendezvous.backend == "nccl" else torch.device("cpu")


def bucket_buffer(count: int, device: torch.device) -> torch.Tensor:
    """Allocates a bucket's buffer. On the host of a process that uses a GPU it is page-locked: copies to and from it go at full
    speed."""
    pinned = device.type == "cpu" and torch.cuda.is_initialized()
    return torch.empty(count, dtype=torch.uint8, device=device, pin_memory=pinned)
