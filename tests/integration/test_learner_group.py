"""The learner group with real DeepSpeed: the same batch gives the same weights, whatever the ranks, ZeRO stage and batch plan.

One process per rank for all cases of a world size: starting a process costs more than a case does.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from integration import learner_cases

from learner.settings import ImportanceSettings, KLSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CUTS = [(0, 100_000, False), (0, 64, False), (0, 96, True), (1, 200, False), (2, 200, True), (3, 150, False)]
SAME = [{"name": f"zero{s}-{t}-{p}", "stage": s, "tokens": t, "packing": p} for s, t, p in CUTS]
RESUMED = [{"name": f"resumed{s}", "stage": s, "tokens": 200, "packing": False, "resume": True} for s in (0, 3)]
# A stage begins after the first iteration; its optimiser is reset, kept, or a new one.
BEGUN = [
    {"name": f"{how}{s}", "stage": s, "tokens": 200, "packing": False, "optimiser": how}
    for how, stages in (("reset", (0, 1, 2, 3)), ("keep", (0,)), ("new", (0,)))
    for s in stages
]
SEQUENCE = [
    {"name": f"sequence{t}", "stage": 0, "tokens": t, "packing": p, "aggregation": "sequence"}
    for t, p in ((100_000, False), (80, True))
]
WIDE = [
    {"name": f"wide{t}", "stage": s, "tokens": t, "packing": p, "batch_scope": True}
    for s, t, p in ((0, 100_000, False), (2, 80, True))
]
# Everything that looks beyond its own token at once: sequence ratios, masks over sequences, draws and statistics over the global
# batch, a reference policy.
RICH: list[dict[str, Any]] = [
    {
        "name": f"rich{s}-{t}",
        "stage": s,
        "tokens": t,
        "packing": p,
        "aggregation": "sequence",
        "method": {"kind": "clip_cov", "low": -1.0},
        "coefficient": 0.2,
        "objective": {
            "surrogate": "gspo",
            "importance": ImportanceSettings(kind="masked", cap=1e6, floor=1e-6, level="sequence"),
            "kl": KLSettings(coefficient=0.1, estimator="k2"),
        },
    }
    for s, t, p in ((0, 100_000, False), (2, 80, True), (3, 150, False))
]
METHODS = [
    {"name": m, "stage": 1, "tokens": 200, "packing": False, "method": {"kind": m}}
    for m in ("none", "bonus", "repo", "clip_higher", "adapo", "clip_cov", "kl_cov")
]
METHODS.append({**METHODS[0], "name": "repo_d", "method": {"kind": "repo_d"}, "coefficient": 20.0})
USUAL = {"tokens": 200, "packing": False}
HALF: list[dict[str, Any]] = [
    {"name": f"{p}-zero{s}", "stage": s, "precision": p, **USUAL}
    for p, stages in (("bf16", (0, 1, 3)), ("fp16", (0, 1, 2, 3)), ("bf16-fp32head", (0, 3)))
    for s in stages
]
UNTIED: list[dict[str, Any]] = [
    {"name": f"untied-{p}-zero{s}", "stage": s, "precision": p, "untied": True, **USUAL}
    for p, s in (("fp32", 0), ("bf16-fp32head", 1), ("bf16-fp32head", 3))
]
# A loss scale so high that the first gradients overflow: those steps are skipped, the scale falls, the run goes on.
SKIPPED: list[dict[str, Any]] = [
    {"name": f"skipped{s}", "stage": s, "precision": "fp16", "loss_scale_power": 21, **USUAL} for s in (0, 1, 3)
]
EXHAUSTED: list[dict[str, Any]] = [
    {"name": f"exhausted{s}", "stage": s, "precision": "fp16", "loss_scale_power": 0, "explodes": True, **USUAL}
    for s in (0, 1, 3)
]
REFUSED: dict[str, Any] = {"name": "refused", "stage": 0, "precision": "fp16", "refused": True, **USUAL}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], tuple[Any, Any]]:
    """Returns (world, case) -> (weights, metrics of each iteration)."""
    model = learner_cases.make_model(str(tmp_path_factory.mktemp("model")))
    untied = learner_cases.make_model(str(tmp_path_factory.mktemp("untied")), tied=False)
    collected: dict[tuple[int, str], tuple[Any, Any]] = {}
    for world, cases in (
        (
            1,
            [REFUSED, *SAME, *RESUMED, *BEGUN, *SEQUENCE, *WIDE, *RICH, *METHODS, *HALF, *UNTIED, *SKIPPED, *EXHAUSTED],
        ),
        (2, [*SAME, *RESUMED, *BEGUN, *SEQUENCE, *WIDE, *RICH]),
    ):
        cases = [case | ({"model": untied} if case.get("untied") else {}) for case in cases]
        out = tmp_path_factory.mktemp(f"world{world}")
        learner_cases.run_ranks(learner_cases.rank_main, world, model, cases, out)
        for case in cases:
            if (refused := out / f"{case['name']}.refused").exists():
                collected[world, case["name"]] = {}, refused.read_text()
                continue
            arrays = dict(np.load(out / f"{case['name']}.npz"))
            collected[world, case["name"]] = arrays, json.loads((out / f"{case['name']}.json").read_text())
    collected[0, "reference"] = learner_cases.reference(model)
    return collected


def gap(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[k] - b[k]).max()) for k in a)


def test_the_learner_does_what_plain_torch_does(results: Any) -> None:
    expected, rows = results[0, "reference"]
    weights, metrics = results[1, SAME[0]["name"]]
    assert gap(expected, weights) < 1e-5
    for row, wanted in zip(metrics, rows, strict=True):
        assert {key: row[key] for key in wanted} == pytest.approx(wanted, abs=1e-5)
        assert abs(row["entropy/predicted_dh"]) > 1e-3  # nothing that moves nothing shows anything


@pytest.mark.parametrize("case", [c["name"] for c in HALF])
def test_the_steps_effect_is_measured_in_half_precision_too(results: Any, case: str) -> None:
    """Of the weights that the forward pass uses: rounded to bf16 most of these do not move at all by two small steps."""
    for row, exact in zip(results[1, case][1], results[0, "reference"][1], strict=True):
        predicted, made = row["entropy/predicted_dh"], row["entropy/step_dh"]
        if case.startswith("fp16"):  # entropies of 2.4 nats in fp16 are rounded by half of 2^-10 of that
            assert predicted == pytest.approx(made, abs=1.5e-3)
            assert 0 < predicted < 1.01 * exact["entropy/predicted_dh"]
        else:
            assert predicted == pytest.approx(made, abs=0.01)  # entropies in bf16 are rounded by that much
            assert 0 < predicted < exact["entropy/predicted_dh"]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", [c["name"] for c in [*SAME, *RESUMED]])
def test_ranks_zero_and_cuts_do_not_change_the_update(results: Any, world: int, case: str) -> None:
    expected, metrics = results[1, SAME[0]["name"]]
    weights, others = results[world, case]
    assert gap(expected, weights) < 1e-5
    for row, other in zip(metrics, others, strict=True):
        assert row.keys() == other.keys()
        assert other["loss"] == pytest.approx(row["loss"], abs=1e-6)
        for key in (
            "entropy/exact",
            "entropy/sampled",
            "clip/high",
            "clip/low",
            "grad_norm",
            "entropy/odd",
            "entropy/predicted_dh",
            "entropy/step_dh",
            "advantage/std",
        ):
            assert other[key] == pytest.approx(row[key], abs=1e-5), key


@pytest.mark.parametrize("world", [1, 2])
def test_sequence_aggregation_does_not_depend_on_the_batch_plan(results: Any, world: int) -> None:
    expected, metrics = results[1, "sequence100000"]
    for name in ("sequence100000", "sequence80"):
        weights, others = results[world, name]
        assert gap(expected, weights) < 1e-5
        assert [m["loss"] for m in others] == pytest.approx([m["loss"] for m in metrics], abs=1e-6)
    assert gap(expected, results[1, SAME[0]["name"]][0]) > 1e-5  # and it is not the token mean


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", [w["name"] for w in WIDE])
def test_a_method_of_batch_scope_sees_the_whole_global_batch(results: Any, world: int, case: str) -> None:
    expected, _ = results[1, "wide100000"]
    weights, metrics = results[world, case]
    assert gap(expected, weights) < 1e-5
    assert gap(expected, results[1, SAME[0]["name"]][0]) > 1e-5  # and the method did something
    for row in metrics:  # for the plan and for the updates, one call an update, together all the trained tokens
        assert len(row["batch_tokens"]) % 4 == 0
        assert sum(row["batch_tokens"][-2:]) == sum(row["batch_tokens"][-4:-2]) == row["tokens/trained"]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", [r["name"] for r in RICH])
def test_statistics_beyond_the_token_are_global(results: Any, world: int, case: str) -> None:
    expected, metrics = results[1, RICH[0]["name"]]
    weights, others = results[world, case]
    assert gap(expected, weights) < 1e-5
    assert gap(expected, results[1, "sequence100000"][0]) > 1e-5
    for row, other in zip(metrics, others, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert other[key] == pytest.approx(value, rel=1e-3, abs=2e-5), key
    assert 0.0 < metrics[0]["entropy/affected"] < 0.5
    assert 0.0 < metrics[0]["importance/limited"] < 1.0
    assert metrics[1]["kl/reference"] > metrics[0]["kl/reference"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", [m["name"] for m in METHODS])
def test_every_method_trains_and_differs_from_none(results: Any, method: str) -> None:
    weights, metrics = results[1, method]
    assert all(np.isfinite(w).all() for w in weights.values())
    assert metrics[0]["entropy/exact"] == pytest.approx(results[1, "none"][1][0]["entropy/exact"], abs=1e-6)
    if method in ("bonus", "repo"):
        assert gap(weights, results[1, "none"][0]) > 1e-6


@pytest.mark.parametrize("case", [h["name"] for h in [*HALF, *UNTIED[1:]]])
def test_half_precision_follows_fp32(results: Any, case: str) -> None:
    """Not equal, near: exact entropy within 2 %, the gradient's norm within 5 %, and no step skipped."""
    _, metrics = results[1, case]
    full = results[1, UNTIED[0]["name"] if case.startswith("untied") else SAME[0]["name"]][1]
    for row, other in zip(full, metrics, strict=True):
        assert other["entropy/exact"] == pytest.approx(row["entropy/exact"], rel=0.02)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=0.05)
        assert other["steps/skipped"] == 0
        assert other.get("steps/loss_scale") == (2**16 if "fp16" in case else None)


