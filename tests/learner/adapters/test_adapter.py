"""An adapter in a model: what it begins as, what is trained, what leaves for engines and files, and that peft agrees."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import BY_NAME
from models.one_family import make_model
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from learner.adapters.adapter import WEIGHTS_FILE, Adapter
from learner.adapters.merge import merge
from learner.adapters.names import IN_FILE, LORA_A, LORA_B, OUTPUT_SCALE, split_name
from learner.checkpoint import CheckpointError
from learner.policy import Policy, load_policy
from learner.settings import LoraSettings
from learner.types import UnsupportedModel

TOKENS = torch.tensor([[5, 9, 2, 77, 31, 8, 64, 3]])
LORA, DORA = LoraSettings(rank=4), LoraSettings(rank=4, alpha=6, dora=True)
BOTH = pytest.mark.parametrize("settings", [LORA, DORA], ids=["lora", "dora"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("llama")
    make_model(BY_NAME["llama-tied"], str(path))
    return str(path)


def adapted(folder: str, settings: LoraSettings, dtype: torch.dtype = torch.float32) -> tuple[Policy, Adapter]:
    policy = load_policy(folder, attention="sdpa", checkpointing=False).cast(dtype)
    return policy, policy.adapt(settings, folder, seed=3)


def learn(adapter: Adapter) -> None:
    """Moves everything that is trained, as far as some hundred steps would."""
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in adapter.trained():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=numbers))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_begins_without_effect_and_is_trained_in_float32(
    folder: str, settings: LoraSettings, dtype: torch.dtype
) -> None:
    base = load_policy(folder, attention="sdpa", checkpointing=False).cast(dtype)
    policy, adapter = adapted(folder, settings, dtype)
    assert torch.equal(logits(policy.model), logits(base.model))
    trained = {id(p) for _, p in adapter.trained()}
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad == (id(parameter) in trained), name
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else dtype), name
    layers = 2 * 7  # queries, keys, values, output; gate, up, down
    assert len(trained) == layers * (3 if settings.dora else 2)
    assert not any(module.training for module in policy.model.modules() if "ora" in type(module).__name__)


@BOTH
def test_the_reference_is_the_model_with_its_adapter_off(folder: str, settings: LoraSettings) -> None:
    base = load_policy(folder, attention="sdpa", checkpointing=False)
    policy, adapter = adapted(folder, settings)
    learn(adapter)
    moved = logits(policy.model)
    with adapter.off():
        assert torch.equal(logits(policy.model), logits(base.model))
    assert torch.equal(logits(policy.model), moved)
    assert float((moved - logits(base.model)).abs().max()) > 0.1
    assert all(p.requires_grad for _, p in adapter.trained())


@BOTH
def test_what_engines_are_sent_makes_the_layers_output(folder: str, settings: LoraSettings) -> None:
    """By the formula of learner/adapters/adapter.py, from what is sent and the base weights alone."""
    policy, adapter = adapted(folder, settings)
    learn(adapter)
    sent = {name: tensor.detach() for name, tensor in policy.weights()}
    assert sum(t.nbytes for t in sent.values()) == sum(p.nbytes for p in policy.parameters() if p.requires_grad)
    assert {split_name(n)[1] for n in sent} == {LORA_A, LORA_B, *([OUTPUT_SCALE] if settings.dora else [])}
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    for name, layer in adapter.layers:
        base: Any = layer.get_base_layer()
        if base.in_features != 64:
            continue
        change = settings.scaling * x @ sent[f"{name}.{LORA_A}"].T @ sent[f"{name}.{LORA_B}"].T
        expected = x @ base.weight.T + change
        if settings.dora:
            expected = expected * sent[f"{name}.{OUTPUT_SCALE}"]
        with torch.no_grad():
            assert torch.allclose(layer(x), expected, atol=1e-5), name


@BOTH
def test_files_go_to_peft_and_transformers_and_come_back(folder: str, settings: LoraSettings, tmp_path: Path) -> None:
    policy, adapter = adapted(folder, settings)
    learn(adapter)
    adapter.write(tmp_path, dict(policy.saved_weights()))
    expected = logits(policy.model)
    assert sum(t.nbytes for t in load_file(tmp_path / WEIGHTS_FILE).values()) < 60_000
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(PeftModel.from_pretrained(plain, str(tmp_path))), expected)
    if not settings.dora:  # transformers 5.19 loads the magnitudes of DoRA under a name that it then does not find
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)), expected)
    again, other = adapted(folder, settings)
    other.load(tmp_path)
    assert torch.equal(logits(again.model), expected)
    assert all(torch.equal(p, dict(adapter.trained())[n]) for n, p in other.trained())


@BOTH
def test_a_merged_model_is_the_adapted_one(folder: str, settings: LoraSettings, tmp_path: Path) -> None:
    policy, adapter = adapted(folder, settings)
    learn(adapter)
    adapter.write(tmp_path / "adapter", dict(policy.saved_weights()))
    merge(tmp_path / "adapter", folder, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert float((logits(merged) - logits(policy.model)).abs().max()) < 1e-5
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    names = load_file(tmp_path / "merged" / "model.safetensors").keys()
    assert names == load_file(Path(folder) / "model.safetensors").keys()


def test_an_adapter_of_another_shape_is_refused(folder: str, tmp_path: Path) -> None:
    policy, adapter = adapted(folder, LORA)
    adapter.write(tmp_path, dict(policy.saved_weights()))
    _, wider = adapted(folder, LoraSettings(rank=8))
    with pytest.raises(CheckpointError, match="is of another adapter: 28 tensors are not alike, such as base_model"):
        wider.load(tmp_path)
    _, fewer = adapted(folder, LoraSettings(rank=4, targets=("q_proj",)))
    before = copy.deepcopy(dict(fewer.trained()))
    with pytest.raises(CheckpointError, match="24 tensors are not alike"):
        fewer.load(tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in fewer.trained())
    save_file({}, tmp_path / "x")
    (tmp_path / WEIGHTS_FILE).write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        adapter.load(tmp_path)


def test_targets_choose_layers_and_a_name_of_none_is_refused(folder: str) -> None:
    _, few = adapted(folder, LoraSettings(rank=4, targets=("q_proj", "layers.1.mlp.up_proj")))
    names = sorted({split_name(n.removeprefix(IN_FILE))[0].removeprefix("model.layers.") for n, _ in few.trained()})
    assert names == ["0.self_attn.q_proj", "1.mlp.up_proj", "1.self_attn.q_proj"]
    with pytest.raises(UnsupportedModel, match=r"learner\.lora\.targets: .*no_such_proj"):
        adapted(folder, LoraSettings(rank=4, targets=("no_such_proj",)))
    with pytest.raises(
        UnsupportedModel, match="embed_tokens is a Embedding, and engines take adapters of linear layers"
    ):
        adapted(folder, LoraSettings(rank=4, targets=("embed_tokens",)))


@BOTH
def test_dropout_follows_from_its_seed_and_ends_with_its_pass(folder: str, settings: LoraSettings) -> None:
    policy, adapter = adapted(folder, settings.model_copy(update={"dropout": 0.5}))
    learn(adapter)
    whole, cpu = logits(policy.model), torch.device("cpu")
    torch.manual_seed(11)
    before = torch.random.get_rng_state()

    def dropped(seed: int) -> torch.Tensor:
        with adapter.dropout(seed, cpu):
            return logits(policy.model)

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))
    assert not torch.equal(dropped(1), whole)
    assert torch.equal(logits(policy.model), whole)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_rank_begins_with_the_same_adapter_and_draws_nothing_from_others(folder: str) -> None:
    state = torch.random.get_rng_state()
    _, first = adapted(folder, LORA)
    torch.random.set_rng_state(state)
    torch.rand(5)
    _, second = adapted(folder, LORA)
    assert all(torch.equal(p, dict(second.trained())[n]) for n, p in first.trained())


def test_names() -> None:
    assert split_name("model.layers.0.mlp.up_proj.lora_A.weight") == ("model.layers.0.mlp.up_proj", "lora_A.weight")
    with pytest.raises(ValueError, match=r"up_proj\.weight is not the name of an adapter's tensor"):
        split_name("model.layers.0.mlp.up_proj.weight")
