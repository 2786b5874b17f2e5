"""What an engine that cannot be built says: one sentence, with the reason and not with where to read about errors."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError, field_validator
from torch._C._distributed_c10d import FileStore

from actors import vllm_build
from actors.inference import EngineDead
from actors.settings import GeneratorSettings, Quantization, VLLMSettings
from actors.vllm_build import build_core, build_reason, engine_arguments
from actors.vllm_requests import drain

ROOT = Path(__file__).parents[2]


class Refusing(BaseModel):
    value: int

    @field_validator("value")
    @classmethod
    def _never(cls, value: int) -> int:
        raise ValueError(f"{value} cannot be\nserved")


def test_pydantics_frame_around_the_sentence_is_left_out() -> None:
    with pytest.raises(ValidationError) as caught:
        Refusing(value=3)
    assert build_reason(caught.value) == "ValidationError: 3 cannot be served"


def test_a_model_file_that_cannot_be_imported_is_named_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.register_model("BrokenForCausalLM", "a_module_that_is_not_there:Broken")
    try:
        error = ValueError("Model architectures ['BrokenForCausalLM'] failed to be inspected. Please check the logs")
        assert build_reason(error) == (
            "its model file for BrokenForCausalLM cannot be imported (ModuleNotFoundError: No module named "
            "'a_module_that_is_not_there')"
        )
    finally:
        del ModelRegistry.models["BrokenForCausalLM"]


def test_an_engines_workers_meet_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own file stays in the temporary folder when an engine is killed."""
    from vllm.v1.executor import multiproc_executor, uniproc_executor

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for executor in (multiproc_executor, uniproc_executor):
        monkeypatch.setattr(executor, "get_file_store_init_method", executor.get_file_store_init_method)
    vllm_build._meet_in_memory()
    for executor in (multiproc_executor, uniproc_executor):
        path = executor.get_file_store_init_method().removeprefix("file://")
        one, other = FileStore(path, 2), FileStore(path, 2)
        one.set("key", "value")
        assert other.get("key") == b"value"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_engine_on_a_cpu_is_built_without_the_compilers_backend() -> None:
    code = (
        "import sys\n"
        "from actors import vllm_build\n"
        "vllm_build.prepare_environment(True)\n"
        "vllm_build._import_without_inductor()\n"
        "from vllm.v1.engine.llm_engine import LLMEngine\n"
        "assert 'torch._inductor.lowering' not in sys.modules\n"
        "import torch._inductor.lowering  # for whoever compiles after all\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_architecture_that_vllm_does_not_know_is_one_line(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["UnheardOfForCausalLM"], "vocab_size": 64, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = VLLMSettings(model=str(tmp_path), generator=GeneratorSettings(max_model_len=32), dtype="float32")
    with pytest.raises(EngineDead) as caught:
        build_core(settings)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"vLLM cannot serve {tmp_path}: ")
    assert "errors.pydantic.dev" not in text


@pytest.mark.slow
def test_qwen3_5_is_imported_without_torchvision_and_leaves_no_stand_in_behind() -> None:
    from actors.vllm_models import qwen3_5 as vllm_qwen3_5

    assert vllm_qwen3_5.Qwen3_5ForCausalLM.__module__ == "vllm.model_executor.models.qwen3_5"
    if not vllm_qwen3_5.is_torchvision_available():
        assert not [name for name in sys.modules if name.split(".")[0] == "torchvision"]
    with pytest.raises(AttributeError):
        vllm_qwen3_5.Qwen2ForCausalLM  # noqa: B018


def arguments(cpu: bool, **generator: Any) -> dict[str, Any]:
    settings = GeneratorSettings(max_model_len=64, max_num_seqs=32, gpus=0 if cpu else 1, **generator)
    return engine_arguments(VLLMSettings(model="m", generator=settings, dtype="bfloat16"), cpu)


def test_graphs_are_taken_on_a_gpu_and_not_on_a_cpu_unless_set() -> None:
    assert arguments(cpu=True)["enforce_eager"]
    assert not arguments(cpu=False)["enforce_eager"]
    assert arguments(cpu=False, enforce_eager=True)["enforce_eager"]


