"""A learner's rank on a GPU: its process group and device, what it reads and sends there, and which kernels it chooses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fake_cuda import FakeGPUs
from torch import nn

from learner import deepspeed_engine
from learner import learner as learner_module
from learner.adapters.adapter import Adapter
from learner.deepspeed_engine import DeepSpeedEngine, untrainable
from learner.head import blocks, fused
from learner.head.blocks import LogitGradient
from learner.head.fused import tiling
from learner.head.logits import Head
from learner.microbatches import packed_attention
from learner.microbatches.layer_inputs import HostInput, LayerInputs
from learner.microbatches.packed_attention import PackedRow, takes_varlen
from learner.optimiser import adamw
from learner.optimiser.moments import EightBit
from learner.policy import Policy
from learner.rank_settings import RankPlace
from learner.settings import EngineSettings
from learner.training_state import one_read

GROUP = {"nccl": True, "gloo": False}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGPUs:
    fake = FakeGPUs()
    fake.install(monkeypatch)
    return fake


# The group and the device.


def join(
    monkeypatch: pytest.MonkeyPatch, gpus: FakeGPUs, cuda: bool, rank: int = 1, world: int = 2
) -> tuple[DeepSpeedEngine, dict[str, Any]]:
    """Builds the engine of a rank up to its model; returns it and what torch's group was made with."""
    import deepspeed

    found: dict[str, Any] = {}
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(deepspeed_engine, "open_store", lambda *a, **k: found.update(met=(a, k)) or "the store")
    monkeypatch.setattr(deepspeed_engine, "prefer_interface", lambda address: None)

    def group(backend: str, **options: Any) -> None:
        gpus.say("group", backend)
        found.update(options, backend=backend)

    monkeypatch.setattr(torch.distributed, "init_process_group", group)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: gpus.say("deepspeed", options))
    monkeypatch.setattr(deepspeed_engine, "untrainable", lambda precision, there: found.update(cuda=there))
    place = RankPlace(rank, world, "10.0.0.1", 41000, cuda, 60.0)
    return DeepSpeedEngine(place, EngineSettings(), precision="fp32", lr=0.1), found


@pytest.mark.parametrize("backend", GROUP)
@pytest.mark.parametrize("world", [1, 2, 8])
def test_ranks_meet_over_nccl_on_gpus_and_over_gloo_on_cpus(
    monkeypatch: pytest.MonkeyPatch, gpus: FakeGPUs, backend: str, world: int
) -> None:
    engine, found = join(monkeypatch, gpus, GROUP[backend], world - 1, world)
    assert (found["backend"], found["rank"], found["world_size"]) == (backend, world - 1, world)
    assert found["timeout"].total_seconds() == 60
    assert found["met"][0] == ("10.0.0.1", 41000, world) and found["met"][1]["root"] is (world == 1)
    assert found["store"] == "the store"
    # Ray lets a rank see one GPU: it is number 0 in every process, and so is DeepSpeed's LOCAL_RANK.
    device = torch.device("cuda", 0) if GROUP[backend] else torch.device("cpu")
    assert engine.device == device
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]) == (str(world - 1), "0", str(world))
    # Subgroups are split off a group that is bound to its device; a single rank has nobody to split from.
    assert found["device_id"] == (device if GROUP[backend] and world > 1 else None)
    names = [event[0] for event in gpus.events]
    assert names == (["set_device"] if GROUP[backend] else []) + ["group", "deepspeed"], (
        "the device is set before the group"
    )


def test_deepspeed_takes_the_cpu_where_a_rank_has_no_gpu_and_finds_a_gpu_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import deepspeed

    monkeypatch.setattr(
        deepspeed,
        "get_accelerator",
        lambda: SimpleNamespace(is_fp16_supported=lambda: True, is_bf16_supported=lambda: False),
    )
    for cuda, expected in ((True, None), (False, "cpu")):
        monkeypatch.setattr(os, "environ", {})
        assert untrainable("fp16", cuda) is None
        assert untrainable("bf16", cuda) == "this device has no bf16 arithmetic"
        assert os.environ.get("DS_ACCELERATOR") == expected


