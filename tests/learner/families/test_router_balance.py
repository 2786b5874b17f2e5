"""The routers' loss against transformers' own aux_loss, value and gradient, and what it does to a step."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models.families import BY_NAME
from support import ranks
from support.builders import make_trajectory
from support.ranks import TablePolicy, learner_settings, train
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from learner.batching import build_batches
from learner.policy import Policy
from learner.settings import BatchPlan, ObjectiveSettings

MIXTURES = ("qwen3-moe", "mixtral", "olmoe", "qwen2-moe", "gpt-oss", "granite-moe")


def make(name: str) -> Policy:
    torch.manual_seed(0)
    family = BY_NAME[name]
    config = CONFIG_MAPPING[family.kind](**family.config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    return Policy(model).eval()


def forward(policy: Policy, tokens: torch.Tensor, predict: torch.Tensor) -> Any:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return policy(tokens, positions, predict, torch.zeros_like(predict), 1.0)


def measure(policy: Policy, tokens: torch.Tensor, predict: torch.Tensor) -> None:
    """Counts the experts that these positions choose, as the learner does before an update."""
    policy.count_experts()
    with torch.no_grad():
        forward(policy, tokens, predict)
    policy.share_experts(lambda counts: counts)


@pytest.mark.parametrize("name", MIXTURES)
def test_it_is_transformers_own_loss(name: str) -> None:
    policy = make(name)
    tokens = torch.randint(2, 100, (2, 9))
    coefficient, share, weights = 0.5, 0.5, torch.full((18,), 1 / 36)  # half of the update
    own = policy.model(input_ids=tokens, use_cache=False, output_router_logits=True).aux_loss
    own.backward()
    expected = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    policy.balance_experts(coefficient)
    measure(policy, tokens, torch.arange(18))
    forward(policy, tokens, torch.arange(18))
    loss = policy.router_loss(weights)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert float(loss) == pytest.approx(coefficient * share * float(own), rel=1e-5)
    assert any(float(g.abs().max()) > 1e-6 for g in expected.values())  # the routers do feel it
    for n, p in policy.named_parameters():
        if n in expected:
            assert p.grad is not None
            assert torch.allclose(p.grad, coefficient * share * expected[n], rtol=1e-4, atol=1e-7), n


@pytest.mark.parametrize("parts", [[18], [7, 11], [0, 1, 17]])
def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(parts: list[int]) -> None:
    policy, tokens = make("qwen3-moe"), torch.randint(2, 100, (1, 18))
    policy.balance_experts(1.0)
    weights = torch.rand(18)
    edges = [sum(parts[:i]) for i in range(len(parts) + 1)]
    spans = [torch.arange(a, b) for a, b in itertools.pairwise(edges)]

    def gradient(pieces: list[torch.Tensor]) -> tuple[float, torch.Tensor]:
        policy.zero_grad()
        policy.count_experts()
        with torch.no_grad():
            for piece in pieces:
                forward(policy, tokens, piece)
        policy.share_experts(lambda counts: counts)
        total = 0.0
        for piece in pieces:
            forward(policy, tokens, piece)
            loss = policy.router_loss(weights[piece])
            assert isinstance(loss, torch.Tensor)
            loss.backward()
            total += float(loss)
        return total, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    (whole, expected), (divided, actual) = gradient([torch.arange(18)]), gradient(spans)
    assert divided == pytest.approx(whole, rel=1e-5)
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_the_share_is_of_all_ranks() -> None:
    policy, tokens = make("qwen3-moe"), torch.randint(2, 100, (1, 9))
    policy.balance_experts(1.0)
    seen: list[torch.Tensor] = []

    def total(counts: torch.Tensor) -> torch.Tensor:
        seen.append(counts)
        return counts + torch.tensor(
            [9.0, 0.0, 0.0, 0.0, 9.0]
        )  # another rank, whose tokens all choose the first expert

    policy.count_experts()
    with torch.no_grad():
        forward(policy, tokens, torch.arange(8))
    layers, top_k = policy.model.config.num_hidden_layers, policy.model.config.num_experts_per_tok
    policy.share_experts(total)
    assert float(seen[0][-1]) == 8 * layers
    assert float(seen[0][:-1].sum()) == 8 * layers * top_k
    forward(policy, tokens, torch.arange(8))
    shared = policy.router_loss(torch.ones(8) / 8)
    measure(policy, tokens, torch.arange(8))
    forward(policy, tokens, torch.arange(8))
    assert float(shared) != pytest.approx(float(policy.router_loss(torch.ones(8) / 8)), rel=1e-3)


def test_padding_and_positions_that_predict_nothing_sampled_do_not_count() -> None:
    policy = make("qwen3-moe")
    policy.balance_experts(1.0)
    tokens, weights = torch.randint(2, 100, (1, 9)), torch.ones(4)

    def loss(tokens: torch.Tensor, predict: torch.Tensor, weights: torch.Tensor) -> float:
        measure(policy, tokens, predict)
        forward(policy, tokens, predict)
        return float(policy.router_loss(weights))

    alone = loss(tokens, torch.arange(2, 6), weights)
    padded = torch.cat([tokens, torch.zeros(1, 7, dtype=torch.long)], 1)
    assert loss(padded, torch.arange(2, 6), weights) == pytest.approx(alone, rel=1e-5)
    assert loss(tokens, torch.arange(0, 8), torch.ones(8) / 2) != pytest.approx(alone, rel=1e-3)


def test_it_is_off_unless_asked_for() -> None:
    policy, tokens = make("qwen3-moe"), torch.randint(2, 100, (1, 9))
    measure(policy, tokens, torch.arange(8))
    forward(policy, tokens, torch.arange(8))
    assert policy.router_loss(torch.ones(8)) == 0.0


def test_a_model_without_routers_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="llama is none: set it to 0"):
        make("llama").balance_experts(0.01)


class RoutedTable(TablePolicy):
    """Has a routers' loss whose gradient is 1 for every entry of the table."""

    coefficient = 0.0

    def balance_experts(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def router_loss(self, weight: torch.Tensor) -> torch.Tensor:
        return self.coefficient * weight.sum() * self.table.sum()


@pytest.mark.parametrize("plan", [{}, {"ranks": 2, "micro_batch_tokens": 30}], ids=str)
def test_the_learner_adds_it_once_an_update_however_the_batch_is_divided(
    plan: dict[str, Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr(ranks, "TablePolicy", RoutedTable)
    plain = learner_settings(ObjectiveSettings(), {"kind": "none"}, {"kind": "fixed"})
    balanced = replace(plain, learner=plain.learner.model_copy(update={"router_aux_coefficient": 0.25}))
    batches = build_batches(
        [make_trajectory([(3, 4 + i)], index=i, seed=i) for i in range(6)],
        np.zeros(6),
        plan=BatchPlan(**plan),
        aggregation="token",
        temperature=1.0,
    )
    _, before = train(plain, [batches])
    _, after = train(balanced, [batches])
    assert torch.allclose(before - after, torch.full_like(before, plain.learner.lr * 0.25), rtol=1e-6)
