"""Prompts that are computed once, with real DeepSpeed: the same update as with a prompt for each response, whatever the ranks, ZeRO
stage and batch plan, with gradient checkpointing, with an adapter, and with an objective that looks beyond single tokens."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from integration import learner_cases

from learner.settings import ImportanceSettings, KLSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ALONE: dict[str, Any] = {"stage": 0, "tokens": 100_000, "packing": False, "sharing": False}
CUTS: list[dict[str, Any]] = [
    {"stage": s, "tokens": t, "packing": True, "sharing": True, "checkpointing": c}
    for s, t, c in ((0, 100_000, False), (0, 64, True), (2, 96, False), (3, 96, True))
]
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 4}, "objective": {"kl": KLSettings(coefficient=0.5, estimator="k2")}},
    "rich": {
        "aggregation": "sequence",
        "method": {"kind": "clip_cov", "low": -1.0},
        "coefficient": 0.2,
        "objective": {
            "surrogate": "gspo",
            "importance": ImportanceSettings(kind="masked", cap=1e6, floor=1e-6, level="sequence"),
        },
    },
}
CASES: list[dict[str, Any]] = [
    {**plan, **kind, "name": f"{name}{k}"}
    for name, kind in KINDS.items()
    for k, plan in enumerate([ALONE, *(CUTS if name == "full" else CUTS[::3])])
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], tuple[Any, Any]]:
    """Returns (world, case) -> (weights, metrics of each iteration)."""
    model = learner_cases.make_model(str(tmp_path_factory.mktemp("model")))
    collected: dict[tuple[int, str], tuple[Any, Any]] = {}
    for world in (1, 2):
        out = tmp_path_factory.mktemp(f"shared{world}")
        cases = CASES if world == 1 else [case for case in CASES if case["sharing"]]
        learner_cases.run_ranks(learner_cases.rank_main, world, model, cases, out)
        for case in cases:
            rows = json.loads((out / f"{case['name']}.json").read_text())
            collected[world, case["name"]] = dict(np.load(out / f"{case['name']}.npz")), rows
    return collected


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", [case["name"] for case in CASES if case["sharing"]])
def test_a_shared_prompt_does_not_change_the_update(results: Any, world: int, name: str) -> None:
    expected, rows = results[1, f"{name[:-1]}0"]
    weights, others = results[world, name]
    assert weights.keys() == expected.keys()
    assert max(float(np.abs(weights[k] - expected[k]).max()) for k in weights) < 1e-5
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        assert abs(row["entropy/predicted_dh"]) > 1e-4  # something has moved
        for key in ("loss", "grad_norm", "entropy/exact", "entropy/sampled", "entropy/predicted_dh", "entropy/step_dh"):
            assert other[key] == pytest.approx(row[key], abs=2e-5), key


def test_shared_prompts_are_fewer_slots() -> None:
    def slots(sharing: bool) -> int:
        (batch,) = learner_cases.batches(0, 1, 100_000, True, "token", sharing)
        return sum(m.tokens.size for update in batch.updates for m in update)

    assert slots(True) < 0.9 * slots(False)