def test_moments_in_8_bits_are_made_on_the_gpu(gpus: FakeGPUs) -> None:
    """Codes and scales beside the weights; the levels come there with the first tensor. The step itself is bitsandbytes' kernel."""
    with gpus.here():
        weight = nn.Parameter(gpus.mark(torch.zeros(5000), torch.device("cuda", 0)))
        optimiser = adamw.build(EngineSettings(optimiser_bits=8), [{"params": [weight]}], 0.1, cuda=True)
        assert "fused" not in optimiser.defaults
        moments = adamw.values_of(optimiser, weight)
        for moment in moments.values():
            assert isinstance(moment, EightBit)
            assert gpus.device_of(moment.codes) == gpus.device_of(moment.absmax) == torch.device("cuda", 0)


@pytest.mark.parametrize("cuda", [True, False])
def test_the_optimiser_is_fused_and_what_is_offloaded_page_locked_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: FakeGPUs, cuda: bool
) -> None:
    import deepspeed

    engine, _ = join(monkeypatch, gpus, cuda)
    engine.settings = EngineSettings(zero_stage=2, offload_optimiser=True)
    given: dict[str, Any] = {}
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: given.update(adamw=options))

    def initialize(**options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(allreduce_gradients=lambda **sizes: sizes, optimizer=None), None

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    engine.attach(nn.Linear(3, 2))
    assert bool(given["adamw"].get("fused")) is cuda
    assert given["config"]["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": cuda}


@pytest.mark.parametrize("cuda", [True, False])
def test_what_torch_keeps_for_later_is_given_back_when_state_is_away_and_when_a_model_is_freed(
    monkeypatch: pytest.MonkeyPatch, gpus: FakeGPUs, cuda: bool
) -> None:
    """Another process on the GPU cannot have it otherwise."""
    engine, _ = join(monkeypatch, gpus, cuda)
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("emptied"))
    loose: Any = engine
    loose.engine = SimpleNamespace(optimizer=None, destroy=lambda: order.append("destroyed"))
    loose.model = SimpleNamespace(parameters=lambda: iter([]))
    monkeypatch.setattr(engine, "_fragments", lambda: [])
    monkeypatch.setattr(deepspeed_engine.fragments, "beside_weights", lambda *a: order.append("taken") or [])
    engine.offload()
    engine.release()
    assert order == (["taken", "emptied", "destroyed", "emptied"] if cuda else ["taken", "destroyed"])


@pytest.mark.parametrize(
    ("cuda", "stage", "adapted", "trims"),
    [(True, 3, True, 0), (False, 3, False, 1), (False, 0, True, 1), (False, 2, False, 0)],
)
def test_a_heap_is_trimmed_on_a_cpu_with_an_adapter_or_zero_3(
    monkeypatch: pytest.MonkeyPatch, gpus: FakeGPUs, cuda: bool, stage: int, adapted: bool, trims: int
) -> None:
    engine, _ = join(monkeypatch, gpus, cuda)
    called: list[bool] = []
    monkeypatch.setattr(deepspeed_engine.heap, "trim", lambda: called.append(True))
    loose: Any = engine
    loose.settings, loose._adapted = engine.settings.model_copy(update={"zero_stage": stage}), adapted
    loose.engine = SimpleNamespace(backward=lambda loss: None, optimizer=None)
    engine.backward(torch.tensor(1.0))
    assert len(called) == trims


@pytest.mark.parametrize(("cuda", "threads", "expected"), [(True, None, []), (False, None, [2]), (True, 3, [3])])
def test_a_rank_on_a_gpu_keeps_its_threads_unless_they_are_set(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, threads: int | None, expected: list[int]
) -> None:
    class Stop(Exception): ...

    def stop(*_: Any, **__: Any) -> Any:
        raise Stop

    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(learner_module, "DeepSpeedEngine", stop)
    settings: Any = SimpleNamespace(
        learner=SimpleNamespace(threads=threads, lr=0.1, lora=None), precision="fp32", loss_scale_power=16
    )
    with pytest.raises(Stop):
        learner_module.Learner(settings, RankPlace(0, 1, "h", 1, cuda, 1.0))
    assert found == expected


