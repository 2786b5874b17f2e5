"""Declares what one learner rank is started with, and what a stage of the run changes. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from learner.entropy.base import AtBoundary
from learner.entropy.settings import EntropySettings
from learner.entropy.target import TargetSettings
from learner.settings import LearnerSettings, ModelSettings, ObjectiveSettings, TrainerPrecision


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Locates one rank in its group. The process must see one device: Ray sets CUDA_VISIBLE_DEVICES."""

    rank: int
    world_size: int
    master_addr: str
    master_port: int
    cuda: bool
    timeout_s: float


@dataclass(frozen=True, slots=True)
class RankSettings:
    """Holds what one learner rank is started with: a run's sections, and what follows from several of them."""

    model: ModelSettings  # its path: the weights to start from, the configured model's or a checkpoint's
    learner: LearnerSettings
    objective: ObjectiveSettings
    entropy: EntropySettings
    precision: TrainerPrecision
    loss_scale_power: int
    fp32_head: bool  # the LM head's product in float32
    reference: str  # the model that a KL penalty, if there is one, is taken to
    hold_reference: bool  # even without a KL penalty now: a later stage has one
    total_steps: int
    seed: int
    bucket_bytes: int
    shared_memory: bool = True  # with engines on rank 0's host
    adapter: str | None = None  # the folder of an adapter to go on from; None: of learner.lora, if it is set, a new one


@dataclass(frozen=True, slots=True)
class LearnerStage:
    """Lists a stage's new settings, and what it keeps of controller and optimiser."""

    objective: ObjectiveSettings
    lr: float
    target: TargetSettings
    controller: AtBoundary = "keep"
    optimiser: Literal["keep", "reset"] = "keep"
