"""The sections of a RunConfig: one strict, frozen model each, with what can be said of it alone. Without torch."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from learner.entropy import base as entropy_base
from learner.entropy import build as entropy
from learner.entropy.target import TargetSettings

TrainerPrecision = Literal["fp32", "bf16", "fp16"]
EngineDtype = Literal["float32", "bfloat16", "float16"]
DTYPE_OF: dict[TrainerPrecision, EngineDtype] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
Mode = Literal["fp32", "bf16", "fp16", "bf16-fp32head"]
# What a mode means for the trainer's and the engine's weights and arithmetic; bf16-fp32head is bf16 but for the LM head's product.
BODY: dict[Mode, TrainerPrecision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "bf16-fp32head": "bf16"}


# What a stage may set anew, whole or in part: what can change between two iterations on actors that go on.
STAGE_KEYS = ("objective", "learner.lr", "entropy.target", "sampling")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RunSection(Section):
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dir: str = "runs"
    seed: int = Field(default=0, ge=0)
    # Needed unless there are stages: then it caps the run, and left out it is the sum of theirs.
    iterations: int | None = Field(default=None, ge=1)
    sinks: list[Literal["jsonl", "console", "tensorboard"]] = ["jsonl", "console"]
    samples_per_iteration: int = Field(default=4, ge=0)  # responses kept in samples.jsonl


ModelPath = Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser()) if path.startswith("~") else path)]


class ModelSection(Section):
    path: ModelPath  # a Hugging Face folder or id
    attention: str = "sdpa"
    chat_template: bool = True  # false: the messages' text is joined as it is


class PrecisionSection(Section):
    """One switch for trainer, LM head, log-softmax, engine and transfer. `precision: bf16` is short for {mode: bf16}.

    Log-softmax and entropy are float32 in every mode. Weights travel in the trainer's type.
    """

    mode: Mode = "fp32"
    allow_mixed: bool = False  # let learner.precision or generators.dtype be another than the mode's
    loss_scale_power: int = Field(default=16, ge=0, le=32)  # fp16: the dynamic loss scale starts at 2 to this


class EnvironmentSection(Section):
    name: str  # a built-in, or "module:Class"
    params: dict[str, Any] = {}
    weight: float = Field(default=1.0, gt=0)


class AdvanceSection(Section):
    """What ends a stage before its iterations are used up. Rewards are the mean training reward of an iteration."""

    reward: float | None = None  # the mean over the last `window` iterations has reached this
    # The mean over the last `window` iterations is not more than this above that over the `window` before them.
    plateau: float | None = Field(default=None, ge=0)
    window: int = Field(default=5, ge=1)

    @property
    def rewards(self) -> int:
        """How many iterations of the stage the rule looks at."""
        return self.window if self.plateau is None else 2 * self.window

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.reward is None) == (self.plateau is None):
            raise ValueError("a stage advances by reward or by plateau: give one of the two")
        return self


class StageSection(Section):
    """Environments that are trained one after the other's, and what is otherwise from the stage's first iteration on.

    Overrides are of the run's own settings, not of the stage's before. controller: "keep" lets coefficient, integral and the
    target's anchor go on; "reset" starts all of it anew; "reanchor" keeps the coefficient and measures the target's start
    again, which is then the new environments' own. With the latter two, a target's schedule and release count from the stage's
    start."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    environments: list[EnvironmentSection] = Field(min_length=1)
    iterations: int = Field(ge=1)  # with an advance rule: at most
    advance: AdvanceSection | None = None
    overrides: dict[str, Any] = {}  # dotted keys, as on the command line: {learner.lr: 1e-4, objective.clip_high: 0.28}
    controller: Literal["keep", "reset", "reanchor"] = "keep"
    optimiser: Literal["keep", "reset"] = "keep"

    @field_validator("overrides")
    @classmethod
    def _may_change(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if not any(key == known or key.startswith(f"{known}.") for known in STAGE_KEYS):
                near = difflib.get_close_matches(key, STAGE_KEYS, n=1, cutoff=0.6)
                hint = f"did you mean '{near[0]}'? " if near else ""
                raise ValueError(f"a stage cannot change {key}: {hint}what it can is {', '.join(STAGE_KEYS)}")
        return value

    @model_validator(mode="after")
    def _can_advance(self) -> Self:
        if self.advance is not None and self.advance.rewards > self.iterations:
            raise ValueError(
                f"the advance rule looks at {self.advance.rewards} iterations and the stage has {self.iterations} at most: it "
                "would never end it; make the window smaller or the iterations more"
            )
        return self


class DynamicSection(Section):
    """Dynamic sampling (DAPO, arXiv 2503.14476, sec. 3.2): what is done with groups whose scored responses all have one reward.

    none    they are in the update: without advantages, but in what a loss is divided by, and in what REPO-D, a bonus or a KL do
    filter  they are not; the update's size and statistics are those of the others. Fewer groups are fewer updates, not smaller
            ones, but where less than one update's worth is left
    refill  nor are they, and others are generated until batch.prompts groups are informative or max_rounds is reached

    What filtering does to entropy: groups that are all right are mostly those the policy is sure of. Entropy measured without
    them would lie above the policy's own and move with the share that was dropped, and a controller would take that for news.
    So entropy, target and controller are of EVERY response generated, as are rewards; only what control does to the loss is
    done on the groups trained on, to which predicted changes belong. An iteration that drops all groups is measured and changes
    no weight; the controller's coefficient waits for an update it can act on. In a mixture the environments' weights are of
    prompts generated."""

    kind: Literal["none", "filter", "refill"] = "none"
    max_rounds: int = Field(
        default=4, ge=1
    )  # of refill, the first included; a round asks for as many groups as are missing


class AdaptiveSection(Section):
    """Adaptive difficulty: prompts that are solved sometimes come again (sampling/prompt_pool.py). `adaptive: {}` turns it on.

    A prompt of an environment is with probability `revisit` one that was tried before, chosen by how often it was solved, and
    otherwise the next new one, as without. Weights between environments stay as they are. Training rewards are then of chosen
    prompts and say less of the policy than evaluations do, which are not touched.
    """

    revisit: float = Field(default=0.5, gt=0, lt=1)
    pool: int = Field(default=512, ge=1)  # prompts of an environment that are remembered
    floor: float = Field(default=0.02, ge=0)  # added to p(1 - p), which is 1/4 at most
    decay: float = Field(default=0.95, gt=0, le=1)  # of what is known of a prompt, by the iteration


class BatchSection(Section):
    prompts: int = Field(ge=1)  # per iteration
    responses: int = Field(ge=1)  # per prompt: the group
    dynamic: DynamicSection = DynamicSection()
    adaptive: AdaptiveSection | None = None  # None: every prompt is a new one, or the next of a finite split


class SamplingSection(Section):
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(ge=1)  # of one response
    max_turns: int = Field(default=8, ge=1)
    max_total_tokens: int | None = Field(default=None, ge=1)  # of all responses of a trajectory; None: no such limit
    # Of a trajectory, waiting included; looked at between its turns, so a response under way is finished. What ends there
    # depends on the machine: a resumed run no longer equals one that was never stopped.
    max_seconds: float | None = Field(default=None, gt=0)


class GeneratorSection(Section):
    count: int = Field(default=1, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    dtype: EngineDtype | None = None  # None: what `precision` says
    max_model_len: int = Field(ge=2)
    max_num_seqs: int = Field(default=256, ge=1)
    kv_cache_mb: int | None = Field(default=None, ge=1)  # None on CUDA: gpu_memory_utilization decides
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1
    )  # of the GPU; None: 0.85 of the share in `gpus`
    enforce_eager: bool = True
    prefix_caching: bool = True
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)  # 1, 0, or a share of a GPU that others have the rest of
    timeout_s: float = Field(default=600, gt=0)  # of one batch of responses