# What is read and sent.


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0s_read_is_broadcast_from_gpu_to_gpu_and_every_rank_has_its_model_there(
    gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    sent: list[tuple[torch.dtype, str, int]] = []

    def broadcast(tensor: torch.Tensor, root: int) -> None:
        sent.append((tensor.dtype, str(tensor.device), tensor.numel()))
        assert root == 0
        if rank:
            tensor.fill_(0)

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    model: Any = nn.Linear(3, 2)
    model.register_buffer("scale", torch.ones(4))
    if rank:
        model = model.to("meta")
    with gpus.here():
        one_read.spread(model, rank, torch.bfloat16, torch.device("cuda", 0))
        assert [str(t.device) for t in (model.weight.data, model.bias.data, model.scale)] == ["cuda:0"] * 3
        assert model.weight.dtype is torch.bfloat16
    # Bytes, which NCCL and gloo both know: 6 and 2 of 2, 4 of 4.
    assert sent == [(torch.uint8, "cuda:0", n) for n in (12, 4, 16)]


def test_dropout_of_an_adapter_leaves_the_gpus_random_numbers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[Any] = []

    @contextmanager
    def fork(devices: Any) -> Iterator[None]:
        forked.append(devices)
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    adapter: Any = object.__new__(Adapter)
    adapter.layers = []
    gpu = torch.device("cuda", 0)
    for device, expected in ((gpu, [gpu]), (torch.device("cpu"), [])):
        with adapter.dropout(3, device):
            pass
        assert forked.pop() == expected


# Which kernels.


@pytest.mark.parametrize(
    ("shared_kb", "dtype", "expected"),
    [
        (227, torch.bfloat16, (128, 64, 3, 8)),  # H100
        (163, torch.float16, (128, 64, 3, 8)),  # A100
        (99, torch.bfloat16, (64, 64, 3, 4)),  # RTX 4090, L40
        (64, torch.float32, (64, 32, 2, 4)),
        (227, torch.float32, (64, 32, 3, 4)),
    ],
)
def test_tiles_fit_the_cards_shared_memory(
    monkeypatch: pytest.MonkeyPatch, shared_kb: int, dtype: torch.dtype, expected: tuple[int, ...]
) -> None:
    FakeGPUs(shared_memory=shared_kb * 1024).install(monkeypatch)
    tiles = tiling(torch.device("cuda", 0), dtype)
    assert (tiles.rows, tiles.inner, tiles.stages, tiles.warps) == expected
    assert tiles.programs == 200, "two for each multiprocessor"
    size = torch.empty(0, dtype=dtype).element_size()
    # Triton keeps one stage less than it is told in flight.
    assert (tiles.stages - 1) * tiles.inner * (tiles.rows + tiles.columns) * size <= shared_kb * 1024


def test_products_of_16_bits_are_summed_in_float32_by_the_gpu(gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    a, b = torch.randn(3, 4).bfloat16(), torch.randn(4, 2).bfloat16()
    expected = a.float() @ b.float()

    def mm(x: torch.Tensor, y: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        asked.append(out_dtype)
        return expected

    monkeypatch.setattr(torch, "mm", mm)
    assert torch.equal(fused._product(a, b), expected) and not asked, "a CPU has no such product"
    with gpus.here():
        x, y = a.to("cuda"), b.to("cuda")
        assert fused._product(x, y) is expected and asked == [torch.float32]
        fused._product(x.float(), y.float())
    assert len(asked) == 1, "float32 needs none"


def test_kernels_are_launched_on_the_tensors_gpu_and_in_as_many_programs_as_there_are_blocks(
    gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learner's current GPU is its only one; a test's or a notebook's may be another than the tensors'."""
    launched: list[tuple[str, tuple[int, ...], int]] = []

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*arguments: Any, **options: Any) -> None:
                assert gpus.events[-1] == ("device_of", "cuda:0"), "inside the guard"
                assert {str(t.device) for t in arguments if isinstance(t, torch.Tensor)} == {"cuda:0"}
                launched.append((self.name, grid, options["num_warps"]))

            return launch

    kernels = SimpleNamespace(**{n: Kernel(n) for n in ("partial_moments", "joined_statistics", "logit_gradient")})
    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    with gpus.here():
        weight, hidden = torch.randn(1000, 16, device="cuda:0"), torch.randn(300, 16, device="cuda:0")
        targets = torch.zeros(300, dtype=torch.int64, device="cuda:0")
        head: Any = Head(weight=weight, bias=None, scale=1.0, softcap=None, temperature=1.0, fp32=True)
        fused.forward(hidden, head, targets, squares=False)
        gpus.say("backward")
        row = torch.zeros(300, device="cuda:0")
        fused._to_gradient(
            torch.zeros(300, 2000, device="cuda:0"), head, targets, LogitGradient(row, row, row, None), 0
        )
    # 5 blocks of 64 rows, and the 8 blocks of 128 columns are divided among the 200 programs that keep the card busy.
    assert launched[:2] == [("partial_moments", (5, 8), 4), ("joined_statistics", (3,), 4)]
    assert launched[2:] == [("logit_gradient", (300, 2), 4)], "a program has a row and 1024 columns"


def test_blocks_on_a_gpu_are_larger(gpus: FakeGPUs) -> None:
    with gpus.here():
        shapes = []
        for device in ("cpu", "cuda:0"):
            head: Any = SimpleNamespace(weight=torch.empty(200_000, 1, device=device))
            shapes.append(blocks.block_shape(512, head, 1024))
    assert shapes == [(512, 2048), (512, 131072)]


@pytest.mark.parametrize(
    ("device", "dtype", "width", "value_width", "expected"),
    [
        ("cuda", torch.bfloat16, 128, 128, True),
        ("cuda", torch.float16, 256, 256, True),
        ("cuda", torch.float32, 128, 128, False),
        ("cuda", torch.bfloat16, 192, 128, False),  # MLA
        ("cuda", torch.bfloat16, 512, 512, False),
        ("cuda", torch.bfloat16, 20, 20, False),
        ("cpu", torch.bfloat16, 128, 128, False),
    ],
)
def test_packed_rows_go_to_flash_attention_where_it_has_a_kernel(
    gpus: FakeGPUs, device: str, dtype: torch.dtype, width: int, value_width: int, expected: bool
) -> None:
    with gpus.here():
        query, value = (torch.zeros(2, 3, n, dtype=dtype, device=device) for n in (width, value_width))
        assert takes_varlen(query, value) is expected


@pytest.mark.parametrize(
    ("cuda", "dtype", "wanted", "shared"),
    [
        (True, torch.bfloat16, None, False),
        (True, torch.float16, None, False),
        (True, torch.float32, None, True),
        (False, torch.bfloat16, None, True),
        (True, torch.bfloat16, True, True),
        (True, torch.float32, False, False),
    ],
)
def test_prompts_are_shared_unasked_where_packed_rows_are_not_flash_attentions(
    cuda: bool, dtype: torch.dtype, wanted: bool | None, shared: bool
) -> None:
    head = SimpleNamespace(weight=SimpleNamespace(is_cuda=cuda, dtype=dtype))
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation=packed_attention.SDPA_PACKED))
    policy: Any = SimpleNamespace(model=model, head=head, _attention=packed_attention.SDPA_PACKED)
    assert Policy.shares(policy, wanted) is shared


@pytest.mark.parametrize("window", [None, 5])
def test_flash_attention_is_told_the_borders_on_the_gpu_and_the_window(
    gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    from torch.nn.attention import varlen

    told: list[Any] = []
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args, **options: told.append((args, options)) or args[0])
    with gpus.here():
        row = PackedRow((0, 3, 10), window, torch.device("cuda", 0))
        query = torch.zeros(4, 10, 8, dtype=torch.bfloat16, device="cuda")
        key = torch.zeros(2, 10, 8, dtype=torch.bfloat16, device="cuda")
        out = packed_attention._attend(row, query, key, key, 0.5)
        assert out.shape == (10, 4, 8), "tokens first"
        ((q, k, _, q_borders, k_borders, q_longest, k_longest), options) = told[0]
        assert q.shape == (10, 4, 8) and k.shape == (10, 2, 8) and q.is_contiguous() and k.is_contiguous()
        assert q_borders.tolist() == k_borders.tolist() == [0, 3, 10]
        assert q_borders.dtype is torch.int32 and str(q_borders.device) == "cuda:0"
        assert (q_longest, k_longest) == (7, 7)
    assert options == {"scale": 0.5, "window_size": (-1 if window is None else 4, 0), "enable_gqa": True}


# Inputs of layers on the host.


def packed(gpus: FakeGPUs, layers: int) -> tuple[LayerInputs, list[HostInput]]:
    """Gives the inputs of some layers on the GPU to the host, as their checkpoints do."""
    inputs, kept = LayerInputs(), list[Any]()
    for number in range(layers):
        x = torch.full((2, 3), float(number), device="cuda")
        inputs.around(lambda layer, x: kept.append(inputs.pack(x)))(None, x)
    return inputs, kept


def test_inputs_of_layers_go_to_page_locked_memory_on_a_stream_of_their_own(gpus: FakeGPUs) -> None:
    with gpus.here():
        inputs, kept = packed(gpus, 3)
        assert inputs.moved == 3 * 24 and all(isinstance(k, HostInput) for k in kept)
        away = [event for event in gpus.events if event[0] in ("pinned", "wait", "copy", "record_stream")]
        one = [
            ("pinned", 24),
            ("wait", "stream 0", "current"),  # the layer before has to have computed it
            ("copy", "cuda:0", "cpu", "stream 0"),
            ("record_stream", "stream 0"),
        ]
        assert away == one * 3, "and nothing waits for the copies"
        assert all(bool(k.host.isnan().all()) for k in kept), "none of them was waited for yet"


def test_inputs_come_back_while_the_layer_behind_is_computed(gpus: FakeGPUs) -> None:
    with gpus.here():
        inputs, kept = packed(gpus, 3)
        for number in (2, 1, 0):
            assert (kept[number].coming is not None) == (number < 2), (
                "the last one is asked for first, the others before"
            )
            began = len(gpus.events)
            x = inputs.unpack(kept[number])
            assert x.tolist() == [[float(number)] * 3] * 2 and gpus.device_of(x) == torch.device("cuda", 0)
            events = [event for event in gpus.events[began:] if event[0] in ("wait", "copy")]
            fetch = [
                ("wait", "stream 1", "current"),
                ("wait", "stream 1", "stream 0"),
                ("copy", "cpu", "cuda:0", "stream 1"),
            ]
            ready = [("wait", "current", "stream 1")]
            assert events == [*(fetch if number == 2 else []), *ready, *(fetch if number else [])]
        assert inputs.unpack(kept[2]).tolist() == [[2.0] * 3] * 2, "a graph may be used twice"


def test_what_waits_for_nothing_is_not_fetched_ahead(gpus: FakeGPUs) -> None:
    """A graph that was dropped has left nothing to fetch."""
    with gpus.here():
        inputs, kept = packed(gpus, 2)
        del kept[0]
        began = len(gpus.events)
        assert inputs.unpack(kept[0]).tolist() == [[1.0] * 3] * 2
        assert len([event for event in gpus.events[began:] if event[0] == "copy"]) == 1
