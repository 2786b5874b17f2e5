"""Declares what the loop calls of the cluster, of its learner, and of the producer of batches."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from envs.types import Group
from learner.settings import RowLayout
from learner.types import RankBatch, StepMetrics
from orchestration.cluster.weight_sync import Transfer
from orchestration.config.run_config import RunConfig
from orchestration.sampling.dynamic_sampling import Sampled


class LearnerGroup(Protocol):
    """Trains on every rank of the learner."""

    async def train(self, batches: Sequence[RankBatch]) -> StepMetrics:
        """Runs one iteration on one batch per rank; returns its metrics, reduced over the ranks."""
        ...

    async def measure_start(self, batches: Sequence[RankBatch]) -> StepMetrics:
        """Gives the targets their start, the entropy on these batches, which have no updates; returns what was measured."""
        ...

    async def save(self, hf: Path, engine: Path) -> None:
        """Writes a Hugging Face folder and the training engine's own state."""
        ...

    async def state_dict(self) -> dict[str, Any]: ...


class TrainingCluster(Protocol):
    """Trains, and keeps the generators' weights equal to the learner's."""

    @property
    def learner(self) -> LearnerGroup: ...

    async def learners_turn(self) -> None:
        """Gives the learner the GPUs that it shares with generators; before it trains, measures, saves or begins a stage."""
        ...

    async def generators_turn(self) -> None:
        """Gives the generators the GPUs that they share with the learner; before they are asked for anything but after `sync`."""
        ...

    async def sync(self, version: int, sequences: Sequence[Sequence[int]]) -> Transfer:
        """Sends the learner's weights to every generator as `version`. Then it is the generators' turn.

        sequences: what the learner scores meanwhile, for `probe`.
        """
        ...

    async def check_start(self, version: int, sequences: Sequence[Sequence[int]]) -> RowLayout:
        """Sends the learner's weights as `version`, and compares trainer, engines and plain transformers on the same tokens.
        Returns what batches may be. Raises ModelRefused where they disagree."""
        ...

    async def probe(self, sequences: Sequence[Sequence[int]], expected: Sequence[Sequence[float]]) -> dict[str, float]:
        """Compares engines with the trainer, whose log-probs of the same tokens are `expected`: what `sync` returned for them.
        Raises NumericsError where one differs too much."""
        ...

    async def begin_stage(self, index: int) -> None: ...

    def counts(self) -> dict[str, float]:
        """Returns metrics of the actors: how many there are, how many were replaced."""
        ...


class BatchProducer(Protocol):
    """Gives the loop its next batch of groups: sampling/producer.py, and beside the training sampling/asynchronous.py."""

    def next_batch(self, iteration: int, stage: RunConfig) -> Coroutine[Any, Any, Sampled]:
        """Waits for the groups of `iteration`. stage: the run's configuration in the present stage."""
        ...

    def before_training(self, stage: RunConfig, responses: int) -> Coroutine[Any, Any, Sequence[Group]]:
        """Waits for groups of at least `responses` responses of the present policy that are not trained on."""
        ...

    def abandon(self) -> None:
        """Takes back what an interrupted `next_batch` has drawn, unless a checkpoint holds it: a resumed run draws it again."""
        ...

    async def end_stage(self) -> str:
        """Ends what is left of a stage that has ended; returns a sentence about it, or ""."""
        ...

    async def close(self) -> None:
        """Ends what is under way."""
        ...
