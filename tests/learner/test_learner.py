"""The learner on simulated ranks: however a batch is divided, the metrics and the weights are the same, and what the policy did not
sample does not count. For every method, in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import alike, assert_close
from support.ranks import RESPONSES, learner_settings, responses_of, train

from learner.batching import build_batches
from learner.entropy import build
from learner.ledger import states
from learner.settings import BatchPlan, ImportanceSettings, KLSettings, ObjectiveSettings
from learner.types import MicroBatch, RankBatch

CUTS = [
    (1, 14, False),
    (1, 25, True),
    (2, 10_000, False),
    (2, 20, True),
    (3, 16, False),
    (4, 20, False),
]  # ranks, tokens, packing

# Every method, and the parts of the objective that look beyond one token.
CASES: dict[str, tuple[ObjectiveSettings, dict[str, Any], str]] = {
    **{
        kind: (ObjectiveSettings(surrogate="ppo", clip_low=0.2, clip_high=0.2), {"kind": kind}, "token")
        for kind in build.METHODS
    },
    "clip_cov, wide": (ObjectiveSettings(), {"kind": "clip_cov", "low": -1.0, "high": 9.0}, "token"),
    "kl_cov, wide": (ObjectiveSettings(), {"kind": "kl_cov", "share": 0.3, "form": "kl", "clipped": True}, "token"),
    "gspo": (ObjectiveSettings(surrogate="gspo", clip_low=0.01, clip_high=0.01), {"kind": "repo_r"}, "sequence"),
    "cispo, masked": (
        ObjectiveSettings(
            surrogate="cispo",
            clip_low=0.2,
            clip_high=0.2,
            importance=ImportanceSettings(kind="masked", cap=3.0, floor=0.3),
        ),
        {"kind": "repo"},
        "token",
    ),
    "reference": (ObjectiveSettings(kl=KLSettings(coefficient=0.02, estimator="k3")), {"kind": "bonus"}, "sequence"),
    "k1, sequence": (
        ObjectiveSettings(
            importance=ImportanceSettings(kind="truncated", cap=2.0, level="sequence"),
            kl=KLSettings(coefficient=0.3, estimator="k1"),
        ),
        {"kind": "repo_r", "part": "positive"},
        "constant",
    ),
}


def batches_of(
    iteration: int,
    aggregation: Any,
    ranks: int = 1,
    tokens: int = 10_000,
    packing: bool = False,
    observation: int = 3,
    staleness: int = 0,
    sharing: bool | None = None,
) -> list[RankBatch]:
    """sharing: whether prompts are shared; None: the responses have no prompt in common."""
    advantages = np.array([((7 * i + iteration) % 5 - 2) / 2 for i in range(RESPONSES)])
    responses = responses_of(iteration, observation)
    sizes: dict[str, Any] = {
        "ranks": ranks,
        "micro_batch_tokens": tokens,
        "packing": packing,
        "prefix_sharing": sharing,
    }
    return build_batches(
        responses if sharing is None else alike(responses),
        advantages,
        plan=BatchPlan(updates=2, epochs=2, **sizes),
        aggregation=aggregation,
        temperature=0.8,
        length_scale=10,
        version=2,
        staleness=staleness,
    )


def run(case: str, **plan: Any) -> tuple[list[dict[str, float]], Any]:
    objective, method, aggregation = CASES[case]
    controller: dict[str, Any] = {"kind": "fixed"}
    if method["kind"] in ("repo", "repo_r", "bonus"):
        controller = {"kind": "isentropic"}
    elif method["kind"] in ("adapo", "clip_cov", "lower_clip"):
        controller = {"kind": "doubling"}
    elif method["kind"] == "entrocraft":
        controller = {"kind": "band", "dead_band": 0.01}
    return train(
        learner_settings(objective, method, controller), [batches_of(i, aggregation, **plan) for i in range(2)]
    )


def assert_same(actual: Any, expected: Any) -> None:
    for own, wanted in zip(actual[0], expected[0], strict=True):
        assert own.keys() == wanted.keys()
        for key, value in wanted.items():
            assert own[key] == pytest.approx(value, rel=1e-8, abs=1e-10, nan_ok=True), key
    assert_close(actual[1], expected[1], 1e-9, 1e-11)


@pytest.mark.parametrize(
    "case", ["none", "repo_r", "clip_cov, wide", "kl_cov, wide", "gspo", "cispo, masked", "k1, sequence"]
)
def test_shared_prompts_change_no_metric_and_no_weight(case: str) -> None:
    reference = run(case, sharing=False)
    for ranks, tokens in ((1, 10_000), (1, 25), (2, 20), (3, 40)):
        assert_same(run(case, ranks=ranks, tokens=tokens, packing=True, sharing=True), reference)


@pytest.mark.parametrize("case", sorted(CASES))
def test_ranks_micro_batches_and_packing_change_no_metric_and_no_weight(case: str) -> None:
    reference = run(case)
    for ranks, tokens, packing in CUTS:
        assert_same(run(case, ranks=ranks, tokens=tokens, packing=packing), reference)
    first = reference[0][0]
    assert math.isfinite(first["grad_norm"])
    assert first["grad_norm"] > 0
    acted = first["kl/old"] if case == "kl_cov" else first["clip/high"] + first["clip/low"]  # kl_cov does not clip
    assert acted > 0  # a run in which nothing happens shows nothing


@pytest.mark.parametrize("case", ["k1, sequence", "reference"])
def test_nor_do_they_where_older_policies_sampled(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up log-probs are far from the policy's: few states carry the mean, and that is allowed here."""
    monkeypatch.setattr(states, "MIN_EFFECTIVE", 0.0)
    reference = run(case, staleness=2)
    for ranks, tokens, packing in CUTS:
        assert_same(run(case, ranks=ranks, tokens=tokens, packing=packing, staleness=2), reference)
    fresh = run(case)
    for stale, plain in zip(reference[0], fresh[0], strict=True):
        assert plain.keys() < stale.keys()
        assert stale["entropy/correction"] == 1
        assert stale["entropy/exact"] != pytest.approx(stale["entropy/uncorrected"], rel=1e-6)
        assert 0 < stale["entropy/dead_time"] <= 2
        shares = [stale[f"staleness/tokens/{k}"] for k in range(3)]
        assert sum(shares) == pytest.approx(1) and min(shares[0], shares[2]) > 0
    # Before the first updates nothing but the weights of states differs.
    assert reference[0][0]["entropy/uncorrected"] == pytest.approx(fresh[0][0]["entropy/exact"], rel=1e-12)
    assert reference[0][0]["entropy/predicted_dh"] != pytest.approx(fresh[0][0]["entropy/predicted_dh"], rel=1e-6)


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_the_policy_did_not_sample_does_not_count(case: str) -> None:
    """Other observations, and longer ones, between the turns: the policy reads only the last token before its own."""
    reference = run(case)
    for observation in (1, 8):
        assert_same(run(case, observation=observation), reference)


