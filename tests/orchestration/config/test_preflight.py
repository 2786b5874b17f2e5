"""Tests that what a configuration names is looked for where it should be: every mistake is one sentence before anything starts."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from support.builders import config_data, stages_data

from envs.types import Message, Prompt, Split, Verdict
from orchestration.config.preflight import run_preflight
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError


def preflight(config: dict[str, Any]) -> None:
    run_preflight(validate(config))


def test_a_valid_configuration_passes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    preflight(config_data(model={"path": str(tmp_path)}))
    preflight(config_data(model={"path": "someone/some-model"}))  # a Hugging Face id is looked up later
    assert sorted(tmp_path.iterdir()) == before


def test_an_allocator_that_keeps_a_sleeping_engines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    preflight(config_data())
    with pytest.raises(ConfigError, match=r"^PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: an engine that sleeps"):
        preflight(config_data(generators={"gpus": 1, "colocated": True}, learner={"gpus": 1}))


def test_moments_in_8_bits_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = config_data(learner={"lr": 1e-3, "optimiser_bits": 8})
    preflight(data)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"^learner\.optimiser_bits is 8, .*: `pip install bitsandbytes`, or set learner\.opt"
    ):
        preflight(data)


def test_a_model_folder_that_is_not_there(tmp_path: Path) -> None:
    for path in (str(tmp_path / "gone"), "./gone", "models/gone", "runs/gone/model"):
        with pytest.raises(ConfigError, match=r"the model folder \S+ does not exist: give .* `isentrope init-model`"):
            preflight(config_data(model={"path": path}))
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        preflight(config_data(model={"path": str(tmp_path)}))


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ({"max_position_embeddings": 63}, True),
        ({"max_position_embeddings": 64}, False),
        ({"text_config": {"max_position_embeddings": 63}}, True),
        ({"max_position_embeddings": 63, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, True),
        ({"max_position_embeddings": 63, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, True),
        ({"max_position_embeddings": 63, "rope_scaling": {"type": "linear", "factor": 2.0}}, False),
        ({"max_position_embeddings": 63, "rope_parameters": {"full": {"rope_type": "linear"}, "sliding": {}}}, False),
        ({}, False),
    ],
)
def test_a_context_beyond_a_models_positions_is_refused(tmp_path: Path, model: dict[str, Any], refused: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model))
    config = config_data(model={"path": str(tmp_path)}, generators={"max_model_len": 64})
    if not refused:
        preflight(config)
        return
    with pytest.raises(ConfigError, match=r"generators\.max_model_len is 64 and the model \S+ has 63 positions"):
        preflight(config)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"name": "countdwn"}, r"environments\.0 \(countdwn\): .*did you mean 'countdown'"),
        ({"name": "countdown", "params": {"nubmers": 3}}, "no parameter 'nubmers': did you mean 'numbers'"),
        ({"name": "countdown", "params": {"numbers": "four"}}, "numbers is 'four', it must be int"),
        ({"name": "nowhere.at_all:Thing"}, "no module 'nowhere'"),
        ({"name": "questions"}, "needs the parameter 'path'"),
    ],
)
def test_an_environment_that_cannot_be_built(environment: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        preflight(config_data() | {"environments": [environment]})


def test_a_broken_line_of_a_question_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    lines = ['{"prompt": "1+1?", "answer": 2}', '{"prompt": "2+2?", "answer": 4}', '{"prompt": "3+3?", "answer": ']
    environment = {"name": "questions", "params": {"path": str(path)}}
    path.write_text("\n".join(lines[:2]))
    preflight(config_data() | {"environments": [environment]})
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"environments\.0 \(questions\): .*q\.jsonl, line 3: not JSON"):
        preflight(config_data() | {"environments": [environment]})
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        preflight(config_data() | {"environments": [environment]})


FAULTS = {
    "KeyError": KeyError(7),
    "RuntimeError": RuntimeError("two\nlines"),
    "ValueError": ValueError("two\nlines"),
    "OSError": OSError("two\nlines"),
    "AssertionError": AssertionError(),
}


class Foreign:
    """Acts as an environment or game of somebody else that raises in the method named by `at`; `prompt` raises at index 2."""

    def __init__(self, seed: int = 0, at: str = "", error: str = "") -> None:
        self._at, self._error = at, error
        self._fail("constructor")

    def _fail(self, here: str) -> None:
        if here == self._at:
            raise FAULTS[self._error]

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        self._fail("prompt" if index == 2 else "")
        return Prompt("foreign", split, index, (Message("user", f"{split} {index}"),), {})

    def open(self, prompt: Prompt) -> Any:
        return self

    def reply(self, text: str) -> Verdict:
        return Verdict(1.0)

    def reset(self, seed: int) -> str:
        self._fail("reset")
        return str(seed)

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        return "", 0.0, True, {}

    @property
    def form(self) -> str:
        self._fail("form")
        return ""


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("at", ["constructor", "prompt", "reset", "form"])
def test_whatever_a_foreign_environment_raises_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, at: str, error: str
) -> None:
    module = types.ModuleType("foreign_module")
    module.Foreign = Foreign  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "foreign_module", module)
    faulty = {"at": at, "error": error}
    environment = {"name": "foreign_module:Foreign", "params": faulty}
    if at == "reset":
        environment = {"name": "gym", "params": {"make": environment["name"], "params": faulty}}
    # With stages more than the first prompt is asked for, with the form of responses the environment's own one.
    data: dict[str, Any] = stages_data() | {"rewards": {"format": {"weight": 1}}}
    data["stages"][0]["environments"] = [environment]
    with pytest.raises(ConfigError) as caught:
        preflight(data)
    text = str(caught.value)
    assert text.startswith(f"stages.0.environments.0 ({environment['name']}): ")
    assert "\n" not in text and " ".join(str(FAULTS[error]).split()) in text
    if error not in ("ValueError", "OSError"):  # which are for values that cannot work: sentences already
        assert re.search(rf"test_preflight\.py, line \d+: {error}", text)
