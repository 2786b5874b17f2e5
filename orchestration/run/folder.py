"""Locks the folder of a run, so that one process at a time writes to it, and keeps there what a later resume needs.

RUN/.lock          held by the process that runs: its host, process id and start
RUN/config.yaml    the whole configuration, written before anything of the run
RUN/modules.json   where environments of the user's own were looked up
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from envs import catalog
from learner.checkpoint import write_whole
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError
from orchestration.text import disk_problem

LOCK, CONFIG, MODULES = ".lock", "config.yaml", "modules.json"
NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[Path, int] = {}  # by this process: how often


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made where needed. Raises ConfigError naming who else holds it.

    The lock ends with the process, however that ends. A process may hold it several times over.
    """
    key = folder.resolve()
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"the run's folder {folder} cannot be written: {error.strerror}") from None
    try:
        _take(descriptor, folder)
        _held[key] = 1
        try:
            yield
        finally:
            del _held[key]
            os.ftruncate(
                descriptor, 0
            )  # the file stays: to remove it would let two processes hold two files of one name
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    """Takes the lock. Where the file system has no flock, what the file says of its holder decides."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(folder, _holder(descriptor)) from None
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise ConfigError(f"the lock {folder / LOCK} cannot be taken: {error.strerror}") from None
        other = _holder(descriptor)
        if other and _may_live(other):
            raise _in_use(folder, other) from None
    own = {"host": socket.gethostname(), "pid": os.getpid(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps(own).encode()
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # held all the same, without a name
            raise


def _holder(descriptor: int) -> dict[str, Any]:
    """Returns what the lock file says of its holder; nothing where it cannot be read."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _may_live(holder: dict[str, Any]) -> bool:
    """Decides whether a holder may still run. Of another host nobody here can tell, so it may."""
    if holder.get("host") != socket.gethostname():
        return True
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _in_use(folder: Path, holder: dict[str, Any]) -> ConfigError:
    who = "another process"
    if holder:
        pid, host, started = (str(holder.get(key))[:64] for key in ("pid", "host", "started"))
        who = f"process {pid} on {host}, since {started}"
    return ConfigError(
        f"{folder} is in use by {who}: stop that run first, or, if it is gone and its host with it, remove {folder / LOCK}"
    )


def write_config(config: RunConfig) -> None:
    """Writes what a resume reads. Raises ConfigError where the folder cannot be written."""
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG, config.to_yaml())
        if any(":" in environment.name for environment in config.all_environments):
            write_whole(folder / MODULES, json.dumps(catalog.module_path()))
    except OSError as error:
        path = Path(str(error.filename or folder))
        raise ConfigError(
            f"run.dir {config.run.dir} cannot be written: {disk_problem(path, error, _free(folder))}"
        ) from None


def look_where_it_looked(folder: Path) -> None:
    """Looks up environments of the user's own where the run in this folder did."""
    try:
        paths = json.loads((folder / MODULES).read_text("utf-8"))
    except (OSError, ValueError):
        return
    for path in paths if isinstance(paths, list) else ():
        if isinstance(path, str) and Path(path).is_dir():
            catalog.look_in(path)


def _free(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
