"""Optimiser state that goes to host memory and back between iterations changes nothing, with real DeepSpeed at every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration import host_copy_cases, learner_cases

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LAYOUTS = [
    (world, precision, stage)
    for world, precision, stages in (
        (1, "fp32", (0, 1, 2, 3)),
        (1, "bf16", (0, 1, 2, 3)),
        (1, "fp16", (0, 2)),
        (2, "fp32", (0, 2, 3)),
        (2, "bf16", (1, 3)),
    )
    for stage in stages
]


def name_of(world: int, precision: str, stage: int, away: str) -> str:
    return f"{world}-{precision}-zero{stage}-{away}"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("away")
    model = learner_cases.make_model(str(tmp_path_factory.mktemp("model")))
    for world in (1, 2):
        cases: list[dict[str, Any]] = []
        for w, precision, stage in LAYOUTS:
            if w == world:
                usual = {"stage": stage, "precision": precision}
                cases.append({**usual, "name": name_of(w, precision, stage, "kept")})
                for away in ("called", "needed"):
                    cases.append({**usual, "name": name_of(w, precision, stage, away), "away": away})
        learner_cases.run_ranks(host_copy_cases.rank_main, world, model, cases, folder)
    return folder


@pytest.mark.parametrize(("world", "precision", "stage"), LAYOUTS)
@pytest.mark.parametrize("away", ["called", "needed"])
def test_training_goes_on_bit_for_bit(out: Path, world: int, precision: str, stage: int, away: str) -> None:
    kept, moved = (name_of(world, precision, stage, how) for how in ("kept", away))
    with np.load(out / f"{kept}.npz") as expected, np.load(out / f"{moved}.npz") as found:
        assert set(expected) == set(found) and len(expected.files) > 10
        for name in expected.files:
            assert (expected[name] == found[name]).all(), name
    metrics = [json.loads((out / f"{name}.json").read_text())["metrics"] for name in (kept, moved)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(("world", "precision", "stage"), LAYOUTS)
def test_meanwhile_only_the_weights_take_memory(out: Path, world: int, precision: str, stage: int) -> None:
    held = json.loads((out / f"{name_of(world, precision, stage, 'called')}.json").read_text())["bytes"]
    assert held["moments"] == 0 and held["weights"] > 0
    own = (precision, stage) != ("fp32", 0)  # there the masters are the weights
    assert (held["masters"] == 0) == own
