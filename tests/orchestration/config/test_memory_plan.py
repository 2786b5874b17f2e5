"""Checks the plan in bytes against what transformers and torch really hold, and when a run is refused for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from support.builders import config_data

from learner.policy import load_policy
from orchestration.config.memory_plan import generator_need, kv_tokens, learner_need, memory_plan, misfit, turns
from orchestration.config.model_size import ModelSize, model_size
from orchestration.config.run_config import RunConfig, validate

GIB = 2**30
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**WIDE, vocab_size=160, num_key_value_heads=2),
    "qwen3": transformers.Qwen3Config(
        **WIDE, vocab_size=160, num_key_value_heads=2, head_dim=24, tie_word_embeddings=True
    ),
    "gpt2": transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, n_positions=64, vocab_size=160),
}
SIZE = ModelSize(parameters=1_000_000, layers=4, hidden=128, inner=512, key_width=64, vocabulary=1000)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}
    for name, config in FAMILIES.items():
        made[name] = tmp_path_factory.mktemp(name)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(made[name])
    return made


def config(model: Path | str = "models/x", **sections: Any) -> RunConfig:
    return validate(config_data(model={"path": str(model)}, **sections))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_widths_are_the_models(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folders[family])
    found = model_size(str(folders[family]))
    width = {"llama": 32, "qwen3": 48, "gpt2": 64}[family]
    inner = {"llama": 192, "qwen3": 192, "gpt2": 256}[family]
    assert found == ModelSize(model.num_parameters(), 3, 64, inner, width, 160)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and model_size(str(tmp_path)) == found


def test_what_is_not_here_has_no_plan(tmp_path: Path) -> None:
    assert model_size("Qwen/Qwen2.5-0.5B") is None and memory_plan(config("Qwen/Qwen2.5-0.5B")) is None
    (tmp_path / "config.json").write_text("{}")
    assert model_size(str(tmp_path)) is None


def held(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rank_holds_what_adamw_holds(folders: dict[str, Path], family: str) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folders[family])
    optimiser = torch.optim.AdamW(model.parameters())
    tokens = torch.arange(8)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimiser.step()
    size = model_size(str(folders[family]))
    assert size is not None
    need = learner_need(config(folders[family]), size)
    moments = [m for state in optimiser.state.values() for m in state.values() if m.ndim]
    assert need.parts["weights"] == held(model.parameters())
    assert need.parts["gradients"] == held(p.grad for p in model.parameters())
    assert need.parts["moments"] == held(moments)
    assert need.parts["masters"] == 0


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_estimated_within_a_factor_of_two(
    folders: dict[str, Path], family: str, checkpointing: bool
) -> None:
    """The sum of what autograd keeps, weights left out. With checkpoints a layer's own comes on top, one layer at a time."""
    rows, length = 8, 64
    policy = load_policy(folders[family], attention="sdpa", checkpointing=checkpointing)
    policy.train()
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.arange(rows * length).view(rows, length) % 160
    positions = torch.arange(length).repeat(rows, 1)
    alive: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (alive.append(t), keep(t))[1], lambda t: t):
        predict = torch.arange(rows * length - 1)
        alive.append(policy(tokens, positions, predict, tokens.flatten()[1:], 1.0))
    size = model_size(str(folders[family]))
    assert size is not None
    learner = {"lr": 1e-4, "micro_batch_tokens": rows * length, "gradient_checkpointing": checkpointing}
    head = 12 * rows * length * 160
    estimate = learner_need(config(folders[family], learner=learner), size).estimate - head
    if checkpointing:
        without = learner_need(config(folders[family], learner=learner | {"gradient_checkpointing": False}), size)
        estimate -= (without.estimate - head - 3 * 4 * rows * length * 64) // 3  # the one layer that is computed again
    assert 0.5 < estimate / sum(kept.values()) < 2.0, (estimate, sum(kept.values()))


