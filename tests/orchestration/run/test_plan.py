"""Checks what --dry-run says of memory, and that a run that cannot fit is refused before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.builders import config_data

from orchestration.cluster import node_memory
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import PlacementError
from orchestration.run.plan import check_memory, describe_plan

GIB = 2**30


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    save_file({"embed": np.zeros((16, 8), np.float32)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(node_memory, "host_bytes", lambda: 4 * GIB)
    monkeypatch.setattr(node_memory, "gpus_bytes", list)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def config(model: Path | str, **sections: Any) -> RunConfig:
    generators = {"max_model_len": 32, "kv_cache_mb": 1, "max_num_seqs": 64}
    return validate(config_data(**{"model": {"path": str(model)}, "generators": generators, **sections}))


def test_the_plan_names_every_actors_bytes(model: Path) -> None:
    plan = describe_plan(config(model))
    assert "128 parameters" in plan and "weights 512 B, moments 1.0 KiB, ledger 1.0 KiB" in plan
    assert re.search(r"on this node   2\.\d GiB of 4\.0 GiB of host memory, 800\.0 MiB for driver and Ray", plan)
    # A token has keys and values of 2 layers x 8 elements x 4 bytes.
    assert "for 8,192 tokens: 64 of 64 responses at once (generators.max_num_seqs) if each has 32" in plan
    assert "does not fit" not in plan
    assert "not known before" in describe_plan(config("somebody/model"))


def test_the_plan_of_a_colocated_run_has_both_turns(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_memory, "gpus_bytes", lambda: [2 * GIB])
    generators = {"max_model_len": 32, "gpus": 1, "colocated": True}
    plan = describe_plan(config(model, generators=generators, learner={"lr": 1e-3, "gpus": 1}))
    assert re.search(
        r"on each GPU    [\d.]+ MiB while the learner trains, 1\.0 GiB while the generator has the GPU; 1\.5 KiB of host",
        plan,
    )
    assert "; the GPU has 2.0 GiB" in plan
    assert "learner rank 0 1 CPU  0.5 GPU" in plan and "generator 0    1 CPU  0.5 GPU" in plan
    assert "total          2.1 CPU  1 GPU" in plan


def test_what_cannot_fit_is_refused_on_a_cluster_of_our_own_alone(model: Path) -> None:
    large: dict[str, Any] = {"generators": {"max_model_len": 32, "kv_cache_mb": 5000}}
    check_memory(config(model))
    with pytest.raises(
        PlacementError,
        match=r"need 7\.\d GiB of memory at least.* this node has 4\.0 GiB: generators.kv_cache_mb=1250 would fit",
    ):
        check_memory(config(model, **large))
    assert "does not fit this node: " in describe_plan(config(model, **large))
    check_memory(config(model, **large, cluster={"address": "10.0.0.5:6379"}))


def test_memory_is_within_the_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = node_memory.host_bytes()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(node_memory, "LIMITS", (tmp_path / "nowhere", limit))
    for text, expected in (("1073741824\n", GIB), ("max\n", None), ("9223372036854771712\n", None)):
        limit.write_text(text)
        found = node_memory.host_bytes()
        assert found == expected if expected else found >= whole


def test_a_gpu_is_asked_for_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_memory, "GPUS", tmp_path)
    monkeypatch.setattr(node_memory, "QUERY", ("printf", "81559\n24576\n"))
    assert node_memory.gpus_bytes() == [81559 * 2**20, 24576 * 2**20]
    monkeypatch.setattr(node_memory, "QUERY", ("false",))
    assert node_memory.gpus_bytes() == []
    monkeypatch.setattr(node_memory, "GPUS", tmp_path / "nowhere")
    assert node_memory.gpus_bytes() == []
