"""How a model is loaded, and the names and shapes under which its weights leave: those of a checkpoint on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models.families import BY_NAME
from models.one_family import make_model
from safetensors.torch import load_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from learner.deepspeed_engine import DeepSpeedEngine
from learner.policy import exact_attention, load_policy

ON_DISK = (
    "llama-tied",
    "gpt2",
    "qwen3-moe",
    "mixtral",
    "granite-moe",
    "gpt-oss",
    "qwen3-next",
    "ernie4.5-moe",
    "deepseek-v3",
    "glm4-moe",
)


@pytest.mark.parametrize("name", ON_DISK)
def test_what_is_sent_is_what_a_checkpoint_has_on_disk(name: str, tmp_path: Path) -> None:
    make_model(BY_NAME[name], str(tmp_path))
    policy = load_policy(tmp_path, attention="sdpa", checkpointing=False)
    disk = load_file(tmp_path / "model.safetensors")
    sent = dict(part for n, p in policy.weights() for part in policy.on_disk(n, p.detach()))
    assert sent.keys() == disk.keys()
    assert all(torch.equal(sent[key], disk[key]) for key in disk)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_the_manifest_has_the_names_and_shapes_of_the_tensors_that_follow_it(zero_stage: int, tmp_path: Path) -> None:
    make_model(BY_NAME["qwen3-moe"], str(tmp_path))
    policy = load_policy(tmp_path, attention="sdpa", checkpointing=False)
    engine: Any = object.__new__(DeepSpeedEngine)  # neither needs a process group
    engine.settings = SimpleNamespace(zero_stage=zero_stage)
    tensors = list(DeepSpeedEngine.full_weights(engine, policy.weights(), policy.on_disk)) if zero_stage < 3 else []
    if zero_stage == 3:  # a rank holds a part of each parameter, and its whole shape as an attribute
        expected = {n: tuple(t.shape) for n, p in policy.weights() for n, t in policy.on_disk(n, p.detach())}
        for parameter in policy.parameters():
            setattr(parameter, "ds_shape", parameter.shape)  # noqa: B010 - as DeepSpeed does
            parameter.data = torch.empty(0)
    else:
        expected = {name: tuple(tensor.shape) for name, tensor in tensors}
    specs = DeepSpeedEngine.full_specs(engine, policy.weights(), policy.on_disk)
    assert {spec.name: spec.shape for spec in specs} == expected
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in expected


@pytest.mark.parametrize(
    ("kind", "wanted", "chosen", "reason"),
    [
        ("llama", "sdpa", "sdpa", None),
        ("gemma2", "sdpa", "eager", "sdpa ignores its soft cap on attention scores"),
        ("gemma2", "flash_attention_2", "flash_attention_2", None),
        ("gptj", "sdpa", "eager", "transformers has no sdpa for it"),
    ],
)
def test_attention_is_eager_where_sdpa_would_not_compute_the_model(
    kind: str, wanted: str, chosen: str, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "learner.policy"):
        assert exact_attention(CONFIG_MAPPING[kind](), wanted) == chosen
    said = [r.getMessage() for r in caplog.records if r.name == "learner.policy"]
    assert said == ([] if reason is None else [f"{kind} is trained with model.attention=eager: {reason}"])
