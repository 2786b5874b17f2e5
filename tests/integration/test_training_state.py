"""The optimiser's state on real ranks: the same layout goes on bit for bit, another one to rounding. Nothing in it is a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration import learner_cases, training_state_cases
from integration.training_state_cases import is_repeated, results

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

# fp16 begins with a loss scale that overflows, so that the scaler has something to remember.
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (world, {"name": f"{world}-{p}-zero{s}", "stage": s, "precision": p, "loss_scale_power": 19})
    for world, p, stages in (
        (1, "fp32", (0, 2)),
        (1, "bf16", (0, 1)),
        (1, "fp16", (0, 3)),
        (2, "fp32", (0, 1, 2, 3)),
        (2, "bf16", (0, 1, 2, 3)),
        (2, "fp16", (2, 3)),
    )
    for s in stages
]
# saved by -> loaded by (ranks, ZeRO stage)
CHANGES = [
    ("2-fp32-zero2", 1, 0),
    ("2-fp32-zero3", 1, 1),
    ("1-fp32-zero0", 2, 3),
    ("2-bf16-zero2", 1, 0),
    ("1-bf16-zero0", 2, 1),
    ("2-fp16-zero3", 1, 0),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder with every case's results, and the checkpoints that the others went on from."""
    folder = tmp_path_factory.mktemp("states")
    model = learner_cases.make_model(str(tmp_path_factory.mktemp("model")))
    for world in (1, 2):
        own = [case for w, case in LAYOUTS if w == world]
        again = [{**case, "name": f"again-{case['name']}", "from": str(folder / case["name"])} for case in own]
        learner_cases.run_ranks(training_state_cases.rank_main, world, model, own + again, folder)
    for world in (1, 2):
        moved = [
            {
                "name": f"{saved}-to-{w}-zero{s}",
                "stage": s,
                "precision": saved.split("-")[1],
                "from": str(folder / saved),
                "loss_scale_power": 16,
            }
            for saved, w, s in CHANGES
            if w == world
        ]
        learner_cases.run_ranks(training_state_cases.rank_main, world, model, moved, folder)
    return folder


@pytest.mark.parametrize("name", [case["name"] for _, case in LAYOUTS])
def test_the_same_layout_goes_on_bit_for_bit(out: Path, name: str) -> None:
    is_repeated(out, name)


@pytest.mark.parametrize(("saved", "ranks", "stage"), CHANGES)
def test_other_ranks_and_another_stage_go_on_from_it(out: Path, saved: str, ranks: int, stage: int) -> None:
    weights, metrics = results(out, saved)
    others, moved = results(out, f"{saved}-to-{ranks}-zero{stage}")
    exact = "fp32" in saved
    assert moved["loss"] == pytest.approx(metrics["loss"], abs=1e-6 if exact else 1e-3)
    assert moved["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-4 if exact else 0.02)
    assert moved.get("steps/loss_scale") == metrics.get("steps/loss_scale")
    for key, value in weights.items():
        assert float(np.abs(value - others[key]).max()) < (1e-5 if exact else 2e-2), key


def test_a_checkpoint_holds_no_pickle_and_little_at_a_time(out: Path) -> None:
    engine = out / "2-fp32-zero2" / "engine"
    suffixes = {p.suffix for p in (out / "2-fp32-zero2").rglob("*") if p.is_file()}
    assert suffixes == {".safetensors", ".json"}
    assert len(list(engine.glob("rank_0000_*"))) > 1
    elements = sum(v.size for v in results(out, "2-fp32-zero2")[0].values())
    size = sum(p.stat().st_size for p in engine.glob("*.safetensors"))
    assert 12 * elements <= size < 12 * elements * 1.2  # master and two moments of every element, once