class VerifierSection(Section):
    count: int = Field(default=1, ge=1)
    cpus: float = Field(default=0.1, ge=0)
    timeout_s: float = Field(default=10, gt=0)  # of one verdict


class LearnerSection(Section):
    ranks: int = Field(default=1, ge=1)
    zero_stage: int = Field(default=0, ge=0, le=3)
    precision: TrainerPrecision | None = None  # None: what `precision` says
    lr: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    lr_floor: float = Field(default=0.1, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, ge=0)
    updates: int = Field(default=1, ge=1)  # optimiser steps per pass over the batch
    epochs: int = Field(default=1, ge=1)
    micro_batch_tokens: int = Field(default=8192, ge=1)
    packing: bool = False
    gradient_checkpointing: bool = False
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0)
    timeout_s: float = Field(default=1800, gt=0)

    @field_validator("betas", mode="before")
    @classmethod
    def _list_is_a_pair(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class ImportanceSection(Section):
    """Correction from the engine's log-probs to the trainer's: see learner/objective.py."""

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


class KLSection(Section):
    """KL to the reference policy, which is the model the run started from."""

    coefficient: float = Field(default=0.0, ge=0)  # 0: no reference policy is held
    estimator: Literal["k1", "k2", "k3"] = "k3"


class CreditSection(Section):
    """What a token's advantage is about: the whole trajectory's reward, or what its turn and those after it earn (learner/
    advantages.py:turn_baselines): the observations' rewards, where the environment gives any, and at the end the verdict's."""

    kind: Literal["trajectory", "turn"] = "trajectory"
    discount: float = Field(
        default=1.0, gt=0, le=1
    )  # of what a turn earns, for every turn it comes later; of kind turn


class ObjectiveSection(Section):
    advantage: Literal["grpo", "rloo", "loop", "dr_grpo", "reinforce_pp", "reinforce_pp_baseline"] = "grpo"
    surrogate: Literal["policy_gradient", "ppo", "cispo", "gspo"] = "ppo"
    aggregation: Literal["token", "sequence", "constant"] = "token"
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    clip_high: float = Field(default=0.2, ge=0)
    importance: ImportanceSection = ImportanceSection()
    kl: KLSection = KLSection()
    credit: CreditSection = CreditSection()


# What holds entropy where a recipe names no method. Chosen by measurement: see "The entropy grid" in tests/benchmarks/RESULTS.md.
HELD: dict[str, Any] = {"method": {"kind": "repo_d"}, "controller": {"kind": "isentropic"}, "target": {"fraction": 0.7}}


class EntropySection(Section):
    """Without a method, entropy is held by `HELD`; `method: {kind: none}` lets it go where it goes. A target that is given is
    taken whole: without nats and fraction it is the run's own start, as everywhere. A method that is named without a controller
    has the fixed one."""

    method: SerializeAsAny[entropy_base.Settings]
    controller: SerializeAsAny[entropy_base.Settings]
    target: TargetSettings = TargetSettings()
    environments: dict[str, TargetSettings] = {}  # targets of their own, by the name an environment's metrics go by

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**HELD, **data} if "method" not in data else {"controller": {"kind": "fixed"}, **data}

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> Any:
        return entropy.parse(entropy.METHODS, value, "method")

    @field_validator("controller", mode="before")
    @classmethod
    def _controller(cls, value: Any) -> Any:
        return entropy.parse(entropy.CONTROLLERS, value, "controller")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.kind == "none" and (
            self.environments or not isinstance(self.controller, entropy.CONTROLLERS["fixed"].Settings)
        ):
            what = "entropy.environments" if self.environments else "entropy.controller"
            raise ValueError(
                f"entropy.method is none, which has no coefficient to steer: leave {what} out or choose a method"
            )
        entropy.build(self.method, self.controller, self.target, self.environments)
        return self

    @property
    def kind(self) -> str:
        return getattr(self.method, "kind")  # noqa: B009 - every method's Settings has one


