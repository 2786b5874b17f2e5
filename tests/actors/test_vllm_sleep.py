"""Compares what Isentrope asks of vLLM's sleep with the vLLM that is installed, as far as that needs no GPU."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from actors.inference import EngineDead, Memory
from actors.settings import GeneratorSettings, JudgeGeneratorSettings, VLLMSettings, keeps_memory
from actors.vllm_build import build_core, engine_arguments
from actors.vllm_engine import SLEEP_LEVEL


def settings(model: str = "m", **generator: Any) -> VLLMSettings:
    g = GeneratorSettings(max_model_len=64, gpus=1, **generator)
    return VLLMSettings(model=model, generator=g, dtype="bfloat16")


def test_vllm_is_asked_for_an_engine_that_can_sleep(tmp_path: Path) -> None:
    """It refuses one on a CPU, and so shows that it has read the argument."""
    from vllm.engine.arg_utils import EngineArgs

    assert "enable_sleep_mode" not in engine_arguments(settings(), cpu=False)
    found = engine_arguments(settings(str(tmp_path), colocated=True), cpu=False)
    assert EngineArgs(**found).enable_sleep_mode
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ValidationError, match="Sleep mode is not supported on current platform"):
        EngineArgs(**found).create_model_config()


def test_vllm_has_the_calls_and_the_names_of_memory() -> None:
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.core_client import InprocClient
    from vllm.v1.executor import abstract
    from vllm.v1.executor.uniproc_executor import UniProcExecutor
    from vllm.v1.worker.gpu_worker import Worker

    nothing: Any = None
    inspect.signature(InprocClient.sleep).bind(nothing, SLEEP_LEVEL, "abort")
    inspect.signature(InprocClient.wake_up).bind(nothing, ["weights"])
    inspect.signature(InprocClient.reset_prefix_cache).bind(nothing, reset_running_requests=True)
    inspect.signature(EngineCore.sleep).bind(nothing, SLEEP_LEVEL, "abort")
    inspect.signature(EngineCore.wake_up).bind(nothing, ["kv_cache"])
    inspect.signature(UniProcExecutor.sleep).bind(nothing, level=SLEEP_LEVEL)
    inspect.signature(Worker.sleep).bind(nothing, level=SLEEP_LEVEL)
    inspect.signature(Worker.wake_up).bind(nothing, tags=["weights"])
    assert set(get_args(Memory)) == set(abstract.SLEEP_TAGS)


def test_weights_are_what_vllm_keeps_on_the_host_at_this_level(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import device_allocator
    from vllm.device_allocator.sleep_mode_backend import CuMemBackend

    kept: list[str] = []

    class Allocator:
        def sleep(self, offload_tags: tuple[str, ...]) -> None:
            kept.extend(offload_tags)

    monkeypatch.setattr(device_allocator, "get_mem_allocator_instance", Allocator)
    CuMemBackend().suspend(SLEEP_LEVEL)
    assert "weights" in kept
    assert "kv_cache" not in kept


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, None),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "a:1,expandable_segments: true"}, "PYTORCH_ALLOC_CONF=a:1,expandable_segments: true"),
    ],
)
def test_what_keeps_memory_is_found(variables: dict[str, str], found: str | None) -> None:
    assert keeps_memory(variables) == found


def test_an_engine_that_could_free_nothing_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with pytest.raises(EngineDead, match=r"expandable_segments:True: an engine that sleeps frees nothing"):
        build_core(settings(colocated=True))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"gpus": 0}, "colocated is true and gpus 0: vLLM does that on GPUs alone"),
        ({"gpus": 1, "min": 1}, "one generator on each of the learner's GPUs, leave min and max out"),
        ({"gpus": 1, "max": 2}, "one generator on each of the learner's GPUs, leave min and max out"),
    ],
)
def test_what_cannot_be_colocated_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        GeneratorSettings(max_model_len=64, colocated=True, **given)


def test_a_judge_is_not_colocated() -> None:
    with pytest.raises(ValidationError, match="leave colocated out, it is of `generators`"):
        JudgeGeneratorSettings(max_model_len=64, gpus=1, colocated=True, path="m")


def test_colocated_generators_keep_their_number_and_half_of_the_gpu() -> None:
    g = GeneratorSettings(max_model_len=64, gpus=1, colocated=True, count=2)
    assert g.memory_share == 0.5
    assert g.model_copy(update={"gpu_memory_utilization": 0.3}).memory_share == 0.3
    g.check_count(2)
    for count in (1, 3):
        with pytest.raises(ValueError, match="colocated keeps one on each"):
            g.check_count(count)