def permuted(micro: MicroBatch, rng: np.random.Generator) -> MicroBatch:
    """Returns a padded micro-batch with its rows in another order, each with all that belongs to it."""
    rows, width = micro.tokens.shape
    order = rng.permutation(rows)
    at = micro.predict // width
    index = np.concatenate([np.flatnonzero(at == row) for row in order])
    moved = np.argsort(order)[at] * width + micro.predict % width
    flat = {
        name: getattr(micro, name)[index]
        for name in MicroBatch.__dataclass_fields__
        if name not in ("tokens", "positions", "predict")
    }
    return MicroBatch(micro.tokens[order], micro.positions[order], moved[index], **flat)


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_order_of_rows_changes_nothing(case: str) -> None:
    objective, method, aggregation = CASES[case]
    value = {"value": 0.5} if method["kind"] == "entrocraft" else {}
    settings = learner_settings(objective, method, {"kind": "fixed", **value})
    rng, actual = np.random.default_rng(0), []
    for shuffle in (False, True):
        (batch,) = batches_of(0, aggregation, tokens=60)
        if shuffle:
            one = {id(m): permuted(m, rng) for update in batch.updates for m in update}
            batch = replace(batch, updates=tuple(tuple(one[id(m)] for m in update) for update in batch.updates))
        actual.append(train(settings, [[batch]]))
    assert_same(*actual)


def test_what_is_predicted_is_for_the_steps_that_are_taken() -> None:
    """Over all updates and epochs: the sum of learning rates times the mean over the batch, each update of unit weight."""
    rows, _ = run("none")
    assert rows[0]["lr"] == 40.0
    assert rows[0]["entropy/tabular_dh"] == pytest.approx(rows[0]["entropy/tabular_dh_free"])
    parts = rows[0]["entropy/tabular_dh_positive"] + rows[0]["entropy/tabular_dh_negative"]
    assert rows[0]["entropy/tabular_dh"] == pytest.approx(parts)
    assert rows[1]["entropy/realised_dh"] == pytest.approx(rows[1]["entropy/exact"] - rows[0]["entropy/exact"])


def test_the_reference_is_in_the_advantage_with_k1_and_in_the_loss_with_the_others() -> None:
    actual = {}
    for name, objective in (
        ("none", ObjectiveSettings()),
        ("k1", ObjectiveSettings(kl=KLSettings(coefficient=0.3, estimator="k1"))),
        ("k2", ObjectiveSettings(kl=KLSettings(coefficient=0.01, estimator="k2"))),
    ):
        settings = learner_settings(objective, {"kind": "none"}, {"kind": "fixed"})
        actual[name] = train(settings, [batches_of(0, "token")])[0][0]
    spread = {name: row["advantage/std"] for name, row in actual.items()}
    assert spread["k1"] > spread["none"] == spread["k2"]
    assert actual["k2"]["loss"] > actual["none"]["loss"]
    assert {name for name, row in actual.items() if "kl/reference" in row} == {"k1", "k2"}


