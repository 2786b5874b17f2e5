"""Reads what memory this node has: of the host, within the limit of its container, and of a GPU."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import psutil

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
GPUS = Path("/proc/driver/nvidia/gpus")
QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")  # in MiB, a GPU a line
ASK_S = 10.0


def host_bytes() -> int:
    """Returns the host's memory, or the container's limit where that is less."""
    total = psutil.virtual_memory().total
    for file in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # the other version of cgroups, or "max"
            total = min(total, int(file.read_text()))
    return total


def gpus_bytes() -> list[int]:
    """Returns the memory of each of this node's GPUs; of none where there is none, or they cannot be asked."""
    if not GPUS.is_dir():
        return []
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=ASK_S, check=True)
        return [int(line) * 2**20 for line in done.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