@given(st.integers(0, 3), st.integers(1, 64), st.sampled_from(["fp32", "bf16", "fp16"]))
def test_more_ranks_and_higher_stages_never_need_more(stage: int, ranks: int, mode: str) -> None:
    def need(stage: int, ranks: int) -> dict[str, int]:
        learner = {"lr": 1e-4, "zero_stage": stage, "ranks": ranks}
        return dict(
            learner_need(config(learner=learner, precision={"mode": mode}, batch=BATCH, weights=WEIGHTS), SIZE).parts
        )

    here, more, higher = need(stage, ranks), need(stage, 2 * ranks), need(min(3, stage + 1), ranks)
    assert all(more[name] <= here[name] for name in here)
    if stage:
        assert all(higher[name] <= here[name] for name in here)
    whole = {"weights": stage < 3, "gradients": stage < 2, "moments": stage < 1}
    for name, bytes_ in {"weights": 4 if mode == "fp32" else 2, "gradients": 4 if mode == "fp32" else 2}.items():
        assert here[name] == bytes_ * (SIZE.parameters if whole[name] else -(-SIZE.parameters // ranks))
    assert here["moments"] == 8 * (SIZE.parameters if whole["moments"] else -(-SIZE.parameters // ranks))


BATCH = {"prompts": 128, "responses": 8}
WEIGHTS = {"bucket_mb": 64}


def test_an_engine_has_its_weights_and_its_cache() -> None:
    generators = {"max_model_len": 32, "kv_cache_mb": 16, "count": 2}
    made = config(generators=generators)
    need = generator_need(made, SIZE)
    assert (need.parts["weights"], need.parts["KV cache"], need.count) == (4_000_000, 16 * 2**20, 2)
    assert kv_tokens(made, SIZE, 2**20) == 2**20 // (2 * 4 * 64 * 4)
    gpu = config(generators={"max_model_len": 32, "gpus": 0.5}, learner={"lr": 1e-4, "gpus": 0.4})
    share = generator_need(gpu, SIZE, 80 * GIB)
    assert share.certain - share.parts["transfer buffers"] == int(gpu.generators.memory_share * 80 * GIB)


def test_what_fits_is_not_refused_and_what_cannot_fit_is_one_sentence() -> None:
    made = config(generators={"max_model_len": 32, "kv_cache_mb": 1024, "count": 2})
    needs = [learner_need(made, SIZE), generator_need(made, SIZE)]
    assert misfit(made, needs, 3 * GIB, None) is None
    sentence = misfit(made, needs, 2 * GIB, None)
    assert sentence is not None and "1 learner rank and 2 generators need 2.0 GiB of memory at least" in sentence
    shared = config(generators={"max_model_len": 32, "gpus": 0.5}, learner={"lr": 1e-4, "gpus": 0.4})
    large = ModelSize(1_500_000_000, 24, 1024, 4096, 256, 150_000)
    needs = [learner_need(shared, large), generator_need(shared, large, 24 * GIB)]
    sentence = misfit(shared, needs, GIB, 24 * GIB)  # nothing of it is on the host
    assert sentence is not None and "on one GPU need" in sentence and "the GPU has 24.0 GiB" in sentence
    assert misfit(shared, [learner_need(shared, SIZE), generator_need(shared, SIZE, 24 * GIB)], GIB, 24 * GIB) is None


COLOCATED: dict[str, Any] = {"max_model_len": 32, "gpus": 1, "colocated": True}
BILLION = ModelSize(1_500_000_000, 24, 1024, 4096, 256, 150_000)


def test_colocated_actors_need_the_larger_of_their_turns() -> None:
    made = config(generators=COLOCATED, learner={"lr": 1e-4, "gpus": 1}, precision={"mode": "bf16"})
    learner, generator = learner_need(made, BILLION), generator_need(made, BILLION, 24 * GIB)
    both = turns(learner, generator)
    p, buffers = BILLION.parameters, learner.parts["transfer buffers"]
    assert both.training == learner.certain == (2 + 2 + 4 + 8) * p + buffers
    assert generator.parts["weights"] + generator.parts["KV cache"] == 12 * GIB  # half of the GPU
    assert both.generating == generator.certain + 2 * p + buffers
    assert both.host == (4 + 8 + 2) * p
    assert both.training < 24 * GIB < learner.certain + generator.certain
    assert misfit(made, [learner, generator], 32 * GIB, 24 * GIB) is None  # side by side they would not fit
    assert misfit(made, [learner, generator], 32 * GIB, None) is None


@pytest.mark.parametrize(
    ("host", "gpu", "share", "sentence"),
    [
        (16, 24, None, "learner and generators put 19.6 GiB into host memory"),
        (32, 16, None, "the learner needs 22.5 GiB at least while it trains and the GPU has 16.0 GiB"),
        (
            32,
            24,
            0.95,
            "a generator and the learner's weights beside it need 25.8 GiB at least and the GPU has 24.0 GiB",
        ),
    ],
)
def test_a_turn_that_does_not_fit_is_named(host: int, gpu: int, share: float | None, sentence: str) -> None:
    generators = COLOCATED | {"gpu_memory_utilization": share}
    made = config(generators=generators, learner={"lr": 1e-4, "gpus": 1}, precision={"mode": "bf16"})
    needs = [learner_need(made, BILLION), generator_need(made, BILLION, gpu * GIB)]
    found = misfit(made, needs, host * GIB, gpu * GIB)
    assert found is not None and sentence in found, found
