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

from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import ConfigError
from orchestration.memory.learner_rank import BITSANDBYTES, LIBRARIES, rank_need
from orchestration.memory.model_size import ModelSize, model_size
from orchestration.memory.need import Need
from orchestration.memory.plan import (
    BESIDE,
    ENGINE_LIBRARIES,
    generator_need,
    host_need,
    kv_tokens,
    memory_plan,
    misfit,
    needs_of,
    turns,
)

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
    assert found is not None
    assert (found.parameters, found.layers, found.hidden) == (model.num_parameters(), 3, 64)
    assert (found.inner, found.key_width, found.vocabulary) == (inner, width, 160)
    assert (found.query_width, found.head_width) == ((96, 24) if family == "qwen3" else (64, 16))
    assert (found.tied, found.head_norms) == (family != "llama", family == "qwen3")
    linears = 12 if family == "gpt2" else 21  # of three layers; GPT-2 has queries, keys and values in one
    assert sum(count for *_, count in found.matrices) == linears
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and model_size(str(tmp_path)) == found


def test_what_is_not_here_has_no_plan(tmp_path: Path) -> None:
    assert model_size("Qwen/Qwen2.5-0.5B") is None and memory_plan(config("someone/some-model")) is None
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
    need = rank_need(config(folders[family]), size)
    moments = [m for state in optimiser.state.values() for m in state.values() if m.ndim]
    assert need.parts["weights"] == held(model.parameters())
    assert need.parts["gradients"] == held(p.grad for p in model.parameters())
    assert need.parts["ledger"] == 2 * held(model.parameters())
    assert need.parts["moments"] == held(moments)
    assert need.parts["masters"] == 0


