"""Declares what can be set about training: a recipe's sections `model`, `precision`, `learner` and `objective`. Without torch.

The sections of a RunConfig are these classes, and the code that trains reads the same objects: nothing is declared twice and
nothing is copied. The sections `entropy` and `diversity` are in learner/entropy/settings.py and learner/diversity/settings.py.
Values that follow from several sections are in learner/rank_settings.py.
"""

from __future__ import annotations

import math
import os
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from learner.types import Aggregation

TrainerPrecision = Literal["fp32", "bf16", "fp16"]
# How a micro-batch's rows may be laid out: padded, packed, or packed with a prompt once for several responses.
RowLayout = Literal["padded", "packed", "shared"]
Mode = Literal["fp32", "bf16", "fp16", "bf16-fp32head"]
# What a mode means for the trainer's and the engine's weights and arithmetic; bf16-fp32head is bf16 but for the LM head's product.
BODY: dict[Mode, TrainerPrecision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "bf16-fp32head": "bf16"}
Estimator = Literal["k1", "k2", "k3"]
# expanduser of os.path leaves the "~" of an unknown user, where Path's raises.
ModelPath = Annotated[str, AfterValidator(os.path.expanduser)]


class Settings(BaseModel):
    """Refuses unknown keys, values of another type, infinities and nan; instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class KindSettings(Settings):
    """Holds the settings of one of several kinds, which `kind` names."""

    kind: Any  # a Literal in every subclass; a type checker does not let a field of type str be narrowed to one


class EnvironmentSettings(Settings):
    """Names an environment of the catalog and the parameters it is loaded with."""

    name: str  # a built-in, or "module:Class"
    params: dict[str, Any] = Field(default={})


class ModelSettings(Settings):
    """Names the model that is trained."""

    path: ModelPath  # a Hugging Face folder or id
    attention: str = "sdpa"
    chat_template: bool = True  # false: the messages' text is joined as it is


class PrecisionSettings(Settings):
    """Switches trainer, LM head, log-softmax, engine and transfer at once. `precision: bf16` is short for {mode: bf16}.

    Log-softmax and entropy are float32 in every mode. Weights travel in the trainer's type.
    """

    mode: Mode = "fp32"
    allow_mixed: bool = False  # let learner.precision or generators.dtype be another than the mode's
    loss_scale_power: int = Field(default=16, ge=0, le=32)  # fp16: the dynamic loss scale starts at 2 to this


# --- section learner: one class for each reader, composed flat -----------------------------------------------------------------


# What a micro-batch costs beside its slots, in slots. On a CPU 13 to 16 ms at 0.17 ms a slot were measured, forward and backward,
# with the model of tests/benchmarks/learner.py, one thread and rows of 32 and 64 tokens; larger models have more of the second.
# On a GPU it is an estimate, not measured: some thirty layers whose kernels take 40 ms to launch, beside 40 us a slot of a model
# of 1.5 billion parameters.
CPU_OVERHEAD, GPU_OVERHEAD = 80, 1000


# The share of an update's tokens that computing prompts once has to save where learner.prefix_sharing leaves it open.
LEAST_SAVED = 0.2


class BatchPlan(Settings):
    """Divides a batch into updates, ranks and micro-batches. Of these `updates`, `mixed` and `epochs` alone change the training."""

    ranks: int = Field(default=1, ge=1, le=10_000)
    updates: int = Field(default=1, ge=1)  # optimiser steps per pass over the batch
    # Whether every update has responses of every prompt, as far as there are enough, or all responses of its share of the prompts.
    mixed: bool = True
    epochs: int = Field(default=1, ge=1)  # passes over the batch; each pass is `updates` steps
    micro_batch_tokens: int = Field(default=8192, ge=1)
    # Share of the responses on which the effect of an iteration's steps on entropy is predicted and measured; 0: neither.
    ledger_share: float = Field(default=0.125, ge=0, le=1)
    # Several trajectories one after the other in a row, instead of padded rows. None: where the model's attention needs no mask for
    # it, and the start's check finds that its layers see where a trajectory ends.
    packing: bool | None = None
    # In packed rows a prompt once for its responses of an update, as far as a micro-batch holds them. None: not on CUDA in half
    # precision, and elsewhere where the start's check finds it exact and it saves at least LEAST_SAVED of an update's tokens.
    prefix_sharing: bool | None = None
    gpus: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _shared_prompts_are_packed(self) -> Self:
        if self.prefix_sharing and self.packing is False:
            raise ValueError(
                "prefix_sharing is true and packing false: a prompt stands once for several responses in packed rows alone; leave "
                "packing out, or set prefix_sharing to false"
            )
        return self

    def slow(self) -> list[str]:
        """Returns a sentence for every setting here with which a CPU takes over 1.3 times as long as with the default."""
        said: list[str] = []
        if not self.gpus and self.micro_batch_tokens * 0.3 < self.overhead_slots:
            said.append(
                f"learner.micro_batch_tokens={self.micro_batch_tokens} is slow: a micro-batch costs as much as "
                f"{self.overhead_slots} token slots beside its own, and the default of 8,192 makes few of them"
            )
        # Of the responses followed 3 parts for a gradient and 1 for the entropies after it; of all 1 part to measure, 3 to train.
        if (share := self.ledger_share) > 0.46:
            more = 4 * (1 + share) / (4 * (1 + 0.125)) - 1
            said.append(
                f"learner.ledger_share={share:g} is slow: it takes about {more:.0%} more time to train than the default of 0.125"
            )
        return said

    @property
    def overhead_slots(self) -> int:
        """Returns how many more slots cost what another micro-batch costs: learner/microbatches/partition.py."""
        return GPU_OVERHEAD if self.gpus else CPU_OVERHEAD


class EngineSettings(Settings):
    """Holds what DeepSpeed and AdamW are built with, but for the learning rate, which has a schedule."""

    zero_stage: int = Field(default=0, ge=0, le=3)
    precision: TrainerPrecision | None = None  # None: what the section `precision` says
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, ge=0)  # global norm; 0: off
    # Of each of AdamW's two moments. With 8, by bitsandbytes (extra `eight-bit`), they take 2 bytes a parameter instead of 8, and
    # checkpoints hold them in float32 all the same.
    optimiser_bits: Literal[32, 8] = 32
    # Keeps masters and moments in host memory, where the step is then taken: 12 bytes a parameter and rank less on a GPU.
    offload_optimiser: bool = False

    @field_validator("betas", mode="before")
    @classmethod
    def _list_is_a_pair(cls, value: Any) -> Any:
        return tuple(cast("list[object]", value)) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.offload_optimiser and not self.zero_stage:
            raise ValueError(
                "offload_optimiser is true and zero_stage 0: DeepSpeed offloads what ZeRO divides, set zero_stage=1, 2 or 3, also "
                "with a single rank"
            )
        if self.offload_optimiser and self.optimiser_bits == 8:
            raise ValueError(
                "offload_optimiser is true and optimiser_bits 8: in host memory moments take nothing of a GPU in either size, and "
                "the step there would take longer; leave one of the two out"
            )
        return self


class LoraSettings(Settings):
    """Trains a low-rank adapter in the place of the model's weights, which stay as they are: see learner/adapters/.

    A number is short for {rank: NUMBER}.
    """

    rank: int = Field(default=32, ge=1, le=4096)
    alpha: float | None = Field(
        default=None, gt=0
    )  # what the adapter adds is multiplied by alpha / rank; None: twice the rank
    dropout: float = Field(
        default=0.0, ge=0, lt=1
    )  # of the adapter's inputs, in the passes that gradients are taken of
    # Names of linear layers, or the last part of them: [q_proj, v_proj]. all-linear: all but the head.
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    dora: bool = False  # a magnitude of its own for every output: DoRA

    @field_validator("targets", mode="before")
    @classmethod
    def _list_of_names(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and not value:
            raise ValueError("targets is empty: name linear layers, or leave it out for all of them")
        return tuple(cast("list[object]", value)) if isinstance(value, list) else cast(Any, value)

    @property
    def scaling(self) -> float:
        """Returns what the product of the adapter's two matrices is multiplied by."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


