"""The lock of a run's folder: one process at a time, and the second is told who has it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.builders import config_data

from envs import catalog
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError
from orchestration.run import folder as folder_module
from orchestration.run.folder import LOCK, held, look_where_it_looked, write_config

HOLDER = """
import sys, time
from pathlib import Path
from orchestration.run import folder
if sys.argv[2] == "without":
    def refuse(*_):
        raise OSError(38, "Function not implemented")
    folder.fcntl.flock = refuse
with folder.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def no_flock(*_: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("flock", ["with", "without"])
def test_a_second_process_is_told_who_has_the_folder_until_that_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: str
) -> None:
    run = tmp_path / "run"
    if flock == "without":
        monkeypatch.setattr(folder_module.fcntl, "flock", no_flock)
    with subprocess.Popen([sys.executable, "-c", HOLDER, run, flock], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        who = f"in use by process {process.pid} on {socket.gethostname()}, since 20"
        with pytest.raises(ConfigError, match=who) as raised, held(run):
            pass
        assert raised.value.exit_code == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
    with held(run):
        assert json.loads((run / LOCK).read_text())["pid"] == os.getpid()
        with held(run):  # a command and the run that it starts
            pass
        assert (run / LOCK).read_text()
    assert (run / LOCK).read_text() == ""


def test_without_flock_a_holder_on_another_host_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module.fcntl, "flock", no_flock)
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "2026"}))
    with pytest.raises(ConfigError, match=r"process 1 on elsewhere, since 2026: .* remove .*\.lock"), held(tmp_path):
        pass
    (tmp_path / LOCK).write_text("\x00\xff")
    with held(tmp_path):
        pass


def test_where_a_users_environments_were_found_goes_with_the_folder(tmp_path: Path) -> None:
    data = config_data(run={"name": "demo", "iterations": 1, "dir": str(tmp_path)})
    write_config(validate(data))
    assert not (tmp_path / "demo" / "modules.json").exists()
    beside = tmp_path / "beside"
    beside.mkdir()
    catalog.look_in(beside)
    write_config(validate(data | {"environments": [{"name": "own:Own"}]}))
    saved = json.loads((tmp_path / "demo" / "modules.json").read_text())
    assert str(beside.resolve()) in saved
    catalog._folders.clear()
    look_where_it_looked(tmp_path / "demo")
    assert str(beside.resolve()) in catalog.module_path()
    catalog._folders.clear()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(config_data(run={"name": "demo", "iterations": 1, "dir": str(tmp_path)}))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere/config.yaml")

    monkeypatch.setattr(folder_module, "write_whole", full)
    with pytest.raises(ConfigError, match=r"config\.yaml: No space left on device; .* are free"):
        write_config(config)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"), held(tmp_path / "file" / "run"):
        pass
