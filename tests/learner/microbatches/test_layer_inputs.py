"""Inputs of checkpointed layers on the host: gradients to the bit, the inputs alone are moved, and they are freed."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.checkpoint import checkpoint

from learner.microbatches import layer_inputs
from learner.microbatches.layer_inputs import HostInput, LayerInputs
from learner.policy import Policy, load_policy
from learner.settings import LoraSettings

LAYERS, ROWS, LENGTH, HIDDEN = 3, 4, 16, 64
WIDE: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
                        "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64, "head_dim": 16}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**WIDE),
    "qwen3": transformers.Qwen3Config(**WIDE, tie_word_embeddings=True),
    "gemma3": transformers.Gemma3TextConfig(**WIDE),
    "gpt2": transformers.GPT2Config(n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=64, vocab_size=50),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(made[name])
    return made


class Recorder(LayerInputs):
    """Is what a policy is loaded with, and can be asked afterwards."""

    made: list[Recorder]

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []
        self.kept: list[weakref.ref[HostInput]] = []
        self.made.append(self)

    def pack(self, tensor: torch.Tensor) -> Any:
        out = super().pack(tensor)
        self.given.append((tensor.untyped_storage().data_ptr(), tuple(tensor.shape)))
        if isinstance(out, HostInput):
            self.kept.append(weakref.ref(out))
        return out


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    monkeypatch.setattr(Recorder, "made", [], raising=False)
    monkeypatch.setattr("learner.policy.LayerInputs", Recorder)
    return Recorder.made


def loaded(folder: Path, adapted: bool = False, **how: Any) -> Policy:
    policy = load_policy(folder, attention="sdpa", **how)
    if adapted:
        torch.manual_seed(1)
        policy.adapt(LoraSettings(rank=4), "base", 0)
    return policy


def forward(policy: Policy, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 50, (ROWS, LENGTH), generator=generator)
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    targets = torch.randint(0, 50, (40,), generator=generator)
    logp, entropy, *_ = policy(tokens, positions, torch.arange(40), targets, 1.0)
    return (logp * entropy).sum()


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "adapted"), [*((f, False) for f in CONFIGS), ("llama", True), ("qwen3", True), ("gemma3", True)]
)
def test_gradients_are_those_of_checkpoints_without_to_the_bit(
    folders: dict[str, Path], recorders: list[Recorder], family: str, adapted: bool
) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for offload in (False, True):
        policy = loaded(folders[family], adapted, checkpointing=True, offload=offload)
        forward(policy, 1).backward()
        found.append(gradients(policy))
    assert found[0].keys() == found[1].keys() and len(found[0]) > LAYERS
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
    nothing, inputs = recorders
    assert not nothing.given
    assert len(inputs.kept) == LAYERS
    assert inputs.moved == LAYERS * ROWS * LENGTH * HIDDEN * 4


def test_only_the_layers_inputs_are_moved_and_are_freed_with_their_graph(
    folders: dict[str, Path], recorders: list[Recorder]
) -> None:
    policy = loaded(folders["llama"], checkpointing=True, offload=True)
    (inputs,) = recorders
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    loss = forward(policy, 1)
    assert {shape for _, shape in inputs.given} == {(ROWS, LENGTH, HIDDEN)}
    assert not weights & {address for address, _ in inputs.given}
    assert all(ref() is not None for ref in inputs.kept)
    loss.backward()
    del loss
    gc.collect()
    assert all(ref() is None for ref in inputs.kept), "a run would fill host memory"
    with torch.no_grad():
        forward(policy, 1)
    assert len(inputs.kept) == LAYERS, "nothing is kept where nothing is backpropagated"


def test_several_graphs_wait_and_one_is_used_twice(folders: dict[str, Path], recorders: list[Recorder]) -> None:
    """As at an iteration's start, where micro-batches that are measured wait for their backward pass."""
    found: list[dict[str, torch.Tensor]] = []
    for offload in (False, True):
        policy = loaded(folders["qwen3"], checkpointing=True, offload=offload)
        first, second = forward(policy, 1), forward(policy, 2)
        apart = torch.autograd.grad(first, list(policy.parameters()), retain_graph=True)
        first.backward()
        second.backward()
        found.append({**gradients(policy), **{f"apart{i}": g for i, g in enumerate(apart)}})
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_what_is_handed_over_beside_the_input_stays() -> None:
    """A mask or positions of the same shape: all layers have the same, which would be copied once a layer."""
    inputs = LayerInputs()
    x, beside = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    run = inputs.around(lambda layer, *given: checkpoint(layer, *given, use_reentrant=False))
    out = run(lambda x, beside: (x * beside).sin(), x, beside)
    assert inputs.moved == x.nbytes
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (x * beside).cos().detach() * beside)


def test_the_hooks_of_torch_that_this_rests_on() -> None:
    """A checkpoint saves its inputs under the hooks that surround it, and what its layer saves under its own."""
    packed: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tuple(tensor.shape))
        return tensor

    weight, x = torch.randn(5, 7, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        checkpoint(lambda x: (x @ weight).exp().sin(), x, use_reentrant=False)
    assert packed == [(3, 5)]
    assert layer_inputs.LayerInputs().pack(x) is x, "outside of a layer's call nothing is moved"
