"""Parts for the tests of tests/gpu/driver.py: what each of them does is in its name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def passes(say: Any, *arguments: Any) -> None:
    sys.stdout.write("what a part prints\n")
    say("a sum", 4, True)
    say("arguments", arguments, True)


def finds_something_wrong(say: Any) -> None:
    say("a sum", 4, True)
    say("another", 5, False)


def raises(say: Any) -> None:
    raise RuntimeError("no such card")


def says_nothing(say: Any) -> None: ...


def dies(say: Any) -> None:
    say("before", "", True)
    os.kill(os.getpid(), 11)


def hangs_with_a_child(say: Any, pid_file: str) -> None:
    """Starts a process that ignores the polite signal, as an engine may, and waits for ever."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    Path(pid_file).write_text(str(child.pid))
    say("began", "", True)
    time.sleep(600)
