"""What the optimiser's steps do to entropy: predicted from the gradient and the distance the weights went, and measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.builders import assert_close
from support.ranks import RESPONSES, Meeting, learner_settings, responses_of, simulated, train
from torch import nn

from learner.batching import build_batches, ledger_sample
from learner.learner import Learner
from learner.ledger.step_effect import StepEffect
from learner.rank_settings import RankPlace
from learner.settings import BatchPlan, ObjectiveSettings


class OneRank:
    """Does what StepEffect asks of an engine, for a model that is whole on one rank."""

    def all_reduce(self, value: Any, op: str) -> Any:
        return value

    def own_part(self, parameter: Any, whole: Any = None) -> Any:
        return (parameter.detach() if whole is None else whole).flatten()

    def zeros_like(self, parameter: Any) -> Any:
        return torch.zeros_like(parameter)


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adamw"])
def test_the_prediction_is_of_the_optimisers_own_steps(optimiser: str) -> None:
    """Of small steps of a network realised on predicted change has slope 1, whatever made the steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 9))
    unused = nn.Parameter(torch.ones(3))
    made: Any = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.02),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=5e-4, weight_decay=0.1),
    }[optimiser](net.parameters())
    effect = StepEffect(OneRank(), [*net.parameters(), unused])

    def entropies(states: Any) -> Any:
        log_p = net(states).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def both(states: Any) -> Any:
        return None, entropies(states)

    pairs = []
    for _ in range(40):
        states: Any = [torch.randn(5, 6), torch.randn(11, 6)]
        with torch.no_grad():
            mean = float(torch.cat([entropies(s) for s in states]).mean())
        assert effect.begin(states, both) == pytest.approx(mean)
        for _update in range(2):
            targets = torch.randint(9, (16,))
            made.zero_grad()
            advantages = torch.randn(16)
            (net(torch.cat(states)).log_softmax(-1)[range(16), targets] * advantages).mean().backward()
            made.step()
        pairs.append(effect.end(states, both))
    predicted, realised = np.array(pairs).T
    slope, _ = np.polyfit(predicted, realised, 1)
    assert slope == pytest.approx(1.0, abs=0.1)
    assert np.corrcoef(predicted, realised)[0, 1] > 0.99


@pytest.mark.parametrize(("count", "share", "chosen"), [(16, 0.125, [0, 8]), (5, 0.5, [0, 1, 3]), (3, 1.0, [0, 1, 2])])
def test_the_responses_followed_are_spread_over_the_batch(count: int, share: float, chosen: list[int]) -> None:
    assert ledger_sample(count, share) == chosen
    assert ledger_sample(count, 0.0) == ledger_sample(0, share) == []


def made(share: float, ranks: int = 1, iteration: int = 0) -> Any:
    return build_batches(
        responses_of(iteration, 3),
        np.array([((7 * i) % 5 - 2) / 2 for i in range(RESPONSES)]),
        plan=BatchPlan(updates=2, ranks=ranks, ledger_share=share, micro_batch_tokens=60),
        aggregation="token",
        temperature=0.8,
    )


def test_following_the_steps_changes_none_of_them() -> None:
    settings = learner_settings(ObjectiveSettings(), {"kind": "repo_r"}, {"kind": "fixed"})
    (followed, table), (alone, expected) = (train(settings, [made(share), made(share, 1, 1)]) for share in (1.0, 0.0))
    assert_close(table, expected, 0, 0)
    new = {"entropy/predicted_dh", "entropy/step_dh"}
    for row, other in zip(followed, alone, strict=True):
        assert {k: v for k, v in row.items() if k not in new} == other
        assert new <= row.keys()


def test_the_whole_batch_followed_gives_its_own_change_of_entropy() -> None:
    settings = learner_settings(ObjectiveSettings(), {"kind": "none"}, {"kind": "fixed"})
    with simulated(Meeting(1)):
        learner = Learner(settings, RankPlace(0, 1, "", 0, False, 60.0))
        (batch,) = made(1.0)
        row, again = learner.train(batch), learner.measure_start(batch.__class__((), batch.envs, 0.8, batch.ledger))
    assert row["entropy/step_dh"] == pytest.approx(again["entropy/exact"] - row["entropy/exact"], rel=1e-9)
    assert abs(row["entropy/step_dh"]) > 1e-3


def test_what_is_measured_before_training_is_the_start_of_the_target_and_trains_nothing() -> None:
    settings = learner_settings(ObjectiveSettings(), {"kind": "repo_r"}, {"kind": "doubling"})
    with simulated(Meeting(1)):
        learner = Learner(settings, RankPlace(0, 1, "", 0, False, 60.0))
        before = learner.policy.table.detach().clone()  # type: ignore[union-attr]
        (batch,) = build_batches(
            [], [], plan=BatchPlan(), aggregation="token", temperature=0.8, measured=responses_of(3, 3)
        )
        start = learner.measure_start(batch)["entropy/exact"]
        assert torch.equal(learner.policy.table, before)  # type: ignore[arg-type]
        row = learner.train(made(0.125)[0])
    assert row["entropy/start"] == start
    assert row["entropy/target"] == pytest.approx(0.7 * start)
    assert row["entropy/exact"] != pytest.approx(start)
    assert "entropy/realised_dh" not in row  # no update lies between the two
