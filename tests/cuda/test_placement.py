"""Where GPUs are given to actors, and over what the learner and the generators then meet."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.builders import config_data

from actors.handles import RemoteLearner
from actors.inference import EngineDead
from orchestration.cluster import actor_settings, placement
from orchestration.cluster import cluster as cluster_module
from orchestration.cluster.actor_makers import ActorMakers
from orchestration.cluster.actor_slots import ActorSlots, Position
from orchestration.cluster.cluster import CPU_LEARNER, Cluster
from orchestration.cluster.session import _environment
from orchestration.cluster.weight_sync import WeightBroadcast, WeightGroup
from orchestration.commands import precision_probe
from orchestration.config.run_config import RunConfig, validate
from orchestration.memory import plan
from orchestration.memory.model_size import ModelSize


def run(learner: dict[str, Any], generators: dict[str, Any], **sections: Any) -> RunConfig:
    return validate(config_data(learner=learner, generators=generators, **sections))


WHOLE = run({"gpus": 1, "ranks": 2}, {"gpus": 1, "tensor_parallel": 2, "count": 2})
SHARED = run({"gpus": 0.4}, {"gpus": 0.4})
COLOCATED = run({"gpus": 1}, {"gpus": 1, "colocated": True})
ON_CPUS = run({"ranks": 2}, {"count": 2})


@pytest.mark.parametrize(
    ("config", "backend", "shards"),
    [(WHOLE, "nccl", 2), (SHARED, "gloo", 1), (COLOCATED, "gloo", 1), (ON_CPUS, "gloo", 1)],
    ids=["whole", "shared", "colocated", "cpu"],
)
def test_whole_gpus_meet_over_nccl_and_shared_ones_and_cpus_over_gloo(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, backend: Any, shards: int
) -> None:
    """NCCL refuses two members on one GPU. Ranks are told that they are on CUDA, and get a CPU's variables if they are not."""
    placed: list[Position] = []
    ranks: list[Any] = []

    class Learner(RemoteLearner):
        def __init__(self, actors: Any, names: list[str], timeout_s: float) -> None: ...
        async def ready(self, timeout_s: float) -> None: ...
        async def address(self, timeout_s: float) -> tuple[str, int]:
            return "10.0.0.9", 41000

        async def start(self, settings: Any, placements: Any, timeout_s: float) -> None:
            ranks.extend(placements)

    monkeypatch.setattr(cluster_module, "RemoteLearner", Learner)
    monkeypatch.setattr(actor_settings, "rank_settings", lambda config, start: None)
    made: Any = object.__new__(Cluster)
    made.config, made._report = config, print
    made.members = SimpleNamespace(watch_learner=lambda learner: None)
    made._slots = SimpleNamespace(
        next_name=lambda kind: f"{kind} {len(placed)}", place=lambda position, cls: placed.append(position)
    )

    async def nothing(start: Any) -> None: ...

    made._restore = nothing
    asyncio.run(Cluster._place_learner(made, SimpleNamespace()))  # type: ignore[arg-type]
    limit = config.weights.timeout_s
    assert made._weights._group == WeightGroup("10.0.0.9", backend, shards, limit)
    cuda = config is not ON_CPUS
    assert [(r.rank, r.world_size, r.cuda) for r in ranks] == [
        (rank, config.learner.ranks, cuda) for rank in range(config.learner.ranks)
    ]
    for position in placed:
        assert position.env == ({} if cuda else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2", **CPU_LEARNER})


def test_a_tensor_parallel_engine_has_as_many_ranks_of_the_weight_group_as_shards() -> None:
    joined: dict[str, Any] = {}

    class Member:
        def __init__(self, name: str) -> None:
            self.name = name

        async def listen(self, timeout_s: float) -> int:
            return 41000

        async def connect_weights(self, rendezvous: Any, timeout_s: float) -> None:
            joined[self.name] = rendezvous

    broadcast = WeightBroadcast(Member("learner"), None, WeightGroup("h", "nccl", 2, 1.0), print)  # type: ignore[arg-type]
    asyncio.run(broadcast._join([Member("generator 0"), Member("generator 1")]))  # type: ignore[list-item]
    assert {name: end.rank for name, end in joined.items()} == {"learner": 0, "generator 0": 1, "generator 1": 3}
    assert {end.world_size for end in joined.values()} == {5} and {end.backend for end in joined.values()} == {"nccl"}
    assert [joined["generator 1"].shard(i).member for i in (0, 1)] == ["generator 1", "generator 1 shard 1"]


def test_slots_hold_a_gpu_for_every_shard_and_every_rank() -> None:
    gpus = {slot.role: slot.gpus for slot in placement.plan(WHOLE)}
    assert gpus == {"learner rank 0": 1, "learner rank 1": 1, "generator 0": 2, "generator 1": 2, "verifier 0": 0}
    assert placement.totals(placement.plan(WHOLE))["GPU"] == 6
    assert {slot.role: slot.gpus for slot in placement.plan(SHARED)}["generator 0"] == 0.4


@pytest.mark.parametrize(("config", "gpus"), [(WHOLE, 2), (SHARED, 0.4), (COLOCATED, 0.5), (ON_CPUS, 0)])
def test_ray_is_asked_for_the_gpus_of_the_slot(monkeypatch: pytest.MonkeyPatch, config: RunConfig, gpus: float) -> None:
    from orchestration.cluster import actor_slots

    asked: dict[str, Any] = {}

    def remote(**options: Any) -> Any:
        asked.update(options)
        return lambda cls: SimpleNamespace(remote=lambda *args, **kwargs: "the actor")

    monkeypatch.setattr(actor_slots.ray, "remote", remote)
    monkeypatch.setattr(
        actor_slots, "PlacementGroupSchedulingStrategy", lambda group, placement_group_bundle_index: None
    )
    slots: Any = object.__new__(ActorSlots)
    slot = placement.generator_slot(config, 0)
    slots._rooms, slots._variables, slots._taken = {slot.role: SimpleNamespace(slot=slot, group=None, bundle=0)}, {}, {}
    assert slots.place(Position("generator 0", "generator", 0, {}), object) == "the actor"
    assert asked["num_gpus"] == gpus


@pytest.mark.parametrize(
    ("config", "variables"), [(WHOLE, set()), (ON_CPUS, {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"})]
)
def test_an_engines_process_sees_its_gpus_or_none(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, variables: set[str]
) -> None:
    placed: list[Position] = []
    slots = SimpleNamespace(next_name=lambda kind: kind, place=lambda position, *args: placed.append(position))
    monkeypatch.setattr(
        actor_settings, "policy_engine", lambda config, model, version: SimpleNamespace(generator=config.generators)
    )
    makers = ActorMakers(config, slots, SimpleNamespace(version=0))  # type: ignore[arg-type]
    makers.generator(0, "m")
    assert placed[0].env.keys() == variables
    assert makers.one_by_one is False
    assert ActorMakers(SHARED, slots, None).one_by_one, "each would take the growth of its neighbour for its own"  # type: ignore[arg-type]


def test_a_cluster_of_our_own_keeps_nccl_on_loopback_unless_the_user_says_otherwise(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    for given, expected in ((None, "lo"), ("eth7", "eth7")):
        if given is None:
            monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
        else:
            monkeypatch.setenv("NCCL_SOCKET_IFNAME", given)
        with _environment(tmp_path):
            assert os.environ["NCCL_SOCKET_IFNAME"] == expected
        assert os.environ.get("NCCL_SOCKET_IFNAME") == given


@pytest.mark.parametrize("there", [True, False])
def test_the_precision_probe_puts_engine_and_trainer_on_the_gpu_that_is_there(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    from learner import policy

    moved: list[str] = []

    class Policy:
        def cast(self, dtype: Any) -> Policy:
            return self

        def to(self, device: str) -> Policy:
            moved.append(device)
            return self

        def eval(self) -> Policy:
            return self

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(policy, "load_policy", lambda *args, **options: Policy())
    precision_probe._load("m", "bf16")
    assert moved == ["cuda" if there else "cpu"]


@pytest.mark.parametrize("there", [True, False])
def test_the_precision_probe_asks_for_an_engine_on_the_device_and_what_the_device_cannot_train(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    from actors import vllm_engine
    from learner import deepspeed_engine

    asked: list[Any] = []

    def engine(settings: Any, timeout_s: float) -> Any:
        asked.append((settings.generator.gpus, settings.generator.gpu_memory_utilization))
        raise EngineDead("not here")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(vllm_engine, "VLLMEngine", engine)
    monkeypatch.setattr(logging, "disable", lambda level: None)
    said: list[str] = []
    tasks: Any = SimpleNamespace(prompts=[[1, 2]], stop_token_ids=())
    precision_probe._serve(SimpleNamespace(send=said.append), "m", "bf16", tasks, precision_probe.Options())
    assert asked == [(int(there), 0.9)] and said == ["not here"]

    def cannot(precision: str, cuda: bool) -> str:
        return f"{precision}, cuda {cuda}"

    def load(model: str, mode: str) -> Any:
        if mode == "fp32":
            return None
        raise RuntimeError("no operator")

    monkeypatch.setattr(deepspeed_engine, "untrainable", cannot)
    monkeypatch.setattr(precision_probe, "_load", load)
    monkeypatch.setattr(precision_probe, "_score", lambda *args, **options: [])
    row: Any = SimpleNamespace(notes=[])
    progress = SimpleNamespace(print=lambda *args, **options: None)
    precision_probe.trainer_rows("m", {"fp16": []}, precision_probe.Options(), {"fp16": row}, progress)
    assert row.notes == [f"forward only, no training: fp16, cuda {there}", "no trainer: no operator"]


def test_the_plan_in_bytes_divides_an_engines_weights_and_cache_among_its_shards() -> None:
    model = ModelSize(parameters=1001, layers=3, hidden=8, inner=32, key_width=4, vocabulary=16)
    one, two = (run({"gpus": 1}, {"gpus": 1, "tensor_parallel": n}) for n in (1, 2))
    needs = [plan.generator_need(config, model) for config in (one, two)]
    assert [need.parts["weights"] for need in needs] == [4 * 1001, 4 * 501], "a shard has the larger half"
    tokens = [plan.kv_tokens(config, model, 96_000) for config in (one, two)]
    assert tokens == [1000, 2000], "a token is 2 x 3 layers x 4 x 4 bytes, of which a shard holds half"