# --- dynamic sampling -----------------------------------------------------------------------------------------------------


def filtered(kept: int, iteration: int = 0, measure: bool = True, **plan: Any) -> list[RankBatch]:
    """Returns a batch that trains on the first `kept` responses and, as dynamic sampling does, measures the others or not."""
    sizes = {"ranks": 1, "micro_batch_tokens": 10_000, "packing": False, **plan}
    responses = responses_of(iteration)
    return build_batches(
        responses[:kept],
        np.array([((7 * i + iteration) % 5 - 2) / 2 for i in range(kept)]),
        plan=BatchPlan(updates=2, epochs=2, **sizes),
        aggregation="token",
        temperature=0.8,
        measured=responses[kept:] if measure else (),
        full_batch=RESPONSES,
    )


@pytest.mark.parametrize("case", ["none", "repo", "repo_d", "repo_r", "clip_cov, wide", "kl_cov, wide", "reference"])
def test_measured_responses_are_in_the_entropy_and_in_no_update(case: str) -> None:
    objective, method, _ = CASES[case]
    settings = learner_settings(objective, method, {"kind": "fixed"})
    (own,), table = train(settings, [filtered(9)])
    (alone,), expected = train(settings, [filtered(9, measure=False)])
    assert_close(table, expected, 1e-12, 1e-14)
    (reference,), _ = train(settings, [filtered(RESPONSES)])
    of_all = ("entropy/exact", "entropy/successful", "entropy/a", "entropy/b", "entropy/sampled", "gap/engine_mean")
    for key in of_all:
        assert own[key] == pytest.approx(reference[key], rel=1e-12), key
    assert own["entropy/exact"] != pytest.approx(alone["entropy/exact"], rel=1e-3)
    of_trained = (
        "entropy/covariance",
        "advantage/std",
        "entropy/predicted_dh",
        "entropy/tabular_dh",
        "loss",
        "grad_norm",
        "tokens/trained",
    )
    for key in of_trained:
        assert own[key] == pytest.approx(alone[key], rel=1e-9, abs=1e-12), key


def test_ranks_and_micro_batches_change_nothing_where_groups_were_dropped() -> None:
    settings = learner_settings(ObjectiveSettings(), {"kind": "repo"}, {"kind": "isentropic"})

    def iterations(**plan: Any) -> Any:
        return train(settings, [filtered(kept, i, **plan) for i, kept in enumerate((1, 0, 7, 9))])

    reference = iterations()
    for ranks, tokens, packing in CUTS:
        assert_same(iterations(ranks=ranks, micro_batch_tokens=tokens, packing=packing), reference)
    assert [row.get("tokens/trained", 0) > 0 for row in reference[0]] == [True, False, True, True]


def test_an_iteration_without_anything_to_train_on_is_measured_and_changes_no_weight() -> None:
    settings = learner_settings(ObjectiveSettings(), {"kind": "repo"}, {"kind": "doubling"})
    rows, table = train(settings, [filtered(RESPONSES), filtered(0, 1), filtered(0, 1), filtered(RESPONSES, 2)])
    _, expected = train(settings, [filtered(RESPONSES)])
    _, same = train(settings, [filtered(RESPONSES), filtered(0, 1)])
    assert_close(same, expected, 0, 0)
    assert not torch.equal(table, expected)
    empty = rows[1]
    assert empty["tokens/trained"] == 0.0
    assert empty["entropy/realised_dh"] == pytest.approx(empty["entropy/exact"] - rows[0]["entropy/exact"])
    assert (
        not {
            "entropy/predicted_dh",
            "entropy/step_dh",
            "loss",
            "grad_norm",
            "lr",
            "advantage/std",
            "entropy/covariance",
        }
        & empty.keys()
    )
    # The controller sees the entropy, and its coefficient waits for an update that it can act on.
    assert rows[0]["entropy/coefficient"] == rows[1]["entropy/coefficient"] == rows[2]["entropy/coefficient"]
    assert rows[3]["entropy/coefficient"] in (2 * rows[0]["entropy/coefficient"], rows[0]["entropy/coefficient"] / 2)
    assert rows[1]["entropy/error"] == pytest.approx(1 - empty["entropy/exact"] / empty["entropy/target"])
    assert empty["entropy/target"] == pytest.approx(0.7 * rows[0]["entropy/exact"])


def test_the_learning_rate_goes_on_by_the_steps_of_a_full_batch() -> None:
    made = learner_settings(ObjectiveSettings(), {"kind": "none"}, {"kind": "fixed"})
    settings = replace(made, learner=made.learner.model_copy(update={"schedule": "linear"}), total_steps=16)
    rates = [
        [row.get("lr") for row in train(settings, [filtered(k, i) for i, k in enumerate(kept)])[0]]
        for kept in ((RESPONSES, RESPONSES, RESPONSES), (1, 0, RESPONSES))
    ]
    first, second, third = (rate or 0.0 for rate in rates[0])
    assert rates[1][2] == third < second < first
    assert rates[1][1] is None
