"""Freed memory between pieces that are kept goes back to the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# In a process of its own: what is free in this one's heap would go back too.
HOLES = """
import torch
from learner.training_state import heap
from support.memory_cases import MIB, resident
torch.empty(4 * MIB)  # freed at once: from here on glibc takes pieces up to this size from its heap
large, small = [], []
for _ in range(200):
    large.append(torch.ones(256, 1024))
    small.append(torch.ones(256, 8))
held = resident()
del large
free = resident()
heap.trim()
assert all(bool((piece == 1).all()) for piece in small)
print((held - free) / MIB, (free - resident()) / MIB)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
def test_what_is_free_between_kept_pieces_is_given_back() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=120, check=True, env=env
    )
    freed, trimmed = map(float, done.stdout.split())
    assert freed < 20  # MiB of 200: without trim() they stay resident
    assert trimmed > 150
