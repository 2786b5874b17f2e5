"""Variables go along by name; their values are in one file that only the user reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestration.errors import ConfigError
from orchestration.jobs import variables


def test_a_variable_comes_back_from_a_file_that_only_the_user_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = variables.chosen(["MY_KEY"], {"MY_KEY": "s'e\"cret\n$x", "OTHER": "y"})
    variables.write(tmp_path, values)
    assert stat.S_IMODE((tmp_path / variables.FILE).stat().st_mode) == 0o600
    monkeypatch.setenv("MY_KEY", "before")
    monkeypatch.chdir(tmp_path)
    variables.load()
    assert os.environ["MY_KEY"] == "before"  # outside a job nothing is read
    monkeypatch.setenv(variables.WHERE, variables.FILE)
    variables.load()
    assert os.environ["MY_KEY"] == "s'e\"cret\n$x"


@pytest.mark.parametrize("name", ["MY_KEY=hidden-value", "hidden value", "NOT_SET"])
def test_what_is_refused_is_not_quoted(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        variables.chosen([name], {"MY_KEY": "hidden-value"})
    assert "hidden" not in str(caught.value)


def test_a_file_that_is_gone_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variables.WHERE, str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="submit it again"):
        variables.load()
