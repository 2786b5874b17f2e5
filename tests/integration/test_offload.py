"""What is in host memory changes nothing, with real DeepSpeed: the optimiser's state, and the inputs of checkpointed layers.

An optimiser whose state is in host memory takes the same steps, with real DeepSpeed, and is resumed exactly.

On a CPU it is in host memory anyway, so that this proves DeepSpeed's other path through gradients and steps, not what is saved.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from integration import learner_cases

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

USUAL: dict[str, Any] = {"tokens": 200, "packing": False}
KINDS: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1, **USUAL},
    "zero2": {"stage": 2, **USUAL},
    "zero3": {"stage": 3, **USUAL},
    "zero2-bf16": {"stage": 2, "precision": "bf16", **USUAL},
    "zero2-lora": {"stage": 2, "lora": {"rank": 4}, **USUAL},
}
CASES = [
    {**case, "name": f"{name}-{how}", **extra}
    for name, case in KINDS.items()
    for how, extra in (("there", {}), ("away", {"offload": True}))
]
CHECKPOINTED: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0, **USUAL},
    "zero3": {"stage": 3, **USUAL},
    "zero2-bf16": {"stage": 2, "precision": "bf16", **USUAL},
    "zero0-lora": {"stage": 0, "lora": {"rank": 4}, **USUAL},
}
INPUTS = [
    {**case, "name": f"{name}-inputs-{how}", "checkpointing": True, **extra}
    for name, case in CHECKPOINTED.items()
    for how, extra in (("there", {}), ("away", {"inputs_away": True}))
]
RESUMED = [{**KINDS[name], "name": f"{name}-resumed", "offload": True, "resume": True} for name in ("zero2", "zero3")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, np.ndarray], Any]]:
    """Returns case -> (the weights in the end, the metrics of each iteration)."""
    model = learner_cases.make_model(str(tmp_path_factory.mktemp("model")))
    out = tmp_path_factory.mktemp("offload")
    cases = [*CASES, *INPUTS, *RESUMED]
    learner_cases.run_ranks(learner_cases.rank_main, 1, model, cases, out, 560)
    return {
        case["name"]: (
            dict(np.load(out / f"{case['name']}.npz")),
            json.loads((out / f"{case['name']}.json").read_text()),
        )
        for case in cases
    }


def gap(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[k] - b[k]).max()) for k in a)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_without(results: Any, kind: str) -> None:
    there, rows = results[f"{kind}-there"]
    away, others = results[f"{kind}-away"]
    # In bf16 a weight is rounded to 8 bits: a difference in a gradient's last bit may turn one.
    assert gap(there, away) <= (2**-8 if "bf16" in kind else 1e-6)
    for row, other in zip(rows, others, strict=True):
        assert math.isfinite(row["grad_norm"])
        for key in ("loss", "grad_norm", "entropy/exact"):
            assert other[key] == pytest.approx(row[key], rel=1e-2 if "bf16" in kind else 1e-5, abs=1e-6), key


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_a_resumed_run_is_the_undisturbed_one(results: Any, kind: str) -> None:
    expected, rows = results[f"{kind}-away"]
    found, others = results[f"{kind}-resumed"]
    assert gap(expected, found) == 0
    assert others == rows


@pytest.mark.parametrize("kind", CHECKPOINTED)
def test_inputs_of_layers_in_host_memory_change_no_bit(results: Any, kind: str) -> None:
    there, rows = results[f"{kind}-inputs-there"]
    away, others = results[f"{kind}-inputs-away"]
    assert gap(there, away) == 0
    assert others == rows


def test_fused_adamw_takes_the_steps_of_the_loop_over_parameters() -> None:
    """On CUDA the optimiser is fused (learner/deepspeed_engine.py); torch has it on CPUs, too."""
    torch.manual_seed(0)
    start, gradients = torch.randn(40, 30), torch.randn(5, 40, 30)
    ends: list[torch.Tensor] = []
    for fused in ({}, {"fused": True}):
        weight = torch.nn.Parameter(start.clone())
        optimiser = torch.optim.AdamW([weight], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, **fused)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimiser.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-6)
    assert (ends[0] - start).abs().max() > 1e-2
