"""Defines what the loop calls of a cluster, so that it depends on these and not on Ray or on `Cluster`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from learner.learner import LearnerStage
    from learner.types import RankBatch, StepMetrics
    from learner.weights.protocol import WeightManifest


class LearnerGroup(Protocol):
    """Trains: every rank of the learner behind one object. `actors.handles.RemoteLearner` is one."""

    async def train(self, batches: Sequence[RankBatch]) -> StepMetrics:
        """Runs one iteration on one batch per rank and returns its metrics, reduced over the ranks."""
        ...

    async def begin_stage(self, stage: LearnerStage) -> None: ...

    async def save(self, hf: Path, engine: Path) -> None:
        """Writes a Hugging Face folder and the training engine's own state."""
        ...

    async def state_dict(self) -> dict[str, object]: ...


class WeightSync(Protocol):
    """Brings the learner's weights to the generators. `version` is the one they have."""

    @property
    def version(self) -> int: ...

    async def sync(self, version: int) -> WeightManifest:
        """Sends the learner's weights to every generator as `version`."""
        ...


class LogprobCheck(Protocol):
    """Compares the generators' log-probs with the learner's."""

    async def probe(self, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
        """Returns `sync/logprob_gap_max` and `sync/logprob_gap_mean`. Raises NumericsError beyond weights.max_logprob_gap."""
        ...


class TrainingCluster(WeightSync, LogprobCheck, Protocol):
    """Joins the three with the change of a stage: all that the loop needs. `Cluster` is one."""

    @property
    def learner(self) -> LearnerGroup: ...

    async def begin_stage(self, index: int) -> None: ...
