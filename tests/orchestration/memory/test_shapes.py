"""Checks the listed shapes of published models against what transformers builds of the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.builders import config_data
from transformers import AutoConfig, AutoModelForCausalLM

from learner.settings import LoraSettings
from orchestration.config.run_config import validate
from orchestration.memory.plan import memory_plan
from orchestration.memory.shapes import SHAPES, Shape, published_size

# What the models' pages say of their sizes.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
}


def built(name: str, shape: Shape) -> Any:
    """Returns the model on the meta device, where it takes no memory."""
    family = "llama" if "Llama" in name else "qwen3" if "Qwen3" in name else "qwen2"
    config = AutoConfig.for_model(
        family,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_width,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_transformers(name: str) -> None:
    shape = SHAPES[name]
    model = built(name, shape)
    size = shape.size()
    assert size.parameters == model.num_parameters() == PUBLISHED.get(name, size.parameters)
    linears = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    assert sum(rows * columns * n for _, rows, columns, n in size.matrices) == sum(m.weight.numel() for m in linears)
    assert size.adapter(4) == sum(4 * (m.in_features + m.out_features) for m in linears)


def test_an_instruct_model_has_the_shape_of_its_base() -> None:
    assert published_size("Qwen/Qwen2.5-7B-Instruct") == published_size("Qwen/Qwen2.5-7B") is not None
    assert published_size("Qwen/Qwen3-8B-Base") == published_size("Qwen/Qwen3-8B") is not None
    assert published_size("someone/Qwen2.5-7B") is None


def test_a_name_is_planned_for_before_its_weights_are_there() -> None:
    data = config_data(
        model={"path": "Qwen/Qwen2.5-7B-Instruct"}, learner={"lr": 1e-6, "lora": LoraSettings(rank=8).model_dump()}
    )
    plan = memory_plan(validate(data))
    assert plan is not None and plan[0].parts["weights"] == 4 * PUBLISHED["Qwen/Qwen2.5-7B"]
