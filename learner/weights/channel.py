"""Connects the members of a weight transfer: meeting, broadcasting and waiting, each with a time limit."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from learner.weights.network import gloo_devices, open_store
from learner.weights.protocol import Rendezvous, WeightSyncError

LOOK_S = 0.5  # between two looks at who is gone


class Channel:
    """Connects one member to a process group made from its own store, beside the groups of vLLM and DeepSpeed.

    The constructor blocks until all members have come or `timeout_s` has passed. gone: the engines that will not come, which may
    grow while rank 0 waits.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        timeout_s: float,
        listener: socket.socket | None = None,
        gone: Collection[str] = (),
    ) -> None:
        self.rendezvous = rendezvous
        self.timeout_s = timeout_s
        self._gone = gone
        self._round = 0
        self._said: list[str] = []  # the keys of the transfer under way
        self._group: Any = None  # ProcessGroupGloo or ProcessGroupNCCL; the stubs know little of either
        limit = timedelta(seconds=timeout_s)
        try:
            store = open_store(  # it waits for nobody: we do, to be able to say who did not come
                rendezvous.host,
                rendezvous.port,
                rendezvous.world_size,
                root=rendezvous.rank == 0,
                timeout_s=timeout_s,
                listener=listener,
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

    def begin(self, digest: str, phase: str, timeout_s: float, greeting: str = "") -> dict[int, str]:
        """Meets the other members before a transfer: rank 0 learns who is missing or has another manifest before it sends.

        greeting: what this member says of itself. Rank 0 returns those of the others, by rank; the others nothing.
        """
        if self._group is None:
            raise WeightSyncError(
                self.rendezvous.member, phase, "this channel was closed, by us or by an earlier error"
            )
        self._round += 1
        greetings = self._gather(f"begin/{self._round}", f"{digest} {greeting}", timeout_s, phase)
        wrong = [self._name(rank) for rank, value in greetings.items() if value.partition(" ")[0] != digest]
        if wrong:
            self.close()
            raise WeightSyncError(", ".join(wrong), phase, "another manifest was given to it than to the learner")
        self._forget()
        return {rank: value.partition(" ")[2] for rank, value in greetings.items()}

    def gather(self, key: str, value: str, phase: str, timeout_s: float) -> dict[int, str]:
        """Gathers a value of every member at rank 0, in the transfer under way; the others return once rank 0 has them all."""
        return self._gather(f"{key}/{self._round}", value, timeout_s, phase)

    def say(self, key: str, value: str) -> None:
        """Tells the other members something in the transfer under way, at rank 0; they `hear` it."""
        self._set(f"{key}/{self._round}", value)

    def hear(self, key: str, phase: str, timeout_s: float) -> str:
        """Returns what rank 0 says under `key` in the transfer under way. Raises WeightSyncError if it does not."""
        name = f"{key}/{self._round}"
        try:
            self._store.wait([name], timedelta(seconds=timeout_s))
            return self._store.get(name).decode()
        except (dist.DistError, RuntimeError) as error:
            self.close()
            detail = f"no sign of the learner within {timeout_s:g} s ({_first_line(error)})"
            raise WeightSyncError(self.rendezvous.member, phase, detail) from error

    def answer(self, key: str) -> None:
        """Tells rank 0 that this member has come to `key`; it waits with `await_all`."""
        self._set(f"{key}/{self._round}/{self.rendezvous.rank}", "")

    def await_all(self, key: str, phase: str, timeout_s: float) -> None:
        """Waits, at rank 0, for every other member's `answer`. Raises WeightSyncError, which names those that do not come."""
        keys = {rank: f"{key}/{self._round}/{rank}" for rank in range(1, self.rendezvous.world_size)}
        self._said.extend(keys.values())
        try:
            self._await(keys, timeout_s, phase)
        except WeightSyncError:
            self.close()
            raise

    def _set(self, name: str, value: str) -> None:
        self._said.append(name)
        try:
            self._store.set(name, value)
        except (dist.DistError, RuntimeError) as error:
            self.close()
            raise WeightSyncError(self.rendezvous.member, "transfer", _first_line(error)) from error

    def _forget(self) -> None:
        """Deletes what was said in the transfer before: nobody reads it once all have come to the next."""
        said, self._said = self._said, []
        if self.rendezvous.rank == 0:
            for name in said:
                self._store.delete_key(name)

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
                if broken := self._store.get(f"{key}/all").decode():
                    raise WeightSyncError(me.member, phase, f"the learner waits no longer: {broken}")
                return {}
            keys = {rank: f"{key}/{rank}" for rank in range(1, me.world_size)}
            try:
                self._await(keys, timeout_s, phase)
            except WeightSyncError as error:
                self._store.set(f"{key}/all", error.detail)  # the others need not wait for their limit
                raise
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

    def _await(self, keys: dict[int, str], timeout_s: float, phase: str) -> None:
        """Waits, at rank 0, until every member has set its key. Raises WeightSyncError for those that are gone or too late."""
        me, deadline = self.rendezvous, time.monotonic() + timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                self._store.wait(list(keys.values()), timedelta(seconds=min(LOOK_S, left) or 0.001))
                return
            except dist.DistStoreError as error:
                missing = [self._name(rank) for rank, k in keys.items() if not self._store.check([k])]
                gone = [name for name in missing if name.split(" shard ")[0] in self._gone]
                if not gone and (left or not missing):
                    continue
                why = "is gone" if gone else f"did not arrive at {me.host}:{me.port} within {timeout_s:g} s"
                who = ", ".join(gone or missing)
                raise WeightSyncError(who, phase, f"{who} {why}") from error

    def _name(self, rank: int) -> str:
        return self.rendezvous.members[rank] if self.rendezvous.members else f"rank {rank}"


def _group(rendezvous: Rendezvous, store: Store, limit: timedelta) -> Any:
    if rendezvous.backend == "gloo":
        make: Any = dist.ProcessGroupGloo  # its options and devices are not in the stubs
        options = make._Options()
        options._timeout = limit
        options._devices = gloo_devices(rendezvous.host)
        return make(store, rendezvous.rank, rendezvous.world_size, options)
    if not dist.is_nccl_available():
        raise RuntimeError("this torch build has no NCCL: use the gloo backend on CPU")
    options = dist.ProcessGroupNCCL.Options()
    # Our own waits raise first; the group's watchdog, which ends the whole process, is only the second line.
    options._timeout = 2 * limit
    return dist.ProcessGroupNCCL(store, rendezvous.rank, rendezvous.world_size, options)


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