class ScheduleSettings(Settings):
    """Shapes the learning rate over optimiser steps: see learner/schedule.py."""

    lr: float = Field(gt=0)  # the peak
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    lr_floor: float = Field(default=0.1, ge=0, le=1)  # the fraction of `lr` that linear and cosine end at


class LearnerSettings(BatchPlan, EngineSettings, ScheduleSettings):
    """Composes the section `learner`: plan, engine and schedule, and the processes they run in."""

    lora: LoraSettings | None = None  # None: all weights are trained
    gradient_checkpointing: bool = False
    # Keeps the inputs of layers that gradient checkpointing leaves on the GPU in host memory until the backward pass needs them.
    offload_activations: bool = False
    # Mixtures of experts: times the load-balancing loss of their routers. Off unless asked for, whatever the model's configuration
    # has: routers that pretraining balanced are mostly left alone in RL.
    router_aux_coefficient: float = Field(default=0.0, ge=0)
    cpus: float = Field(default=1, gt=0)
    # torch threads of a rank on CPU; None: the CPUs of learner and generators together, which do not work at once
    threads: int | None = Field(default=None, ge=0)  # 0, as older runs have it, is None
    timeout_s: float = Field(default=600, gt=0)  # of a rank, with work and without progress
    restarts: int = Field(
        default=3, ge=0
    )  # times that a group which lost a rank is built anew from the last checkpoint

    @field_validator("lora", mode="before")
    @classmethod
    def _number_is_a_rank(cls, value: Any) -> Any:
        if isinstance(value, bool | str | float | list):
            raise ValueError("give its rank, as in learner.lora=32, or a mapping such as {rank: 32, alpha: 64}")
        return {"rank": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _offload_needs_checkpoints(self) -> Self:
        if self.offload_activations and not self.gradient_checkpointing:
            raise ValueError(
                "offload_activations is true and gradient_checkpointing false: what goes to host memory are the inputs of layers "
                "that gradient checkpointing keeps, set it to true as well"
            )
        return self


# --- section objective ------------------------------------------------------------------------------------------------------


class ImportanceSettings(KindSettings):
    """Corrects from the engine's log-probs to the trainer's, w = pi_old(trainer) / pi_old(engine), always detached.

    truncated  min(w, cap): TIS, "Your efficient RL framework secretly brings you off-policy RL training", Yao et al. 2025
    masked     w where floor <= w <= cap, else 0: MIS, "When speed kills stability", Liu et al. 2025; with a floor, IcePop
    level      "token", or "sequence": w is the product over the trajectory's tokens
    """

    kind: Literal["none", "truncated", "masked"] = "none"
    cap: float = Field(default=2.0, gt=0)
    floor: float = Field(default=0.0, ge=0)
    level: Literal["token", "sequence"] = "token"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.floor >= self.cap:
            raise ValueError(f"floor ({self.floor:g}) has to be under cap ({self.cap:g})")
        if self.floor and self.kind != "masked":
            raise ValueError(f"floor ({self.floor:g}) belongs to kind masked, not {self.kind}: leave it out")
        return self


class KLSettings(Settings):
    """Weighs the KL to the reference policy, which is the model the run started from."""

    coefficient: float = Field(default=0.0, ge=0)  # 0: no reference policy is held
    estimator: Estimator = "k3"


class CreditSettings(KindSettings):
    """Chooses between one advantage a trajectory and one a turn.

    turn: a token's advantage comes from the return from its turn on, the rewards of that turn's observation and of later ones and
    at the end the verdict's, compared with the group's at the same turn (learner/advantages.py:turn_baselines).
    """

    kind: Literal["trajectory", "turn"] = "trajectory"
    # Discount per turn; only with kind turn.
    discount: float = Field(default=1.0, gt=0, le=1)


# Advantages whose baseline is the batch's: they learn from groups of equal rewards too, and from one response a prompt.
BATCH_BASELINES = frozenset({"reinforce_pp"})

# The clip range (low, high) that each surrogate was published with: the ratio is held in [1 - low, 1 + high].
#   ppo    0.2 either way (arXiv 1707.06347, table 1)
#   gspo   3e-4 and 4e-4 of the sequence's ratio, which moves far less than a token's (arXiv 2507.18071, section 5.1)
#   cispo  no lower bound: a ratio is never below 1 - 1. MiniMax-M1 (arXiv 2506.13585, section 3.1) sets none and does not publish
#          its upper one; a ratio of at most 5 is what ScaleRL uses (arXiv 2510.13786) and TRL recommends for loss_type cispo
OWN_CLIP: dict[str, tuple[float, float]] = {
    "policy_gradient": (1.0, math.inf),  # has no ratio to clip
    "ppo": (0.2, 0.2),
    "gspo": (3e-4, 4e-4),
    "cispo": (1.0, 4.0),
}


class ObjectiveSettings(Settings):
    """Holds all settings of the loss: see learner/objective.py and learner/advantages.py."""

    advantage: Literal["grpo", "rloo", "loop", "dr_grpo", "reinforce_pp", "reinforce_pp_baseline"] = "grpo"
    surrogate: Literal["policy_gradient", "ppo", "cispo", "gspo"] = "ppo"
    aggregation: Aggregation = "token"
    # None: the surrogate's own, see OWN_CLIP. A clip_low of 1 bounds nothing.
    clip_low: float | None = Field(default=None, ge=0, le=1)
    clip_high: float | None = Field(default=None, ge=0)
    importance: ImportanceSettings = ImportanceSettings()
    kl: KLSettings = KLSettings()
    credit: CreditSettings = CreditSettings()

    @property
    def clip(self) -> tuple[float, float]:
        """Returns the clip range (low, high) in use: what was given, else the surrogate's own."""
        low, high = OWN_CLIP[self.surrogate]
        return low if self.clip_low is None else self.clip_low, high if self.clip_high is None else self.clip_high
