"""Tests the precision command's prompts, and what it refuses in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from learner.warmstart.tokenizer import build_tokenizer
from orchestration.cli import app
from orchestration.commands.precision import make_tasks
from orchestration.commands.precision_probe import Options
from orchestration.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["models/nowhere"], "the model folder models/nowhere does not exist"),
        (["someone/model", "--modes", "fp32,bf61"], "unknown precision 'bf61': did you mean 'bf16'?"),
        (["someone/model", "--modes", "x"], "known are fp32, bf16, fp16, bf16-fp32head"),
        (["{folder}", "--out", "{folder}/no/where.json"], "no/where.json cannot be written: the folder"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path: Path, words: list[str], expected: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = CliRunner().invoke(app, ["precision", *(w.format(folder=tmp_path) for w in words)])
    assert isinstance(result.exception, ConfigError), result.output
    assert expected in str(result.exception)
    assert result.exception.exit_code == 2


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Returns a configuration and a tokenizer that knows digits and no letters; prompts need no weights."""
    from transformers import Qwen3Config

    Qwen3Config(vocab_size=40, max_position_embeddings=64).save_pretrained(tmp_path)
    build_tokenizer("0123456789 =+-*").save_pretrained(tmp_path)
    return str(tmp_path)


def test_prompts_are_of_the_environment_asked_for_or_of_one_that_fits(model: str) -> None:
    default = make_tasks(model, Options(prompts=5))
    asked = make_tasks(model, Options(env="countdown", params=["numbers=3"], prompts=5))
    assert default.source == asked.source == "prompts of countdown"
    assert len(asked.prompts) == 5
    assert max(map(len, asked.prompts)) < max(map(len, default.prompts))
    assert asked.stop_token_ids
    taught = {"settings": {"environments": [{"name": "arithmetic", "params": {}}]}}
    (Path(model) / "isentrope_init.json").write_text(json.dumps(taught))
    assert make_tasks(model, Options(prompts=2)).source == "prompts of arithmetic"


def test_without_text_that_fits_prompts_are_random_tokens(model: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(model) / name).unlink()
    tasks = make_tasks(model, Options(prompts=50))
    assert tasks.source == "prompts of random tokens"
    assert {t for p in tasks.prompts for t in p} == set(range(40))
    assert make_tasks(model, Options(prompts=50)) == tasks
    assert make_tasks(model, Options(prompts=50, seed=1)) != tasks


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options(max_tokens=64), r"the longest prompt has \d+ tokens .* more than the model's 64 positions"),
        (Options(params=["numbers=3"]), "numbers=3 is a parameter of an environment: name the environment with --env"),
        (Options(env="countdwn"), "did you mean 'countdown'"),
        (
            Options(env="countdown", params=["system=abc"]),
            "--env countdown: the model's tokenizer has no tokens for some of its prompts' characters",
        ),
    ],
)
def test_prompts_that_cannot_be_made(model: str, options: Options, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_tasks(model, options)
