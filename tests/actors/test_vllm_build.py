"""What an engine that cannot be built says: one sentence, with the reason and not with where to read about errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from actors.inference import EngineDead
from actors.settings import GeneratorSettings, VLLMSettings
from actors.vllm_build import build_core, build_reason


class Refusing(BaseModel):
    value: int

    @field_validator("value")
    @classmethod
    def _never(cls, value: int) -> int:
        raise ValueError(f"{value} cannot be\nserved")


def test_pydantics_frame_around_the_sentence_is_left_out() -> None:
    with pytest.raises(ValidationError) as caught:
        Refusing(value=3)
    assert build_reason(caught.value) == "ValidationError: 3 cannot be served"


def test_a_model_file_that_cannot_be_imported_is_named_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.register_model("BrokenForCausalLM", "a_module_that_is_not_there:Broken")
    try:
        error = ValueError("Model architectures ['BrokenForCausalLM'] failed to be inspected. Please check the logs")
        assert build_reason(error) == (
            "its model file for BrokenForCausalLM cannot be imported (ModuleNotFoundError: No module named "
            "'a_module_that_is_not_there')"
        )
    finally:
        del ModelRegistry.models["BrokenForCausalLM"]


@pytest.mark.slow
def test_an_architecture_that_vllm_does_not_know_is_one_line(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["UnheardOfForCausalLM"], "vocab_size": 64, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = VLLMSettings(model=str(tmp_path), generator=GeneratorSettings(max_model_len=32), dtype="float32")
    with pytest.raises(EngineDead) as caught:
        build_core(settings)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"vLLM cannot serve {tmp_path}: ")
    assert "errors.pydantic.dev" not in text


@pytest.mark.slow
def test_qwen3_5_is_imported_without_torchvision_and_leaves_no_stand_in_behind() -> None:
    from actors import vllm_qwen3_5

    assert vllm_qwen3_5.Qwen3_5ForCausalLM.__module__ == "vllm.model_executor.models.qwen3_5"
    if not vllm_qwen3_5.is_torchvision_available():
        assert not [name for name in sys.modules if name.split(".")[0] == "torchvision"]
    with pytest.raises(AttributeError):
        vllm_qwen3_5.Qwen2ForCausalLM  # noqa: B018
