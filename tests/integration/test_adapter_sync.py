"""An adapter into a running vLLM: engine and trainer agree after every update, and the adapter's bytes are all that travels.

All cases share one child process (vLLM takes 10 s to import and does not like company); each builds its own engine.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from integration import adapter_cases

from learner.settings import LoraSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TOLERANCE = 1e-4  # nats, of any token; 1e-6 is usual
CASES = {
    "llama": ("llama", LoraSettings(rank=4)),
    "llama-dora": ("llama", LoraSettings(rank=4, dora=True)),
    "qwen3": ("qwen3", LoraSettings(rank=8, alpha=8)),
    "qwen3-dora": ("qwen3", LoraSettings(rank=4, dora=True, targets=("k_proj", "o_proj", "up_proj"))),
    "gemma3": ("gemma3", LoraSettings(rank=4)),
    "gemma3-dora": ("gemma3", LoraSettings(rank=4, dora=True)),
    "qwen2": (
        "qwen2",
        LoraSettings(rank=4, dora=True),
    ),  # queries, keys and values have biases, which DoRA leaves as they are
}
# A pretrained model, where there is one: the folder that ISENTROPE_SMOLLM2 names.
SMOLLM2 = os.environ.get("ISENTROPE_SMOLLM2", "")


@pytest.fixture(scope="module")
def child() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("case", CASES)
def test_log_probs_agree_after_every_update_and_the_adapter_alone_travels(
    child: ProcessPoolExecutor, tmp_path: Path, case: str
) -> None:
    found = child.submit(adapter_cases.many_updates, str(tmp_path), *CASES[case]).result(300)
    assert max(found["start"], found["score"], found["sample"]) < TOLERANCE, found
    assert found["moved"] > 0.1, "the updates are too small to see a stale adapter by"
    assert found["sent"] == found["trained"]


@pytest.mark.skipif(not SMOLLM2, reason="ISENTROPE_SMOLLM2 names no folder of the model")
def test_a_pretrained_models_log_probs_agree_after_every_update(child: ProcessPoolExecutor, tmp_path: Path) -> None:
    found = child.submit(adapter_cases.many_updates, str(tmp_path), SMOLLM2, LoraSettings(rank=8)).result(550)
    assert max(found["start"], found["score"], found["sample"]) < TOLERANCE, found
    assert found["sent"] == found["trained"]


def test_a_small_update_reaches_an_engine_in_bf16_as_it_does_the_trainer(
    child: ProcessPoolExecutor, tmp_path: Path
) -> None:
    made = child.submit(adapter_cases.small_update_in_bf16, str(tmp_path), LoraSettings(rank=4), 5e-4).result(300)
    assert made["trainer"] == pytest.approx(1, abs=0.25), made
    assert made["engine"] == pytest.approx(made["trainer"], abs=0.1), made


def test_a_part_of_an_adapter_is_refused_and_a_whole_one_heals(child: ProcessPoolExecutor, tmp_path: Path) -> None:
    unknown, lacking, misshapen = child.submit(adapter_cases.broken, str(tmp_path)).result(300)
    assert "Qwen3ForCausalLM has no linear layer for model.layers.0.mlp.up_proj.lora_A.weight" in unknown
    assert "the manifest has nothing for model.layers.1.self_attn.q_proj.lora_B.weight" in lacking
    assert (
        "model.layers.0.self_attn.o_proj.lora_A.weight is [2, 128] and its place in vLLM's layer [4, 128]" in misshapen
    )