@pytest.mark.parametrize("case", [s["name"] for s in SKIPPED])
def test_fp16_skips_steps_that_overflow_counts_them_and_goes_on(results: Any, case: str) -> None:
    _, (first, second) = results[1, case]
    assert first["steps/skipped"] > 0
    assert second["steps/skipped"] < first["steps/skipped"]
    assert second["steps/loss_scale"] <= first["steps/loss_scale"] < 2**21 * 2
    assert np.isfinite(second["grad_norm"])


@pytest.mark.parametrize("case", [e["name"] for e in EXHAUSTED])
def test_an_exhausted_loss_scale_ends_the_run_with_a_sentence(results: Any, case: str) -> None:
    _, message = results[1, case]
    assert "even with a loss scale of 1: lower learner.lr" in message


def test_a_device_without_fp16_says_so(results: Any) -> None:
    import torch

    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this CPU has fp16 arithmetic")
    assert results[1, "refused"][1] == (
        "the trainer's precision is fp16 and this device has no fp16 arithmetic: set another precision"
    )


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_reset_optimiser_is_as_a_new_one(results: Any, world: int, stage: int) -> None:
    weights, _ = results[world, f"reset{stage}"]
    assert gap(results[1, "new0"][0], weights) < 1e-5
    assert gap(results[1, "keep0"][0], weights) > 1e-5  # a step of a warm optimiser is another one


def test_the_checkpoint_is_a_hugging_face_folder(results: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    from transformers import AutoModelForCausalLM

    folders = list(tmp_path_factory.getbasetemp().glob("world*/resumed3-checkpoint/hf"))
    assert folders
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.num_hidden_layers == 2
