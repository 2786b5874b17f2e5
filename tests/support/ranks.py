"""Simulates learner ranks as threads of one process.

The engine has the methods of DeepSpeedEngine, collectives over a barrier and plain gradient descent; the policy is one table in
float64. The real DeepSpeed engine is tested in integration/.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from envs.types import Trajectory
from learner import learner as module
from learner.entropy.settings import EntropySettings
from learner.entropy.target import TargetSettings
from learner.learner import Learner
from learner.rank_settings import RankPlace, RankSettings
from learner.settings import LearnerSettings, ModelSettings, ObjectiveSettings
from learner.types import RankBatch
from support.builders import VOCAB, make_trajectory


class TablePolicy(nn.Module):
    """Predicts the next token from the previous one alone.

    A masked token matters only where it directly precedes a sampled one.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64))
        self.adapter = None

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        predict: Tensor,
        targets: Tensor,
        temperature: float,
        statistics: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_p = (self.table[tokens.flatten()] / temperature).log_softmax(-1)[predict]
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        pull = (p * (log_p + entropy[:, None])).detach()
        logp = log_p.gather(-1, targets[:, None])[:, 0]
        count = len(logp) if statistics else 0
        return logp, entropy, (p.detach() * pull).sum(-1)[:count], pull.square().sum(-1)[:count]

    def slow(self, packing: bool) -> list[str]:
        return []

    def count_experts(self) -> None: ...

    def share_experts(self, total: Any) -> None: ...

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.named_parameters()

    saved_weights = weights


@dataclass
class Meeting:
    """Exchanges one tensor of every rank among all ranks."""

    size: int
    brought: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=60)

    def exchange(self, rank: int, value: Tensor) -> list[Tensor]:
        self.brought[rank] = value
        self.barrier.wait()
        results = [self.brought[r] for r in range(self.size)]
        self.barrier.wait()  # nobody brings the next thing before all have taken this one
        return results


class FakeEngine:
    """Implements what `Learner` uses of DeepSpeedEngine.

    Gradients are averaged over ranks, so the loss is multiplied by their number.
    """

    device = torch.device("cpu")
    keeps_graphs = True

    def __init__(self, placement: RankPlace, meeting: Meeting) -> None:
        self.placement, self.meeting = placement, meeting
        self.loss_scale = None
        self.last = True
        self.resets = 0

    def attach(self, model: nn.Module) -> None:
        self.model = model

    def freeze(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(False)

    def __call__(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def outside_updates(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def boundary(self, last: bool) -> None:
        self.last = last

    def backward(self, loss: Tensor) -> None:
        (loss * self.placement.world_size).backward()

    def trim(self) -> None:
        pass

    def step(self, lr: float) -> float:
        assert self.last, "a step in the middle of an update"
        square = 0.0
        for p in self.model.parameters():
            gradient_here = torch.zeros_like(p) if p.grad is None else p.grad
            gradient = torch.stack(self.all_gather(gradient_here)).mean(0)
            square += float(gradient.square().sum())
            p.data -= lr * gradient
            p.grad = None
        return square**0.5

    def reset_optimiser(self) -> None:
        self.resets += 1  # gradient descent has no state to forget

    def all_reduce(self, value: Tensor, op: str) -> Tensor:
        parts = torch.stack(self.all_gather(value))
        return parts.sum(0) if op == "sum" else parts.amax(0)

    def own_part(self, parameter: nn.Parameter, whole: Tensor | None = None) -> Tensor:
        flat = (parameter.detach() if whole is None else whole).flatten()
        return flat.tensor_split(self.placement.world_size)[self.placement.rank]

    def zeros_like(self, parameter: nn.Parameter) -> Tensor:
        return torch.zeros_like(parameter)

    def all_gather(self, value: Tensor) -> list[Tensor]:
        return self.meeting.exchange(self.placement.rank, value)


RESPONSES = 12


def responses_of(iteration: int, observation: int = 3) -> list[Trajectory]:
    """Builds responses, half of them of two turns.

    observation: the seed of what the policy reads between its turns, and its length.
    """
    rng, made = random.Random(iteration), []
    for i in range(RESPONSES):
        n, more = rng.randint(1, 6), rng.randint(1, 4)
        parts: list[tuple[int, int]] = [(3, n), (3, more)]
        reference = make_trajectory(parts, reward=i % 2, index=i, env="ab"[i % 2], seed=iteration, version=i % 3)
        if i % 3 == 0:
            last = reference.turns[1]
            noise = tuple(random.Random(f"{observation}/{i}").choices(range(1, 50), k=observation))
            turn = replace(last, context_ids=(*noise, last.context_ids[-1]))
            reference = replace(reference, turns=(reference.turns[0], turn))
        elif i % 3 == 1:
            reference = replace(reference, turns=reference.turns[:1], texts=reference.texts[:1])
        made.append(reference)
    return made


def learner_settings(objective: ObjectiveSettings, method: dict[str, Any], controller: dict[str, Any]) -> RankSettings:
    """Returns settings with steps so large that ratios leave the clip range in the first iteration."""
    return RankSettings(
        model=ModelSettings(path="0"),
        learner=LearnerSettings(lr=40.0, grad_clip=0.0),
        objective=objective,
        entropy=EntropySettings.model_validate(
            {"method": method, "controller": controller, "target": TargetSettings(fraction=0.7)}
        ),
        precision="fp32",
        loss_scale_power=16,
        fp32_head=False,
        reference="1",
        hold_reference=False,
        total_steps=100,
        seed=5,
        bucket_bytes=1 << 20,
    )


@contextmanager
def simulated(meeting: Meeting) -> Iterator[None]:
    """Makes Learner use these engines and policies inside the context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DeepSpeedEngine", lambda placement, *_, **__: FakeEngine(placement, meeting))
        patch.setattr(module, "load_policy", lambda path, **_: TablePolicy(int(path)))
        patch.setattr(module, "read_once", lambda engine, load: load())
        yield


def train(settings: RankSettings, iterations: list[list[RankBatch]]) -> tuple[list[dict[str, float]], Tensor]:
    """Trains on the batches of every iteration, one per rank; returns (each iteration's metrics, the final table).

    Asserts that all ranks agree.
    """
    world = len(iterations[0])
    meeting = Meeting(world)

    def rank_main(rank: int) -> tuple[list[dict[str, float]], Tensor]:
        try:
            learner = Learner(settings, RankPlace(rank, world, "", 0, False, 60.0))
            rows = [learner.train(batches[rank]) for batches in iterations]
        except BaseException:
            meeting.barrier.abort()  # the others wait for a rank that does not come
            raise
        return rows, dict(learner.policy.weights())["table"].detach()

    with simulated(meeting), ThreadPoolExecutor(world) as pool:
        results = list(pool.map(rank_main, range(world)))
    for rows, table in results[1:]:
        assert repr(rows) == repr(results[0][0]), "the ranks report different metrics"
        assert torch.equal(table, results[0][1])
    return results[0]
