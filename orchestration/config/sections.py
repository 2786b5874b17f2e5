"""Declares the sections of a RunConfig that concern the run itself, with the rules about each section alone. Without torch.

The other sections are declared beside their readers: learner/settings.py, learner/entropy/settings.py,
learner/diversity/settings.py, actors/settings.py.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from envs.quoting import quoted
from envs.suggest import nearest
from learner.entropy.base import AtBoundary
from learner.settings import EnvironmentSettings, KindSettings, Settings
from learner.types import SignalOf

# What a stage may set anew, whole or in part: what can change between two iterations on actors that go on.
STAGE_KEYS = ("objective", "learner.lr", "entropy.target", "sampling")


class RunSection(Settings):
    """Names the run and says how long it is and what it leaves."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dir: str = "runs"
    seed: int = Field(default=0, ge=0)
    # Needed unless there are stages: then it caps the run, and left out it is the sum of theirs.
    iterations: int | None = Field(default=None, ge=1)
    sinks: list[Literal["jsonl", "console", "tensorboard", "prometheus", "wandb", "mlflow"]] = Field(
        default=["jsonl", "console"]
    )
    samples_per_iteration: int = Field(default=4, ge=0)  # responses kept in samples.jsonl
    sample_tokens: bool = False  # with prompt index, token ids, log-probs and policy versions
    trace: bool = False  # every stage of every actor into trace.json


class EnvironmentSection(EnvironmentSettings):
    """Gives one environment its weight in the mixture, and says how many of its prompts are trained on."""

    weight: float = Field(default=1.0, gt=0)
    train_prompts: int | None = Field(
        default=None, ge=1
    )  # the first so many of the training split; left out: all of it

    @property
    def key(self) -> tuple[str, dict[str, Any], int | None]:
        """Returns what tells two environments of a run's stages apart: everything but the weight."""
        return self.name, self.params, self.train_prompts


class AdvanceSection(Settings):
    """Ends a stage before its iterations are used up. Rewards are the mean training reward of an iteration."""

    reward: float | None = None  # the mean over the last `window` iterations has reached this
    # The mean over the last `window` iterations is not more than this above that over the `window` before them.
    plateau: float | None = Field(default=None, ge=0)
    window: int = Field(default=5, ge=1)

    @property
    def rewards(self) -> int:
        """Returns how many iterations of the stage the rule looks at."""
        return self.window if self.plateau is None else 2 * self.window

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.reward is None) == (self.plateau is None):
            raise ValueError("a stage advances by reward or by plateau: give one of the two")
        return self


