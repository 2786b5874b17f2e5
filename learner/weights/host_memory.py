"""Shares a segment of this host's memory between the learner and its engines.

The segment is a memfd: memory without a name. Processes of the same user open it through /proc while its maker lives, and it is
freed when the last of them has ended, whatever ends them: nothing has to be unlinked, nothing lies in /dev/shm, and the size of
that (64 MB in many containers) does not matter.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from torch import Tensor

HEADER = mmap.PAGESIZE  # before the data: a secret that proves which segment was opened
_SECRET_BYTES = 32
MEMORY_SHARE = 0.5  # of what is free, at most, for a segment
_LIMITS = (  # of a container's memory, and what it uses: control groups, version 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def host_id() -> str:
    """Returns what is equal in two processes only if one can find the other's number in its own /proc."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return ""


def free_memory() -> int:
    """Returns the bytes of memory that this host, and this process's container, can still give."""
    free = int(psutil.virtual_memory().available)
    for limit, used in _LIMITS:
        with suppress(OSError, ValueError):  # ValueError: the limit is "max"
            free = min(free, max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
    return free


@dataclass(frozen=True, slots=True)
class SegmentOffer:
    """Says where a segment is: file `fd` of process `pid`; inode, size of its data and secret tell it from any other."""

    pid: int
    fd: int
    inode: int
    nbytes: int
    secret: str


class Segment:
    """Holds `nbytes` of memory that other processes of this user can map. OSError where they cannot be had."""

    def __init__(self, nbytes: int) -> None:
        if nbytes > MEMORY_SHARE * free_memory():
            raise OSError(
                f"{nbytes / 2**20:.0f} MB are more than {MEMORY_SHARE:.0%} of the {free_memory() / 2**20:.0f} MB free"
            )
        self.nbytes = nbytes
        self._fd = os.memfd_create("isentrope_weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(self._fd, 0o600)
            os.posix_fallocate(self._fd, 0, HEADER + nbytes)  # an error now, not a signal at the first touch
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._secret = secrets.token_bytes(_SECRET_BYTES)
            os.pwrite(self._fd, self._secret, 0)
            memory = mmap.mmap(self._fd, HEADER + nbytes)
        except OSError:
            os.close(self._fd)
            raise
        self.data = torch.frombuffer(memory, dtype=torch.uint8)[HEADER:]  # keeps the mapping as long as it is there
        self._pinned = _pin(self.data)

    @property
    def offer(self) -> SegmentOffer:
        return SegmentOffer(os.getpid(), self._fd, os.fstat(self._fd).st_ino, self.nbytes, self._secret.hex())

    def close(self) -> None:
        """Lets nobody else open it. The memory is freed when no tensor of it is left, here and in the others."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        if self._pinned:
            self._pinned = False
            _cuda_runtime().cudaHostUnregister(self.data.data_ptr())


class OpenSegment:
    """Opens the segment of another process, to read it in place. OSError where it is not there, or another one is.

    data: [nbytes] uint8 of pages that cannot be written to: an engine could not change what another one reads, and a write ends it.
    """

    def __init__(self, offer: SegmentOffer) -> None:
        self._fd = os.open(f"/proc/{offer.pid}/fd/{offer.fd}", os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        right = found.st_ino == offer.inode and found.st_size == HEADER + offer.nbytes
        if not right or os.pread(self._fd, _SECRET_BYTES, 0) != bytes.fromhex(offer.secret):
            self.close()
            raise OSError(f"file {offer.fd} of process {offer.pid} is another one here")
        memory = mmap.mmap(self._fd, HEADER + offer.nbytes, prot=mmap.PROT_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is not meant to be
            self.data = torch.frombuffer(memory, dtype=torch.uint8)[HEADER:]

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _pin(tensor: Tensor) -> bool:
    """Page-locks memory in a process that uses a GPU, so that copies to it go at full speed; returns whether it did."""
    if not torch.cuda.is_initialized() or not tensor.numel():
        return False
    return int(_cuda_runtime().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)) == 0


def _cuda_runtime() -> Any:
    return cast(Any, torch.cuda).cudart()  # which has no types
