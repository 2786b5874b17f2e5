"""learner.lora on the command line and in a recipe: what it is short for, what it does not go with, what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models.families import BY_NAME
from models.one_family import make_model
from support.builders import config_data

from learner.policy import load_policy
from learner.settings import LoraSettings
from orchestration.config.loader import put
from orchestration.config.resume_rules import check_resumable
from orchestration.config.run_config import load_config, validate
from orchestration.errors import ConfigError
from orchestration.memory.learner_rank import rank_need
from orchestration.memory.model_size import model_size
from orchestration.memory.plan import generator_need

LR = {"lr": 1e-4}
NO_LEDGER = {"ledger_share": 0.0}  # so that the need is that of a step, with gradients


def lora(value: Any, **sections: Any) -> Any:
    learner = {**LR, **sections.pop("learner", {}), "lora": value}
    return validate(config_data(learner=learner, **sections)).learner.lora


def test_a_number_is_a_rank_wherever_it_is_written() -> None:
    assert lora(8) == lora({"rank": 8}) == LoraSettings(rank=8)
    assert lora(8).scaling == 2.0 and lora({"rank": 8, "alpha": 8}).scaling == 1.0
    assert load_config("smoke", ["learner.lora=8"]).learner.lora == LoraSettings(rank=8)
    both = load_config(
        "smoke", ["learner.lora=8", "--learner.lora.alpha", "4", "learner.lora.targets=[q_proj, v_proj]"]
    )
    assert both.learner.lora == LoraSettings(rank=8, alpha=4, targets=("q_proj", "v_proj"))
    assert load_config("smoke", ["learner.lora.dora=true", "learner.lora=4"]).learner.lora == LoraSettings(
        rank=4, dora=True
    )
    assert load_config("smoke", ["learner.lora=8", "learner.lora=null"]).learner.lora is None


def test_a_runs_own_configuration_is_overridden_in_part() -> None:
    """config.yaml of a run names every key, so that the section is a mapping or null there."""
    data: dict[str, Any] = {"learner": {"lora": {"rank": 4, "alpha": 2.0}}}
    put(data, "learner.lora", 8)
    assert data == {"learner": {"lora": {"rank": 8, "alpha": 2.0}}}
    for key, value in (("learner.lora", 8), ("learner.lora.rank", 8)):
        data = {"learner": {"lora": None}}
        put(data, key, value)
        assert data == {"learner": {"lora": {"rank": 8}}}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (True, "give its rank, as in learner.lora=32, or a mapping such as {rank: 32, alpha: 64}"),
        ([8], "give its rank, as in learner.lora=32"),
        (0, "learner.lora.rank is 0: input should be greater than or equal to 1"),
        ({"rank": 8, "targets": []}, "targets is empty: name linear layers, or leave it out for all of them"),
        ({"r": 8}, "unknown key learner.lora.r"),
    ],
)
def test_what_is_no_adapter_is_answered_with_what_one_is(value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        lora(value)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("value", "sections", "sentence"),
    [
        (
            8,
            {"precision": {"mode": "fp16"}},
            "in fp16 the gradients that come to it through the frozen layers would underflow",
        ),
        (
            {"dora": True},
            {"learner": {"zero_stage": 3}},
            "learner.zero_stage 3 leaves a rank parts of them: set zero_stage to 2",
        ),
        (
            {"dropout": 0.1},
            {"learner": {"gradient_checkpointing": True}},
            "learner.lora.dropout is 0.1 and learner.gradient_",
        ),
        (
            8,
            {"learner": {"gpus": 1}, "generators": {"gpus": 1, "tensor_parallel": 2}},
            "generators.tensor_parallel is 2: an adapter is not divided",
        ),
        (
            8,
            {
                "learner": {"gpus": 1},
                "precision": {"mode": "bf16"},
                "generators": {"gpus": 1, "quantization": "fp8_per_tensor"},
            },
            "generators.quantization is fp8_per_tensor, which is done to weights as they arrive",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(
    value: Any, sections: dict[str, Any], sentence: str
) -> None:
    assert lora(None, **{k: dict(v) for k, v in sections.items()}) is None
    with pytest.raises(ConfigError) as refused:
        lora(value, **sections)
    assert sentence in str(refused.value)


def test_a_resumed_run_keeps_its_adapter() -> None:
    def data(rank: int | None) -> dict[str, Any]:
        return validate(config_data(learner={**LR, "lora": rank})).model_dump(mode="json")

    check_resumable(data(8), data(8), 0)
    for before, now in ((8, 4), (None, 8), (8, None)):
        with pytest.raises(ConfigError, match=r"learner\.lora was .* and is now .*: a resumed run cannot change it"):
            check_resumable(data(before), data(now), 0)
    older = data(None)
    del older["learner"]["lora"]
    check_resumable(older, data(None), 0)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3", "gemma3", "gpt-neox", "phi3"])
@pytest.mark.parametrize("settings", [LoraSettings(rank=4), LoraSettings(rank=3, dora=True, targets=("down_proj",))])
def test_the_plan_counts_what_peft_makes(family: str, settings: LoraSettings, tmp_path: Path) -> None:
    if family == "gpt-neox" and settings.dora:
        pytest.skip("its layers have other names")
    make_model(BY_NAME[family], str(tmp_path))
    policy = load_policy(tmp_path, attention="sdpa", checkpointing=False)
    policy.adapt(settings, str(tmp_path), 0)
    made = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    targets = None if isinstance(settings.targets, str) else settings.targets
    size = model_size(str(tmp_path))
    assert size is not None and size.adapter(settings.rank, settings.dora, targets) == made
    config = validate(
        config_data(model={"path": str(tmp_path)}, learner={**LR, "lora": settings.model_dump(), **NO_LEDGER})
    )
    parts = rank_need(config, size).parts
    assert parts["weights"] == 4 * size.parameters
    assert (parts["adapter"], parts["gradients"], parts["moments"], parts["masters"]) == (
        4 * made,
        4 * made,
        8 * made,
        0,
    )
    plain = generator_need(validate(config_data(model={"path": str(tmp_path)})), size).parts["weights"]
    assert generator_need(config, size).parts["weights"] == plain + 4 * made


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_plan_divides_an_adapter_as_deepspeed_does(stage: int, tmp_path: Path) -> None:
    make_model(BY_NAME["llama"], str(tmp_path))
    size = model_size(str(tmp_path))
    assert size is not None
    adapter = size.adapter(8)
    learner = {**LR, "lora": 8, "zero_stage": stage, "ranks": 4, **NO_LEDGER}
    bf16 = {"mode": "bf16"}
    parts = rank_need(validate(config_data(model={"path": str(tmp_path)}, learner=learner, precision=bf16)), size).parts
    share, part = -(-adapter // 4), -(-size.parameters // 4)
    assert parts["weights"] == 2 * (part if stage == 3 else size.parameters)
    assert parts["adapter"] == 4 * (share if stage == 3 else adapter)
    assert parts["gradients"] == 4 * (share if stage >= 2 else adapter)
    assert parts["moments"] == 8 * (share if stage else adapter)
    assert parts["masters"] == (4 * share if stage else 0)