def test_the_keys_of_an_engine_reach_vllm(tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    plain = arguments(cpu=False)
    assert plain["kv_cache_dtype"] == "auto"
    assert not plain["async_scheduling"]
    assert not {"quantization", "max_num_batched_tokens", "enable_chunked_prefill"} & plain.keys()
    given = {
        "max_num_batched_tokens": 4096,
        "kv_cache_dtype": "fp8_e5m2",
        "quantization": "fp8_per_channel",
        "async_scheduling": True,
    }
    found = arguments(cpu=False, **given)
    assert {key: found[key] for key in given} == given
    # vLLM knows every name. A model that is no folder would be looked for on the hub, also where there is none.
    here: dict[str, Any] = {k: v for k, v in found.items() if k != "quantization"} | {"model": str(tmp_path)}
    made = EngineArgs(**here)
    assert made.kv_cache_dtype == "fp8_e5m2"
    assert arguments(cpu=True)["max_num_batched_tokens"] == vllm_build.CPU_BATCHED_TOKENS
    assert arguments(cpu=True, max_num_batched_tokens=64)["max_num_batched_tokens"] == 64


def test_every_format_of_weights_is_one_that_vllm_makes_itself() -> None:
    from vllm.model_executor.layers.quantization import QuantizationMethods

    assert set(get_args(Quantization)) <= set(get_args(QuantizationMethods))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"max_num_batched_tokens": 31},
            "max_num_batched_tokens is 31 and max_num_seqs 32: a step has a token of each",
        ),
        ({"max_num_batched_tokens": 63}, "is 63 and max_model_len 64: on a CPU a prompt is computed in one step"),
        ({"enforce_eager": False}, "enforce_eager is false and gpus 0: vLLM does that on GPUs alone"),
        ({"quantization": "fp8_per_block"}, "quantization is fp8_per_block and gpus 0"),
        ({"async_scheduling": True}, "async_scheduling is true and gpus 0"),
        ({"kv_cache_dtype": "fp7"}, "Input should be 'auto', 'fp8_e4m3' or 'fp8_e5m2'"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        GeneratorSettings(max_model_len=64, max_num_seqs=32, **given)
    if "max_model_len" in sentence:  # on a GPU prompts are computed in chunks
        GeneratorSettings(max_model_len=64, max_num_seqs=32, gpus=1, **given)


class Queued:
    """Stands in for vLLM's engine core: `begun` steps are in flight, and one more begins in every step that may."""

    def __init__(self, begun: int) -> None:
        from vllm.v1.core.sched.interface import PauseState

        self.batch_queue: list[int] | None = list(range(begun))
        self.paused, self.open = PauseState.PAUSED_ALL, PauseState.UNPAUSED
        self.state = self.open
        self.scheduler = self.engine_core = self
        self.done: list[int] = []

    def set_pause_state(self, state: Any) -> None:
        self.state = state

    def step(self) -> None:
        assert self.batch_queue is not None
        if self.state != self.paused:
            self.batch_queue.append(100)
        self.done.append(self.batch_queue.pop(0))


def test_steps_in_flight_are_finished_and_no_other_begun() -> None:
    core = Queued(2)
    drain(core, core.step)
    assert (core.done, core.batch_queue, core.state) == ([0, 1], [], core.open)

    def fail() -> None:
        raise RuntimeError("a step broke")

    core = Queued(2)
    with pytest.raises(RuntimeError):
        drain(core, fail)
    assert core.state == core.open
    core.batch_queue = None  # without async scheduling
    drain(core, fail)


def test_vllm_schedules_nothing_while_it_is_paused() -> None:
    """What `drain` relies on, in vLLM's own scheduler."""
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.core.sched.scheduler import Scheduler

    scheduler = object.__new__(Scheduler)
    scheduler._pause_state = PauseState.PAUSED_ALL
    assert scheduler.get_num_unfinished_requests() == 0