class StageSection(Settings):
    """Trains on environments of its own after the stage before, with overrides from the stage's first iteration on.

    Overrides are of the run's own settings, not of the stage's before. controller: "keep" lets coefficient, integral and the
    target's anchor go on; "reset" starts all of it anew; "reanchor" keeps the coefficient and measures the target's start
    again, which is then the new environments' own. With the latter two, a target's schedule and release count from the stage's
    start."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    environments: list[EnvironmentSection] = Field(min_length=1)
    iterations: int = Field(ge=1)  # with an advance rule: at most
    advance: AdvanceSection | None = None
    # Dotted keys, as on the command line: {learner.lr: 1e-4, objective.clip_high: 0.28}.
    overrides: dict[str, Any] = Field(default={})
    controller: AtBoundary = "keep"
    optimiser: Literal["keep", "reset"] = "keep"

    @field_validator("overrides")
    @classmethod
    def _may_change(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if not any(key == known or key.startswith(f"{known}.") for known in STAGE_KEYS):
                near = nearest(key, STAGE_KEYS, cutoff=0.6)
                hint = f"did you mean '{near}'? " if near else ""
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


class DynamicSection(KindSettings):
    """Chooses what is done with groups whose scored responses do not differ: dynamic sampling (DAPO, arXiv 2503.14476, sec. 3.2).

    none    they are in the update: with advantage 0, but counted in what the loss is divided by and in REPO, a bonus or a KL
    filter  they are not; the update's size and statistics are those of the others. Fewer groups are fewer updates, not smaller
            ones, but where less than one update's worth is left
    refill  nor are they, and others are generated until batch.prompts groups are informative or max_rounds is reached

    What they have to differ in is `by`: their rewards, and with `verdict` also what the environment alone gave them, with `correct`
    also whether they are right (DAPO's accuracy). Terms that shape the reward, such as a length, differ between responses that
    are all right or all wrong, so that by rewards no group would ever be dropped. A verdict keeps partial credit.

    What filtering does to entropy: groups that are all right are mostly those the policy is sure of. Entropy measured without
    them would lie above the policy's own and move with the share that was dropped, and a controller would react to a change
    that the policy did not make. So entropy, target and controller are of EVERY response generated, as are rewards; only what
    control does to the loss is done on the groups trained on, to which predicted changes belong. An iteration that drops all
    groups is measured and changes no weight; the controller's coefficient waits for an update it can act on. In a mixture the
    environments' weights are of prompts generated."""

    kind: Literal["none", "filter", "refill"] = "none"
    by: SignalOf | None = None  # None: verdict where the reward has terms beside a verdict, else reward
    # Of refill, the first included; a round asks for as many groups as are missing.
    max_rounds: int = Field(default=4, ge=1)


class AdaptiveSection(Settings):
    """Brings prompts back that are solved sometimes (adaptive difficulty, sampling/prompt_pool.py). `adaptive: {}` turns it on.

    A prompt of an environment is with probability `revisit` one that was tried before, chosen by how often it was solved, and
    otherwise the next new one, as without. Weights between environments stay as they are. Training rewards are then of chosen
    prompts and say less of the policy than evaluations do, which are not touched.
    """

    revisit: float = Field(default=0.5, gt=0, lt=1)
    pool: int = Field(default=512, ge=1)  # prompts of an environment that are remembered
    floor: float = Field(default=0.02, ge=0)  # added to p(1 - p), which is 1/4 at most
    decay: float = Field(default=0.95, gt=0, le=1)  # of what is known of a prompt, by the iteration


class BatchSection(Settings):
    """Sizes an iteration's batch and chooses its prompts."""

    prompts: int = Field(ge=1)  # per iteration
    responses: int = Field(ge=1)  # per prompt: the group
    # Versions that a trained token's policy may be older than the one that is trained. 0: generators wait while the learner trains;
    # 1 or more: they work on later batches meanwhile, and the loss corrects for the older policy (objective.importance).
    staleness: int = Field(default=0, ge=0, le=100)
    # Batches that generators work ahead, none with staleness 0. What staleness is above it, slow groups may be passed by.
    ahead: int = Field(default=1, ge=1, le=100)

    @model_validator(mode="after")
    def _ahead_within_the_bound(self) -> Self:
        if self.staleness and self.ahead > self.staleness:
            raise ValueError(
                f"generators that work {self.ahead} batches ahead give responses {self.ahead} versions old, and staleness is "
                f"{self.staleness}: raise staleness or lower ahead"
            )
        return self

    dynamic: DynamicSection = DynamicSection()
    adaptive: AdaptiveSection | None = None  # None: every prompt is a new one, or the next of a finite split


class WeightsSection(Settings):
    """Bounds the transfer of weights and the check that engine and trainer run the same policy."""

    bucket_mb: int = Field(default=64, ge=1)
    shared_memory: bool = True
    timeout_s: float = Field(default=120, gt=0)
    # Nats, each engine against the trainer. fp32: of any token, 1e-3 unless set. bf16 and fp16: of the engine's mean over tokens,
    # unless set 0.2 of prompts at the start and 0.1 on the probe after an update, since rounding alone moves single tokens by more
    # than any limit that would find other weights.
    max_logprob_gap: float | None = Field(default=None, gt=0)
    probe_responses: int = Field(default=4, ge=1)  # after an update; the start takes as many prompts, 16 at least


class EvaluationSection(Settings):
    """Says when and how thoroughly held-out prompts are evaluated."""

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


class CheckpointSection(Settings):
    """Says how often checkpoints are written, beside those at the end of the run and of its stages, and how many are kept."""

    every: int = Field(default=0, ge=0)  # iterations; 0: not by their number
    minutes: float = Field(default=10, ge=0)  # after the iteration in which so many have passed; 0: not by time
    keep: int = Field(default=2, ge=1)


class ClusterSection(Settings):
    """Names the Ray cluster of the run."""

    address: str | None = None  # None: RAY_ADDRESS if set, else a cluster of this process's own
    num_cpus: int | None = Field(default=None, ge=1)  # of an own cluster; None: what the machine has
    # Kind of actor -> custom resource of the nodes that it is placed on, as `ray start --resources` gives it to them.
    node_resources: dict[Literal["learner", "generators", "verifiers"], str] = Field(default={})
    start_timeout_s: float = Field(default=300, gt=0)
    silent_s: float = Field(default=30, gt=0)  # an actor that gives no sign of life for so long is replaced

    @field_validator("node_resources")
    @classmethod
    def _custom(cls, resources: dict[str, str]) -> dict[str, str]:
        for kind, name in resources.items():
            if not name.isidentifier() or name in ("CPU", "GPU", "memory", "object_store_memory"):
                raise ValueError(
                    f"{kind} is {quoted(name)}: name a resource of your own, of letters, digits and _, that "
                    "`ray start --resources` gives to the nodes of this kind"
                )
        return resources