@given(st.integers(0, 3), st.integers(1, 64), st.sampled_from(["fp32", "bf16", "fp16"]), st.sampled_from([0.0, 1.0]))
def test_more_ranks_and_higher_stages_never_hold_more(stage: int, ranks: int, mode: str, gpus: float) -> None:
    def need(stage: int, ranks: int) -> Need:
        learner = {"lr": 1e-4, "zero_stage": stage, "ranks": ranks, "gpus": gpus}
        generators = {"max_model_len": 64, "gpus": gpus}
        return rank_need(
            config(learner=learner, precision={"mode": mode}, batch=BATCH, weights=WEIGHTS, generators=generators), SIZE
        )

    kept = ("weights", "masters", "moments", "ledger")
    here, more, higher = need(stage, ranks), need(stage, 2 * ranks), need(min(3, stage + 1), ranks)
    assert all(more.parts[name] <= here.parts[name] for name in kept)
    if gpus or ranks > 1:  # the second rank on CPUs brings gloo's copies
        assert more.total <= here.total
    if stage > 0:
        assert all(higher.parts[name] <= here.parts[name] for name in kept)
    b, share = 4 if mode == "fp32" else 2, -(-SIZE.parameters // ranks)
    assert here.parts["weights"] == b * (share if stage == 3 else SIZE.parameters)
    assert here.parts["moments"] == 8 * (share if stage else SIZE.parameters)
    assert here.parts["ledger"] == (b + 4) * share
    # float32 weights are trained themselves only where ZeRO does not make them flat.
    if b == 4 and not stage:
        assert here.parts["masters"] == 0
    else:
        assert here.parts["masters"] == 4 * (share if stage else SIZE.parameters)


def test_on_a_cpu_libraries_are_in_the_sum_and_on_a_gpu_beside_it() -> None:
    on_cpu = rank_need(config(), SIZE)
    assert on_cpu.parts["libraries"] == LIBRARIES and not on_cpu.beside
    both = {"learner": {"lr": 1e-4, "gpus": 1, "ranks": 4}, "generators": {"max_model_len": 64, "gpus": 1}}
    on_gpu = rank_need(config(**both), SIZE)
    assert "libraries" not in on_gpu.parts and on_gpu.beside["libraries"] == LIBRARIES
    # The first rank alone reads the model, in float32.
    assert on_gpu.on_host() == 4 * LIBRARIES + 4 * SIZE.parameters


def test_an_offloaded_optimiser_is_in_host_memory() -> None:
    def need(offload: bool) -> Need:
        learner = {"lr": 1e-4, "gpus": 1, "ranks": 4, "zero_stage": 2, "offload_optimiser": offload}
        generators = {"max_model_len": 64, "gpus": 1}
        return rank_need(config(learner=learner, generators=generators, precision={"mode": "bf16"}), SIZE)

    there, away = need(False), need(True)
    share = SIZE.parameters // 4
    assert there.parts["masters"] + there.parts["moments"] == 12 * share
    assert away.parts["masters"] == away.parts["moments"] == 0
    assert away.beside["optimiser"] == 16 * share and not there.beside["optimiser"]
    assert away.total <= there.total - 12 * share


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_moments_in_8_bits_take_2_bytes_and_a_scale_a_block(stage: int, gpus: float) -> None:
    def need(bits: int) -> Need:
        learner = {"lr": 1e-4, "gpus": gpus, "ranks": 4, "zero_stage": stage, "optimiser_bits": bits}
        return rank_need(config(learner=learner, generators={"max_model_len": 64, "gpus": gpus}), SIZE)

    full, eight = need(32), need(8)
    share = SIZE.parameters // (4 if stage else 1)
    assert full.parts["moments"] == 8 * share
    assert eight.parts["moments"] == 2 * share + 2 * 4 * -(-share // 256)
    others = {"moments", "optimiser step", "libraries"}
    assert all(eight.parts[name] == size for name, size in full.parts.items() if name not in others)
    libraries = (eight.beside if gpus else eight.parts)["libraries"]
    assert libraries == LIBRARIES + BITSANDBYTES
    if gpus:  # bitsandbytes' kernels have no temporary tensors
        assert full.total - eight.total == full.parts["moments"] - eight.parts["moments"]


def test_inputs_of_layers_are_in_host_memory() -> None:
    def need(offload: bool) -> Need:
        learner = {"lr": 1e-4, "gpus": 1, "ranks": 2, "gradient_checkpointing": True, "offload_activations": offload}
        learner["micro_batch_tokens"] = 1000
        return rank_need(config(learner=learner, generators={"max_model_len": 64, "gpus": 1}), SIZE)

    there, away = need(False), need(True)
    inputs = 1000 * SIZE.hidden * 4
    assert there.estimate - away.estimate == (SIZE.layers - 2) * inputs
    assert away.away == SIZE.layers * 2**19 > SIZE.layers * inputs and not there.away
    assert away.on_host() - there.on_host() == 2 * away.away // 2, "of both ranks, of which half is sure"
    assert "activations about 2.0 MiB" in str(away).partition("in host memory")[2]


@pytest.mark.parametrize(
    ("learner", "generators", "sentence"),
    [
        (
            {"zero_stage": 2, "gpus": 1, "optimiser_bits": 8},
            {"gpus": 1},
            "offload_optimiser is true and optimiser_bits 8",
        ),
        ({"gpus": 1}, {"gpus": 1}, "offload_optimiser is true and zero_stage 0"),
        ({"zero_stage": 2}, {}, "on a CPU the optimiser's state is in host memory already"),
        ({"zero_stage": 2, "gpus": 1}, {"gpus": 1, "colocated": True}, "leave one of the two out"),
    ],
)
def test_offload_without_use_is_refused(learner: dict[str, Any], generators: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config(
            learner={"lr": 1e-4, "offload_optimiser": True, **learner}, generators={"max_model_len": 64, **generators}
        )


@pytest.mark.parametrize(
    ("learner", "sentence"),
    [
        ({"gradient_checkpointing": True}, "on a CPU activations are in host memory already"),
        ({}, "offload_activations is true and gradient_checkpointing false"),
    ],
)
def test_activations_that_cannot_go_to_the_host_are_refused(learner: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config(learner={"lr": 1e-4, "offload_activations": True, **learner})


def test_engines_that_map_the_learners_copy_count_it_once() -> None:
    made = config(generators={"max_model_len": 32, "kv_cache_mb": 16, "count": 3}, learner={"lr": 1e-4, "ranks": 2})
    learner, generator, verifier = needs_of(made, SIZE)
    copy = 4 * SIZE.parameters
    assert (learner.first_only, generator.shared) == (copy, copy)
    assert generator.on_host() == 3 * (ENGINE_LIBRARIES + 4 * SIZE.parameters + 16 * 2**20)
    assert host_need([learner, generator, verifier]) == BESIDE + sum(
        (2 * (learner.least - copy) + copy, generator.on_host(), verifier.certain)
    )


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
    needs = needs_of(made, SIZE)
    assert misfit(made, needs, 7 * GIB, None) is None
    sentence = misfit(made, needs, 2 * GIB, None)
    assert (
        sentence is not None
        and "1 learner rank, 2 generators and 1 verifier need 6.1 GiB of memory at least" in sentence
    )
    shared = config(generators={"max_model_len": 32, "gpus": 0.5}, learner={"lr": 1e-4, "gpus": 0.4})
    needs = needs_of(shared, BILLION, 24 * GIB)
    sentence = misfit(shared, needs, 24 * GIB, 24 * GIB)
    assert sentence is not None and "on one GPU need" in sentence and "the GPU has 24.0 GiB" in sentence
    assert misfit(shared, needs_of(shared, SIZE, 24 * GIB), 24 * GIB, 24 * GIB) is None
    apart = config(generators={"max_model_len": 32, "gpus": 1}, learner={"lr": 1e-4, "gpus": 1})
    sentence = misfit(apart, needs_of(apart, BILLION, 24 * GIB), 64 * GIB, 24 * GIB)
    assert sentence is not None and sentence.startswith("a learner rank needs ")


COLOCATED: dict[str, Any] = {"max_model_len": 32, "gpus": 1, "colocated": True}
BILLION = ModelSize(1_500_000_000, 24, 1024, 4096, 256, 150_000)


def test_colocated_actors_need_the_larger_of_their_turns() -> None:
    made = config(generators=COLOCATED, learner={"lr": 1e-4, "gpus": 1}, precision={"mode": "bf16"})
    learner, generator = rank_need(made, BILLION), generator_need(made, BILLION, 48 * GIB)
    both = turns(learner, generator)
    p, buffers = BILLION.parameters, learner.parts["transfer buffers"]
    assert both.training == learner.certain + learner.estimate // 2 > (2 + 2 + 4 + 8) * p + buffers
    assert generator.parts["weights"] + generator.parts["KV cache"] == 24 * GIB  # half of the GPU
    assert both.generating == generator.certain + 2 * p + buffers
    assert both.host == (4 + 8 + 2) * p
    assert both.training < 48 * GIB < learner.certain + generator.certain
    assert misfit(made, [learner, generator], 32 * GIB, 48 * GIB) is None  # side by side they would not fit
    assert misfit(made, [learner, generator], 32 * GIB, None) is None


@pytest.mark.parametrize(
    ("host", "gpu", "share", "sentence"),
    [
        (16, 48, None, "learner and generators put 19.6 GiB into host memory"),
        (32, 24, None, "the learner needs 36.3 GiB at least while it trains and the GPU has 24.0 GiB"),
        (
            32,
            48,
            0.95,
            "a generator and the learner's weights beside it need 48.6 GiB at least and the GPU has 48.0 GiB",
        ),
    ],
)
def test_a_turn_that_does_not_fit_is_named(host: int, gpu: int, share: float | None, sentence: str) -> None:
    generators = COLOCATED | {"gpu_memory_utilization": share}
    made = config(generators=generators, learner={"lr": 1e-4, "gpus": 1}, precision={"mode": "bf16"})
    needs = [rank_need(made, BILLION), generator_need(made, BILLION, gpu * GIB)]
    found = misfit(made, needs, host * GIB, gpu * GIB)
    assert found is not None and sentence in found, found
