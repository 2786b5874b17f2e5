"""An adapter in the learner group, with real DeepSpeed: ranks, ZeRO stages and batch plans do not change what is learnt, a
resumed run is the one that was never stopped, and the reference is the model with its adapter off."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration import adapter_curve, learner_cases
from safetensors.torch import load_file

from learner.settings import KLSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LORA, DORA = {"rank": 4}, {"rank": 4, "dora": True}
PULLED = {"kl": KLSettings(coefficient=0.5, estimator="k2")}
CUTS = [(0, 100_000, False), (0, 96, True), (1, 200, False), (2, 200, True), (3, 150, False)]
SAME: list[dict[str, Any]] = [
    {"name": f"zero{s}-{t}", "stage": s, "tokens": t, "packing": p, "lora": LORA, "objective": PULLED}
    for s, t, p in CUTS
]
USUAL: dict[str, Any] = {"tokens": 200, "packing": False}
DORAS: list[dict[str, Any]] = [{"name": f"dora{s}", "stage": s, "lora": DORA, **USUAL} for s in (0, 2)]
DROPPED: list[dict[str, Any]] = [
    {"name": name, "stage": 0, "lora": {**LORA, "dropout": 0.3}, **USUAL} for name in ("dropped", "dropped again")
]
STRAIGHT: list[dict[str, Any]] = [
    {"name": f"straight{s}-{k}", "stage": s, "lora": lora, **USUAL}
    for s, k, lora in ((0, "lora", LORA), (2, "lora", LORA), (3, "lora", LORA), (0, "dora", DORA))
]
RESUMED = [{**case, "name": case["name"].replace("straight", "resumed"), "resume": True} for case in STRAIGHT]
BF16: list[dict[str, Any]] = [
    {"name": f"bf16-zero{s}", "stage": s, "precision": "bf16", "lora": LORA, **USUAL} for s in (0, 1, 3)
]
FULL: dict[str, Any] = {"name": "full", "stage": 0, **USUAL}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], tuple[Any, Any]]:
    """Returns (world, case) -> (what engines are sent in the end, metrics of each iteration)."""
    model = learner_cases.make_model(str(tmp_path_factory.mktemp("model")))
    collected: dict[tuple[int, str], tuple[Any, Any]] = {}
    for world, cases in (
        (1, [*SAME, *DORAS, *DROPPED, *STRAIGHT, *RESUMED, *BF16, FULL]),
        (2, [*SAME, *DORAS, *STRAIGHT, *RESUMED, *BF16]),
    ):
        out = tmp_path_factory.mktemp(f"adapter{world}")
        learner_cases.run_ranks(learner_cases.rank_main, world, model, cases, out)
        for case in cases:
            rows = json.loads((out / f"{case['name']}.json").read_text())
            collected[world, case["name"]] = dict(np.load(out / f"{case['name']}.npz")), rows
    return collected


def gap(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[k] - b[k]).max()) for k in a)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", [c["name"] for c in SAME])
def test_ranks_zero_and_cuts_do_not_change_the_adapter(results: Any, world: int, case: str) -> None:
    expected, metrics = results[1, SAME[0]["name"]]
    sent, others = results[world, case]
    assert all(".lora_" in name for name in sent)
    assert gap(expected, sent) < 1e-5
    for row, other in zip(metrics, others, strict=True):
        for key in ("loss", "entropy/exact", "grad_norm", "entropy/predicted_dh", "entropy/step_dh", "kl/reference"):
            assert other[key] == pytest.approx(row[key], abs=1e-5), key


def test_the_reference_is_the_base_model(results: Any) -> None:
    _, (first, second) = results[1, SAME[0]["name"]]
    assert first["kl/reference"] == 0  # the adapter begins without effect, to the bit
    assert second["kl/reference"] > 1e-8
    assert first["entropy/exact"] == pytest.approx(results[1, "full"][1][0]["entropy/exact"], abs=1e-6)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", [c["name"] for c in DORAS])
def test_dora_is_the_same_under_zero(results: Any, world: int, case: str) -> None:
    expected, _ = results[1, DORAS[0]["name"]]
    sent, _ = results[world, case]
    assert gap(expected, sent) < 1e-5
    scales = np.concatenate([v for k, v in sent.items() if k.endswith("lora_output_scale")])
    assert 1e-6 < np.abs(scales - 1).max() < 0.1


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", [c["name"] for c in STRAIGHT])
def test_a_resumed_adapter_is_the_undisturbed_one_bit_for_bit(results: Any, world: int, case: str) -> None:
    expected, metrics = results[world, case]
    sent, others = results[world, case.replace("straight", "resumed")]
    assert gap(expected, sent) == 0
    assert others == metrics


def test_a_checkpoint_is_small(results: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert results
    folders = list(tmp_path_factory.getbasetemp().glob("adapter[12]0/resumed3-lora-checkpoint"))
    assert len(folders) == 2
    for folder in folders:
        assert sorted(p.name for p in (folder / "hf").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        adapter = sum(t.numel() for t in load_file(folder / "hf" / "adapter_model.safetensors").values())
        assert adapter == 2 * 4 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 2 * (64 + 96) + (96 + 64))
        optimiser = [load_file(path) for path in (folder / "engine").glob("rank_*.safetensors")]
        assert sum(t.numel() for part in optimiser for t in part.values()) == 3 * adapter


def test_dropout_is_part_of_the_seed(results: Any) -> None:
    dropped, metrics = results[1, "dropped"]
    again, others = results[1, "dropped again"]
    assert gap(dropped, again) == 0 and metrics == others
    assert gap(dropped, results[1, "straight0-lora"][0]) > 1e-6
    # What is measured has none: entropy of the first iteration, before anything was learnt.
    assert metrics[0]["entropy/exact"] == results[1, "straight0-lora"][1][0]["entropy/exact"]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", [c["name"] for c in BF16])
def test_in_bf16_the_adapter_is_trained_in_float32(results: Any, world: int, case: str) -> None:
    _, metrics = results[1, "straight0-lora"]
    sent, others = results[world, case]
    for row, other in zip(metrics, others, strict=True):
        assert other["entropy/exact"] == pytest.approx(row["entropy/exact"], rel=0.02)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=0.1)
    b = np.concatenate([v.ravel() for k, v in sent.items() if k.endswith("lora_B.weight")])
    assert 0 < np.abs(b).max() < 1e-3  # four steps of 1e-4
    rounded = (b.view(np.uint32) & 0xFFFF) == 0
    assert rounded[b != 0].mean() < 0.01, "these are numbers of bf16"


def test_an_adapter_learns_what_full_training_learns(tmp_path: Path) -> None:
    """With ten times the learning rate, as docs/lora.md advises: from responses half of whose tokens are even to nearly all."""
    out = tmp_path / "curves.json"
    process = multiprocessing.get_context("spawn").Process(target=adapter_curve.curves, args=(str(out),))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    curves = json.loads(out.read_text())
    assert curves.keys() == {"full", "lora", "dora"}
    for kind, rewards in curves.items():
        assert rewards[0] == curves["full"][0] < 0.55, kind  # the same responses of the same policy
        assert min(rewards[-3:]) > 0.9, (kind, rewards)
