"""vLLM on GPUs: environment and arguments, the shards of a tensor-parallel engine, CUDA graphs through a reload, devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support.fake_cuda import FakeGPUs
from torch import Tensor, nn

from actors import vllm_build, vllm_worker
from actors.inference import EngineDead
from actors.remote import vllm_factory
from actors.rewards import reward_model
from actors.settings import GeneratorSettings, RewardModelSettings, VLLMSettings
from actors.vllm_build import engine_arguments, prepare_environment
from actors.vllm_engine import VLLMEngine
from actors.vllm_worker import READ_IN_PLACE, WeightReceiver, load_in_place, own_tensors
from learner.weights.protocol import Rendezvous, WeightManifest, WeightSyncError, make_rendezvous

READ = ("TORCHDYNAMO_DISABLE", "OMP_NUM_THREADS", "VLLM_USE_FLASHINFER_SAMPLER", "TRITON_F32_DEFAULT")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGPUs:
    fake = FakeGPUs(("GPU-a", "GPU-b"))
    fake.install(monkeypatch)
    return fake


def settings(**generator: Any) -> VLLMSettings:
    return VLLMSettings(model="m", generator=GeneratorSettings(max_model_len=64, **generator), dtype="float32")


# The environment and the arguments.


@pytest.mark.parametrize(("cpu", "expected"), [(False, (None, None, "0", "ieee")), (True, ("1", "1", None, None))])
def test_vllm_finds_a_gpus_environment_or_a_cpus(
    monkeypatch: pytest.MonkeyPatch, cpu: bool, expected: tuple[str | None, ...]
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(vllm_build, "_set_num_threads", threads.append)
    monkeypatch.setattr(os, "environ", {})
    prepare_environment(cpu)
    assert tuple(os.environ.get(name) for name in READ) == expected
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert threads == ([1] if cpu else [])


def test_what_the_user_set_for_a_gpu_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"TRITON_F32_DEFAULT": "tf32"})
    prepare_environment(cpu=False)
    assert os.environ["TRITON_F32_DEFAULT"] == "tf32"


@pytest.mark.parametrize("there", [False, True])
def test_an_engine_is_built_for_the_device_that_is_there(
    gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """What build_core gives to vLLM, up to the call that would start it."""
    from vllm.engine import arg_utils

    found: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(vllm_build, "prepare_environment", lambda cpu: found.update(cpu=cpu))
    monkeypatch.setattr(vllm_build, "_suit", lambda arguments, cpu: found.update(suited=cpu))
    monkeypatch.setattr(vllm_build, "_import_without_inductor", lambda: found.update(bare=True))
    monkeypatch.setattr(vllm_build, "_meet_in_memory", lambda: None)

    def stop(**arguments: Any) -> Any:
        found.update(arguments)
        return SimpleNamespace()

    monkeypatch.setattr(arg_utils, "EngineArgs", stop)
    with pytest.raises(EngineDead, match="vLLM cannot serve m"):  # SimpleNamespace is no EngineArgs
        vllm_build.build_core(settings(gpus=1 if there else 0))
    assert (found["cpu"], found["suited"], found.get("bare", False)) == (not there, not there, not there)
    assert found.get("gpu_memory_utilization") == (0.85 if there else None)
    assert found["enforce_eager"] is (not there)
    assert ("enable_chunked_prefill" in found) is (not there)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_shards_of_an_engine_are_processes_of_its_node_under_one_executor(size: int) -> None:
    found = engine_arguments(settings(gpus=1, tensor_parallel=size), cpu=False)
    assert found["tensor_parallel_size"] == size
    assert found["distributed_executor_backend"] == ("mp" if size > 1 else None)
    assert found["worker_extension_cls"] == "actors.vllm_worker.WeightReceiver"


def test_vllm_imports_the_weight_receiver_in_the_worker_processes_of_its_executor() -> None:
    """A name, not a class: workers of tensor parallelism are spawned."""
    from vllm.utils.import_utils import resolve_obj_by_qualname

    assert resolve_obj_by_qualname("actors.vllm_worker.WeightReceiver") is WeightReceiver


def test_an_actor_on_a_gpu_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from actors import vllm_engine

    monkeypatch.setattr(vllm_engine, "VLLMEngine", lambda settings: settings)
    for gpus, expected in ((0, "3"), (1, None)):
        monkeypatch.setattr(os, "environ", {})
        vllm_factory(settings(gpus=gpus, cpus=3))()
        assert os.environ.get("OMP_NUM_THREADS") == expected


# The members of a tensor-parallel engine.


class Worker(WeightReceiver):
    def __init__(self, rank: int) -> None:
        self.rank, self.device = rank, f"cuda:{rank}"


class Joined:
    """Notes what a worker joins the group with; a shard may fail."""

    made: list[tuple[Rendezvous, float, torch.device, torch.device]]
    fails = -1

    def __init__(
        self, rendezvous: Rendezvous, timeout_s: float, *, device: torch.device, model_device: torch.device
    ) -> None:
        if rendezvous.rank == self.fails:
            raise WeightSyncError(rendezvous.member, "connect", "no store")
        self.made.append((rendezvous, timeout_s, device, model_device))


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_every_shard_joins_under_its_own_rank_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    Joined.made, Joined.fails = [], -1
    monkeypatch.setattr(vllm_worker, "Subscriber", Joined)
    _, first, second = make_rendezvous("h", 1, [("generator 0", 2), ("generator 1", 2)], backend, 0)
    for end in (first, second):
        for rank in (0, 1):
            assert Worker(rank).isentrope_connect(end, 9.0) is None
    found = [(end.rank, end.member, str(device), str(model)) for end, _, device, model in Joined.made]
    assert found == [
        (rank, name, f"cuda:{shard}" if backend == "nccl" else "cpu", f"cuda:{shard}")
        for rank, name, shard in (
            (1, "generator 0", 0), (2, "generator 0 shard 1", 1), (3, "generator 1", 0), (4, "generator 1 shard 1", 1),
        )
    ]  # fmt: skip
    assert {end.world_size for end, *_ in Joined.made} == {5}


def test_a_shard_that_cannot_join_returns_the_error_which_crosses_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    Joined.made, Joined.fails = [], 2
    monkeypatch.setattr(vllm_worker, "Subscriber", Joined)
    _, end = make_rendezvous("h", 1, [("generator 0", 2)], "nccl", 0)
    answers = [Worker(rank).isentrope_connect(end, 9.0) for rank in (0, 1)]
    assert answers[0] is None and isinstance(answers[1], WeightSyncError)
    assert answers[1].member == "generator 0 shard 1"


def engine_of(*answers: Any) -> tuple[VLLMEngine, list[Any]]:
    """Returns an engine whose core answers a transfer so, one answer a shard, and what the core is told."""
    told: list[Any] = []

    class Core:
        def collective_rpc(self, name: str, args: Any = ()) -> list[Any]:
            told.append(name)
            return list(answers)

        def reset_prefix_cache(self, reset_running_requests: bool) -> None:
            told.append(f"caches dropped, running requests too: {reset_running_requests}")

        def abort_requests(self, ids: Any) -> None:
            told.append("aborted")

    engine = object.__new__(VLLMEngine)
    engine.__dict__.update(
        _core=Core(), _asleep=set(), _scoring=0, _live={}, version=0, _counts={"updates": 0}, settings=settings()
    )

    def at_once(work: Any) -> Any:
        return SimpleNamespace(result=work)

    engine._post = at_once
    return engine, told


def test_an_engine_has_a_version_when_all_its_shards_have_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from actors import vllm_engine

    drained: list[Any] = []
    monkeypatch.setattr(vllm_engine, "drain", lambda core, step: drained.append(step))
    manifest = WeightManifest(4, ())
    engine, told = engine_of(77, 77)
    assert engine.receive_weights(manifest, 1.0) == 77
    assert engine.version == 4 and len(drained) == 1, "no step is in flight while weights, or a graph's, are replaced"
    assert told == ["isentrope_receive", "caches dropped, running requests too: True"]
    engine, told = engine_of(77, 78)
    with pytest.raises(WeightSyncError, match=r"the engine's workers received different bytes: \[77, 78\]"):
        engine.receive_weights(manifest, 1.0)
    assert engine.version == 0 and told[-1] == "aborted"
    engine, told = engine_of(77, WeightSyncError("generator 0 shard 1", "bucket 3", "lost"))
    with pytest.raises(WeightSyncError, match="generator 0 shard 1 during bucket 3"):
        engine.receive_weights(manifest, 1.0)
    engine, _ = engine_of(None, WeightSyncError("generator 0 shard 1", "connect", "no store"))
    with pytest.raises(WeightSyncError, match="generator 0 shard 1"):
        engine.connect_weights(make_rendezvous("h", 1, [("generator 0", 2)], "nccl", 0)[1], 1.0)


# Tensors on the worker's device, and a reload under captured graphs.


def test_tensors_are_copied_to_the_gpu_unless_they_are_there_to_stay(gpus: FakeGPUs) -> None:
    large, small = READ_IN_PLACE // 4, 8

    def given(device: str, lasting: bool) -> list[tuple[str, Tensor, Tensor]]:
        tensors = [("large", torch.ones(large, device=device)), ("small", torch.ones(small, device=device))]
        subscriber: Any = SimpleNamespace(lasting=lasting, receive=lambda manifest, limit: iter(tensors))
        got = list(own_tensors(subscriber, WeightManifest(1, ()), 1.0, SimpleNamespace(device="cuda:0")))
        return [(name, before, after) for (name, before), (_, after) in zip(tensors, got, strict=True)]

    with gpus.here():
        for device, lasting, in_place in (("cpu", True, set()), ("cuda:0", False, set()), ("cuda:0", True, {"large"})):
            for name, before, after in given(device, lasting):
                assert str(after.device) == "cuda:0"
                assert (after.data_ptr() == before.data_ptr()) is (name in in_place), (device, lasting, name)


class Toy(nn.Module):
    """Has two layers whose weights vLLM's reload replaces, and loads by name as vLLM's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def load_weights(self, tensors: Iterator[tuple[str, Tensor]]) -> set[str]:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        loaded = set()
        for name, tensor in tensors:
            parameter = dict(self.named_parameters())[name]
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
            loaded.add(name)
        return loaded


