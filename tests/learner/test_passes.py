"""No forward pass is taken twice at the same weights where its numbers serve again: what is reused is what would be computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from support.ranks import RESPONSES, FakeEngine, Meeting, TablePolicy, learner_settings, responses_of, simulated

from learner import learner as module
from learner.batching import build_batches
from learner.deepspeed_engine import RankPlace
from learner.passes import Passes
from learner.settings import BatchPlan, ObjectiveSettings
from learner.types import RankBatch


def batch_of(**plan: Any) -> RankBatch:
    advantages = np.array([(i % 5 - 2) / 2 for i in range(RESPONSES)])
    (batch,) = build_batches(
        responses_of(0), advantages, plan=BatchPlan(**plan), aggregation="token", temperature=0.8, length_scale=10
    )
    return batch


def settings(kind: str = "none", room: int = 8192) -> Any:
    made = learner_settings(ObjectiveSettings(), {"kind": kind}, {"kind": "fixed"})
    return module.replace(made, learner=made.learner.model_copy(update={"micro_batch_tokens": room}))


def forwards(batch: RankBatch, kind: str = "none", room: int = 8192) -> Counter[tuple[bool, bool]]:
    """Trains for an iteration; counts forward passes by (with gradient, with statistics)."""
    counted: Counter[tuple[bool, bool]] = Counter()
    inner = TablePolicy.forward

    def forward(self: Any, *inputs: Any) -> Any:
        counted[torch.is_grad_enabled(), inputs[-1] if len(inputs) > 5 else True] += 1
        return inner(self, *inputs)

    with simulated(Meeting(1)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TablePolicy, "forward", forward)
        learner = module.Learner(settings(kind, room), RankPlace(0, 1, "127.0.0.1", 1, False, 60.0))
        learner.train(batch)
    return counted


WITH, WITHOUT = True, False


def test_one_update_that_fits_a_micro_batch_takes_one_forward_pass() -> None:
    batch = batch_of(ledger_share=0.0)
    assert forwards(batch) == {(True, WITH): len(batch.updates[0])}


def test_the_first_update_is_not_measured_again_and_the_others_are_with_statistics() -> None:
    batch = batch_of(updates=3, micro_batch_tokens=30, ledger_share=0.0)
    first, *others = (len(update) for update in batch.updates)
    assert first > 1
    counted = forwards(batch, room=1)  # no graph fits
    assert counted == {(False, WITH): first + sum(others), (True, WITHOUT): first, (True, WITH): sum(others)}


def test_a_method_of_scope_batch_measures_no_policy_that_has_not_moved() -> None:
    batch = batch_of(updates=2, ledger_share=0.0)
    first, second = (len(update) for update in batch.updates)
    # measured; first update with the measured graph; second update once more for the whole batch, and for its gradient
    assert forwards(batch, "repo_d") == {(True, WITH): first + second, (False, WITH): second + second}


def test_the_steps_effect_takes_entropies_alone() -> None:
    batch = batch_of(ledger_share=0.5)
    counted = forwards(batch)
    assert counted[True, WITHOUT] == counted[False, WITHOUT] == len(batch.ledger)


def passes(room: int, keeps: bool = True) -> Passes:
    engine: Any = FakeEngine(RankPlace(0, 1, "127.0.0.1", 1, False, 60.0), Meeting(1))
    engine.attach(TablePolicy(0))
    engine.keeps_graphs = keeps
    return Passes(engine, settings(room=room), 0.8)


def test_graphs_are_kept_within_one_micro_batchs_slots() -> None:
    (update,) = batch_of(micro_batch_tokens=25, ledger_share=0.0).updates
    sizes = {id(m): m.tokens.size for m in update}
    for room in (0, 25, 60, 10_000):
        kept = passes(room).keepable(update)
        assert sum(sizes[key] for key in kept) <= room
        left = room - sum(sizes[key] for key in kept)
        assert all(sizes[key] > left for key in sizes.keys() - kept)  # nothing more would have fitted
    assert not passes(10_000, keeps=False).keepable(update)


def test_what_is_reused_is_what_the_training_forward_computes() -> None:
    (update,) = batch_of(ledger_share=0.0).updates
    run = passes(10_000)
    for micro in update:
        kept, fresh = run.measure(micro, 3, keep=True), run.measure(micro, 3)
        now = run.now(micro, fresh, 3)
        for f in fields(now):
            assert torch.equal(getattr(kept.stats, f.name), getattr(now, f.name)), f.name
            assert torch.equal(getattr(fresh.stats, f.name), getattr(now, f.name)), f.name
            assert not getattr(kept.stats, f.name).requires_grad
        logp, entropy, _ = run.trained(micro, fresh, 3, moved=False)
        again, _, stats = run.trained(micro, fresh, 3, moved=False)
        assert logp.requires_grad and entropy.requires_grad
        assert logp is not again and torch.equal(logp, again)  # a graph serves once
        assert stats is fresh.stats
        moved = run.trained(micro, fresh, 4, moved=True)[2]
        assert not torch.equal(moved.uniform, fresh.stats.uniform)  # drawn for the step
