"""Tests `envs` and `play` through the real command line."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from envs.catalog import BUILTIN
from orchestration.cli import app

run = CliRunner()


def test_envs_lists_every_environment_with_an_example() -> None:
    result = run.invoke(app, ["envs"])
    assert result.exit_code == 0, result.output
    for name in BUILTIN:
        assert name in result.output
    adapters = ("appworld", "gym")  # to what is not here: the example says what they need
    assert result.output.count("->") == len(BUILTIN) - len(adapters)  # each other example with a correct response
    assert "none: environment 'gym' needs the parameter 'make'" in result.output


@pytest.mark.parametrize(("response", "reward"), [("6\n", "1"), ("7\n", "0")])
def test_play_shows_the_verdict(response: str, reward: str) -> None:
    result = run.invoke(app, ["play", "arithmetic"], input=response)  # the first prompt of seed 0 is 3+3=
    assert result.exit_code == 0, result.output
    assert "3+3=" in result.output
    line = next(x for x in result.output.splitlines() if "reward" in x)
    assert reward in line


def test_play_without_a_response_is_a_sentence() -> None:
    result = run.invoke(app, ["play", "arithmetic"], input="")
    assert "the input ended before the verdict" in str(result.exception)


def test_unknown_environment_and_parameter() -> None:
    assert "did you mean 'countdown'" in str(run.invoke(app, ["play", "countdwn"]).exception)
    assert "digits" in str(run.invoke(app, ["play", "arithmetic", "digit=2"]).exception)
