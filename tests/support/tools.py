"""Finds the programs that check files of other kinds: those of this environment, else those on the path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def tool(name: str) -> str:
    """Returns the path of a program. Raises AssertionError, with what to do, where it is not installed."""
    path = find_tool(name)
    assert path is not None, f"{name} is not installed: it is of the extra `dev`, make install"
    return path


def find_tool(name: str) -> str | None:
    """Returns the path of a program; None where it is not installed."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def output_of(*command: str | Path) -> tuple[int, str]:
    """Returns the exit code of a program, and all it printed."""
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr
