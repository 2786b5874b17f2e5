"""How a command ends whose Ray is gone."""

from __future__ import annotations

import os

import pytest

from orchestration import cli
from orchestration.cluster.session import SessionLost


def test_a_command_that_lost_its_ray_ends_at_once_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ended(Exception):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    def lose(**_: object) -> None:
        raise SessionLost("Ray is gone")

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(cli, "app", lose)
    with pytest.raises(Ended, match="1"):
        cli.main()
    assert capsys.readouterr().err == "isentrope: Ray is gone\n"
