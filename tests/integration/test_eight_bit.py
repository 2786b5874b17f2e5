"""AdamW with moments in 8 bits, with real DeepSpeed and bitsandbytes: it learns as AdamW does, and its state is saved and moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration import eight_bit_cases, host_copy_cases, learner_cases, training_state_cases
from integration.training_state_cases import is_repeated, results

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (world, {"name": f"{world}-{p}-zero{s}", "stage": s, "precision": p, "bits": 8})
    for world, p, stages in ((1, "fp32", (0, 3)), (1, "bf16", (0, 1)), (2, "fp32", (0, 1, 2, 3)), (2, "bf16", (2, 3)))
    for s in stages
]
# saved by -> loaded by (ranks, ZeRO stage, bits)
CHANGES = [
    ("2-fp32-zero2", 1, 0, 8),
    ("1-fp32-zero0", 2, 3, 8),
    ("2-fp32-zero3", 1, 1, 8),
    ("2-bf16-zero2", 1, 0, 8),
    ("1-fp32-zero3", 1, 0, 32),
    ("plain-1-fp32-zero0", 1, 1, 8),
]
PLAIN: dict[str, Any] = {"name": "plain-1-fp32-zero0", "stage": 0, "precision": "fp32"}
TAUGHT: list[dict[str, Any]] = [
    {"name": f"{p}-zero{s}{'-lora' if lora else ''}-{bits}", "stage": s, "precision": p, "bits": bits, "lora": lora}
    for p, s, lora in (
        ("fp32", 0, None),
        ("fp32", 2, None),
        ("bf16", 1, None),
        ("bf16", 3, None),
        ("bf16", 2, {"rank": 32}),
    )
    for bits in (32, 8)
]
AWAY: list[dict[str, Any]] = [
    {"name": f"zero{s}-{away}", "stage": s, "precision": "bf16", "bits": 8, **({"away": away} if away else {})}
    for s in (0, 2, 3)
    for away in ("", "called", "needed")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return learner_cases.make_model(str(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """Returns the folder with every layout's results, and of those that went on from its checkpoint."""
    folder = tmp_path_factory.mktemp("states")
    for world in (1, 2):
        own = [case for w, case in LAYOUTS if w == world]
        again = [{**case, "name": f"again-{case['name']}", "from": str(folder / case["name"])} for case in own]
        before = [PLAIN] if world == 1 else []
        learner_cases.run_ranks(training_state_cases.rank_main, world, model, [*before, *own, *again], folder)
    for world in (1, 2):
        moved = [
            {
                "name": f"{name}-to-{w}-zero{stage}-{bits}",
                "stage": stage,
                "precision": "bf16" if "bf16" in name else "fp32",
                "from": str(folder / name),
                "bits": bits,
            }
            for name, w, stage, bits in CHANGES
            if w == world
        ]
        learner_cases.run_ranks(training_state_cases.rank_main, world, model, moved, folder)
    return folder


@pytest.mark.parametrize("name", [case["name"] for _, case in LAYOUTS])
def test_the_same_layout_goes_on_bit_for_bit(saved: Path, name: str) -> None:
    is_repeated(saved, name)


@pytest.mark.parametrize(("name", "ranks", "stage", "bits"), CHANGES)
def test_other_layouts_and_the_other_optimiser_go_on_from_it(
    saved: Path, name: str, ranks: int, stage: int, bits: int
) -> None:
    """Near: blocks of other tensors have other scales, so that moments are rounded anew, once."""
    weights, metrics = results(saved, name)
    others, moved = results(saved, f"{name}-to-{ranks}-zero{stage}-{bits}")
    exact = "fp32" in name
    assert moved["loss"] == pytest.approx(metrics["loss"], abs=1e-5 if exact else 1e-3)
    assert moved["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-3 if exact else 0.02)
    for key, value in weights.items():
        # Two steps of at most 1e-4 each: a moment that was lost would show as a step of full size somewhere.
        assert float(np.abs(value - others[key]).max()) < (1.5e-4 if exact else 2e-2), key
        if exact:
            assert float(np.abs(value - others[key]).mean()) < 1e-5, key


def test_a_checkpoint_is_that_of_any_optimiser(saved: Path) -> None:
    """Float32 master and moments of every element, once."""
    elements = sum(v.size for v in results(saved, "2-fp32-zero2")[0].values())
    size = sum(p.stat().st_size for p in (saved / "2-fp32-zero2" / "engine").glob("*.safetensors"))
    assert 12 * elements <= size < 12 * elements * 1.2


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, model: str) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("taught")
    learner_cases.run_ranks(eight_bit_cases.rank_main, 1, model, TAUGHT, out)
    return {case["name"]: json.loads((out / f"{case['name']}.json").read_text()) for case in TAUGHT}


@pytest.mark.parametrize("name", sorted({case["name"].rpartition("-")[0] for case in TAUGHT}))
def test_it_learns_as_adamw_does(taught: dict[str, dict[str, Any]], name: str) -> None:
    plain, eight = taught[f"{name}-32"], taught[f"{name}-8"]
    first, last = plain["losses"][0], plain["losses"][-1]
    assert eight["losses"][0] == first
    assert last < 0.7 * first, "a task that teaches nothing tells nothing"
    assert eight["losses"] != plain["losses"]
    for a, b in zip(plain["losses"], eight["losses"], strict=True):
        assert b == pytest.approx(a, abs=0.05 * (first - last))
    assert plain["bytes"] == 4
    assert 1 <= eight["bytes"] < 2, "all but the tensors under 4,096 elements, of which this model has many"


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    out = tmp_path_factory.mktemp("away")
    learner_cases.run_ranks(host_copy_cases.rank_main, 1, model, AWAY, out)
    return out


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("how", ["called", "needed"])
def test_moments_that_were_away_are_the_same(away: Path, stage: int, how: str) -> None:
    kept, moved = (json.loads((away / f"zero{stage}-{name}.json").read_text()) for name in ("", how))
    assert moved["metrics"] == kept["metrics"]
    assert moved["bytes"]["moments"] == 2 * 256 * 4 < moved["bytes"]["weights"], (
        "the levels stay, which all tensors share"
    )
    weights = [dict(np.load(away / f"zero{stage}-{name}.npz")) for name in ("", how)]
    for key, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][key], key)