class WeightsSection(Section):
    bucket_mb: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=120, gt=0)
    # Nats, engine against trainer on the probe. fp32: of any token, 1e-3 unless set. bf16 and fp16: of the mean over tokens,
    # 0.05 unless set, since rounding alone moves single tokens by more than any limit that would find other weights.
    max_logprob_gap: float | None = Field(default=None, gt=0)
    probe_responses: int = Field(default=4, ge=1)


class EvaluationSection(Section):
    every: int = Field(default=0, ge=0)  # iterations; 0: only at the start and the end
    start: bool = True  # before the first iteration; a laboratory's arms share their start, so one of them may do
    prompts: int = Field(default=64, ge=0)  # per environment; 0: no evaluation at all
    samples: int = Field(default=16, ge=1)
    temperatures: list[float] = Field(default=[1.0], min_length=1)
    ks: list[int] = Field(default=[1, 16], min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if max(self.ks) > self.samples:
            raise ValueError(
                f"pass@{max(self.ks)} needs at least {max(self.ks)} samples and evaluation.samples is {self.samples}"
            )
        if min(self.ks) < 1 or min(self.temperatures) < 0:
            raise ValueError("evaluation.ks start at 1 and evaluation.temperatures at 0")
        return self


class CheckpointSection(Section):
    every: int = Field(default=0, ge=0)  # iterations; 0: only at the end
    keep: int = Field(default=2, ge=1)


class ClusterSection(Section):
    address: str | None = None  # None: RAY_ADDRESS if set, else a cluster of this process's own
    num_cpus: int | None = Field(default=None, ge=1)  # of an own cluster; None: what the machine has
    start_timeout_s: float = Field(default=300, gt=0)