def test_a_reload_leaves_every_weight_at_the_address_that_a_captured_graph_has() -> None:
    """By vLLM's own reload. A graph is a list of kernels with addresses: replayed after an update, it has to find the new weights
    there, which is why graphs stay as they are and nothing is captured again."""
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    model = Toy()
    record_metadata_for_reloading(model)
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    captured = [model.up.weight.detach(), model.down.weight.detach()]  # what a graph's kernels read
    worker = SimpleNamespace(device="cpu", model_config=None)
    for version in (1, 2):
        new = {name: torch.full_like(parameter, version) for name, parameter in model.named_parameters()}
        assert load_in_place(model, iter(new.items()), worker) == set()
        assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == addresses
        assert all(bool((tensor == version).all()) for tensor in captured)
    left = {k: v for k, v in new.items() if k != "down.bias"}
    assert load_in_place(model, iter(left.items()), worker) == {"down.bias"}, "what the manifest lacks is named"


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_kernels_of_experts_are_made_anew_on_a_cpu_alone(
    gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """On a GPU captured graphs may hold their addresses."""

    class Method:
        moe_kernel = "packed"

    seen, method = list[Any](), Method()
    monkeypatch.setattr(vllm_worker, "UnquantizedFusedMoEMethod", Method)
    monkeypatch.setattr(vllm_worker, "initialize_layerwise_reload", lambda model: seen.append(method.moe_kernel))
    monkeypatch.setattr(
        vllm_worker, "finalize_layerwise_reload", lambda model, config: seen.append(torch.empty(2).device.type)
    )
    monkeypatch.setattr(vllm_worker, "_written_past", lambda model, loaded: set())

    class Experts(nn.Module):
        quant_method = method

        def load_weights(self, tensors: Any) -> set[str]:
            seen.append(torch.empty(1).device.type)
            return {name for name, _ in tensors}

    with gpus.here():
        load_in_place(Experts(), iter([]), SimpleNamespace(device=device, model_config=None))
    kind = device.partition(":")[0]
    assert seen == [None if kind == "cpu" else "packed", kind, kind], "and layers are filled on the worker's device"
    assert method.moe_kernel == "packed"


def test_a_reward_model_is_on_the_gpu_that_its_actor_has(gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception): ...

    moved: list[torch.device] = []

    class Model:
        def to(self, device: torch.device) -> Any:
            moved.append(device)
            raise Stop

    tokenizer = SimpleNamespace(chat_template="x")
    monkeypatch.setattr(reward_model.chat, "load_tokenizer", lambda path: tokenizer)
    monkeypatch.setattr(reward_model, "_load", lambda settings: Model())
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for number in (1, 0):
        with pytest.raises(Stop):
            reward_model.RewardModel(RewardModelSettings(path="m", gpus=number, cpus=2))
    assert [device.type for device in moved] == ["cuda", "cpu"]
    assert threads == [2], "a GPU's process keeps its threads"
    assert cast("str", str(moved[0])) == "cuda", "the only one that Ray lets it see"
