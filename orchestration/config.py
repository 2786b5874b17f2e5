"""RunConfig: everything a run is told. Strict, frozen, without torch, so that a mistake is answered in well under a second.

`load_config(recipe, overrides)` reads a YAML file (or the name of a recipe shipped in recipes/), applies `a.b=c` and
`--a.b c`, and validates. Every mistake becomes one ConfigError: a sentence with the numbers in it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from envs import catalog
from learner.entropy import base as entropy_base
from learner.entropy import build as entropy
from learner.entropy.target import TargetSettings
from orchestration.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"
TrainerPrecision = Literal["fp32", "bf16", "fp16"]
EngineDtype = Literal["float32", "bfloat16", "float16"]
DTYPE_OF: dict[TrainerPrecision, EngineDtype] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
Mode = Literal["fp32", "bf16", "fp16", "bf16-fp32head"]
# What a mode means for the trainer's and the engine's weights and arithmetic; bf16-fp32head is bf16 but for the LM head's product.
BODY: dict[Mode, TrainerPrecision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "bf16-fp32head": "bf16"}
SHORTHAND = {"precision": "mode"}  # sections that may be written as one value, and the key this value is


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RunSection(Section):
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dir: str = "runs"
    seed: int = Field(default=0, ge=0)
    iterations: int = Field(ge=1)
    sinks: list[Literal["jsonl", "console", "tensorboard"]] = ["jsonl", "console"]
    samples_per_iteration: int = Field(default=4, ge=0)  # replies kept in samples.jsonl


class ModelSection(Section):
    path: str  # a Hugging Face folder or id
    attention: str = "sdpa"
    chat_template: bool = True  # false: the messages' text is joined as it is

    @field_validator("path")
    @classmethod
    def _home(cls, value: str) -> str:
        return str(Path(value).expanduser()) if value.startswith("~") else value


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


class BatchSection(Section):
    prompts: int = Field(ge=1)  # per iteration
    replies: int = Field(ge=1)  # per prompt: the group


class SamplingSection(Section):
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(ge=1)  # of one reply
    max_turns: int = Field(default=8, ge=1)
    max_total_tokens: int | None = Field(default=None, ge=1)  # of all replies of a trajectory; None: no such limit
    # Of a trajectory, waiting included; looked at between its turns, so a reply under way is finished. What ends there
    # depends on the machine: a resumed run no longer equals one that was never stopped.
    max_seconds: float | None = Field(default=None, gt=0)


class GeneratorSection(Section):
    count: int = Field(default=1, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    dtype: EngineDtype | None = None  # None: what `precision` says
    max_model_len: int = Field(ge=2)
    max_num_seqs: int = Field(default=256, ge=1)
    kv_cache_mb: int | None = Field(default=None, ge=1)  # None on CUDA: gpu_memory_utilization decides
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    enforce_eager: bool = True
    prefix_caching: bool = True
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    timeout_s: float = Field(default=600, gt=0)  # of one batch of replies


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


class ObjectiveSection(Section):
    advantage: Literal["grpo", "rloo", "loop", "dr_grpo", "reinforce_pp", "reinforce_pp_baseline"] = "grpo"
    surrogate: Literal["policy_gradient", "ppo", "cispo", "gspo"] = "ppo"
    aggregation: Literal["token", "sequence", "constant"] = "token"
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    clip_high: float = Field(default=0.2, ge=0)
    importance: ImportanceSection = ImportanceSection()
    kl: KLSection = KLSection()


class EntropySection(Section):
    method: SerializeAsAny[entropy_base.Settings] = Field(
        default_factory=lambda: entropy.parse(entropy.METHODS, {"kind": "none"}, "method")
    )
    controller: SerializeAsAny[entropy_base.Settings] = Field(
        default_factory=lambda: entropy.parse(entropy.CONTROLLERS, {"kind": "fixed"}, "controller")
    )
    target: TargetSettings = TargetSettings()
    environments: dict[str, TargetSettings] = {}  # targets of their own, by the name an environment's metrics go by

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
            raise ValueError(f"entropy.method is none, which has no knob to steer: leave {what} out or choose a method")
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
    probe_replies: int = Field(default=4, ge=1)


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


class RunConfig(Section):
    run: RunSection
    model: ModelSection
    precision: PrecisionSection = PrecisionSection()
    environments: list[EnvironmentSection] = Field(min_length=1)
    batch: BatchSection
    sampling: SamplingSection
    generators: GeneratorSection
    verifiers: VerifierSection = VerifierSection()
    learner: LearnerSection
    objective: ObjectiveSection = ObjectiveSection()
    entropy: EntropySection = Field(default_factory=EntropySection)
    weights: WeightsSection = WeightsSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    cluster: ClusterSection = ClusterSection()

    @field_validator("precision", mode="before")
    @classmethod
    def _mode_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"mode": value}
        if not isinstance(value, dict | PrecisionSection):
            raise ValueError(f"{value!r} is neither a mode, one of {', '.join(BODY)}, nor a section {{mode: ...}}")
        return value

    @model_validator(mode="after")
    def _divides(self) -> Self:
        replies = self.batch.prompts * self.batch.replies
        if replies % self.learner.updates:
            raise ValueError(
                f"a batch of {self.batch.prompts} prompts x {self.batch.replies} replies = {replies} trajectories cannot be "
                f"divided into learner.updates = {self.learner.updates} equal updates: change one of the three"
            )
        if replies // self.learner.updates < self.learner.ranks:
            raise ValueError(
                f"an update of {replies // self.learner.updates} trajectories cannot be divided over learner.ranks = "
                f"{self.learner.ranks}: make the batch larger, or the updates or ranks fewer"
            )
        if (replies // self.learner.updates) % self.learner.ranks:
            raise ValueError(
                f"an update of {replies // self.learner.updates} trajectories cannot be divided evenly over learner.ranks = "
                f"{self.learner.ranks}: change batch.prompts ({self.batch.prompts}), batch.replies ({self.batch.replies}), "
                f"learner.updates ({self.learner.updates}) or learner.ranks"
            )
        if self.batch.replies < 2:
            raise ValueError(
                f"a group baseline compares replies of one prompt: batch.replies is {self.batch.replies}, give 2 or more"
            )
        if self.sampling.max_tokens >= self.generators.max_model_len:
            raise ValueError(
                f"sampling.max_tokens ({self.sampling.max_tokens}) leaves no room for a prompt in generators.max_model_len "
                f"({self.generators.max_model_len})"
            )
        if self.sampling.max_total_tokens is not None and self.sampling.max_total_tokens < self.sampling.max_tokens:
            raise ValueError(
                f"sampling.max_total_tokens ({self.sampling.max_total_tokens}) is for all replies of a trajectory and "
                f"sampling.max_tokens ({self.sampling.max_tokens}) for one of them: give the first at least the second"
            )
        return self

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        o, steps = self.objective, self.learner.updates * self.learner.epochs
        if o.advantage == "loop" and o.surrogate != "ppo":
            raise ValueError(
                "objective.advantage loop is a leave-one-out baseline with PPO's clip: use surrogate ppo, or advantage rloo"
            )
        if o.surrogate == "policy_gradient" and steps > 1:
            raise ValueError(
                f"objective.surrogate policy_gradient is on-policy and learner.updates x epochs = {steps} steps are taken on one "
                "batch: all but the first would be off-policy without a correction; set both to 1, or use surrogate ppo"
            )
        if o.surrogate == "gspo" and o.aggregation != "sequence":
            raise ValueError(
                f"objective.surrogate gspo clips a reply as a whole and aggregation is {o.aggregation}, which weighs replies by "
                "their length: use aggregation sequence"
            )
        needs = entropy.METHODS[self.entropy.kind].surrogates
        if needs is not None and o.surrogate not in needs:
            raise ValueError(
                f"entropy.method {self.entropy.kind} acts on the clip range, which surrogate {o.surrogate} "
                f"does not have: use surrogate {', '.join(sorted(needs))}"
            )
        if self.entropy.kind == "kl_cov" and steps == 1:
            raise ValueError(
                "entropy.method kl_cov is a penalty towards the policy at the start of the iteration, which the only step of "
                "learner.updates x epochs = 1 starts from: it would do nothing; take several updates a batch"
            )
        for section, gpus in (("generators", self.generators.gpus), ("learner", self.learner.gpus)):
            if gpus not in (0, 1):
                raise ValueError(
                    f"{section}.gpus is {gpus:g}: a learner rank, and each of generators.tensor_parallel shards of a "
                    "generator, has a GPU of its own or none: give 1 or 0"
                )
        if self.generators.gpus != self.learner.gpus:
            raise ValueError(
                f"generators.gpus is {self.generators.gpus:g} and learner.gpus {self.learner.gpus:g}: weights travel between "
                "them over NCCL from GPU to GPU or over gloo from CPU to CPU: give both 1 or both 0"
            )
        return self

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        switch, body = self.precision, BODY[self.precision.mode]
        pairs = (
            ("learner.precision", self.learner.precision, body),
            ("generators.dtype", self.generators.dtype, DTYPE_OF[body]),
        )
        for key, given, meant in pairs:
            if given not in (None, meant) and not switch.allow_mixed:
                raise ValueError(
                    f"{key} is {given} where precision {switch.mode} means {meant}: entropy and ratios would be measured in "
                    f"two precisions; leave {key} out and set precision, or allow it with precision.allow_mixed=true"
                )
        return self

    @property
    def trainer_precision(self) -> TrainerPrecision:
        """Of the trainer's weights and arithmetic; its optimiser always has float32 masters."""
        return self.learner.precision or BODY[self.precision.mode]

    @property
    def engine_dtype(self) -> EngineDtype:
        return self.generators.dtype or DTYPE_OF[BODY[self.precision.mode]]

    @property
    def fp32_head(self) -> bool:
        """Trainer and engine take the product of hidden state and LM head in float32."""
        return self.precision.mode == "bf16-fp32head"

    @property
    def exact(self) -> bool:
        """Trainer and engine both compute in float32: their log-probs may differ by rounding alone."""
        return (self.trainer_precision, self.engine_dtype) == ("fp32", "float32")

    @property
    def folder(self) -> Path:
        return Path(self.run.dir) / self.run.name

    @property
    def total_steps(self) -> int:
        return self.run.iterations * self.learner.updates * self.learner.epochs

    def to_yaml(self) -> str:
        """What load_config reads back as an equal config."""
        data = self.model_dump(mode="json")
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        if yaml.load(text, _Loader) == data:
            return text
        return yaml.dump(data, Dumper=_Dumper, sort_keys=False)  # escaped: YAML reads some characters as line breaks


# --- reading ------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text, for want of a dot and of a sign; here it is a number."""


class _Dumper(yaml.SafeDumper):
    """Quotes the text "1e4", which _Loader would read as a number."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def recipe_names() -> list[str]:
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def find_recipe(recipe: str) -> Path:
    """A path to a YAML file, or the name of a shipped recipe. Raises ConfigError naming the nearest."""
    for path in (Path(recipe), RECIPES / f"{recipe}.yaml"):
        if path.is_file():
            return path
    near = difflib.get_close_matches(recipe, recipe_names(), n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(
        f"no recipe file '{recipe}' and no shipped recipe of that name: {hint}shipped: {', '.join(recipe_names())}"
    )


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Raises ConfigError, one sentence."""
    return configure(recipe, parse_overrides(overrides))


def configure(recipe: str, pairs: Sequence[tuple[str, Any]]) -> RunConfig:
    """A recipe with values at dotted keys. Raises ConfigError, one sentence."""
    data = read_yaml(find_recipe(recipe))
    for key, value in pairs:
        _put(data, key, value)
    return validate(data)


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises ConfigError where the file is not a mapping."""
    try:
        data = yaml.load(path.read_text("utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} has to be a mapping of sections, not {type(data).__name__}")
    return data


def validate(data: Mapping[str, Any]) -> RunConfig:
    """Raises ConfigError, one sentence."""
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(sentence(error, data)) from None


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """`a.b=c`, `--a.b=c` and `--a.b c`; values are YAML. Raises ConfigError."""
    pairs: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--") or not rest:
                raise ConfigError(f"'{word}' is not an override: write {key}=VALUE or --{key} VALUE")
            text = rest.pop(0)
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            value = text
        pairs.append((key, value))
    return pairs


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    """data[a][b] = value for key a.b; a number indexes a list. Unknown keys are left to validation, which names the nearest.

    A section with a shorthand is one whichever way it is written: `precision=bf16` sets precision.mode and leaves the rest.
    """
    at: Any = data
    parts = key.split(".")
    if inner := SHORTHAND.get(parts[0]):
        if isinstance(data.get(parts[0]), str):
            data[parts[0]] = {inner: data[parts[0]]}
        if len(parts) == 1 and isinstance(value, str):
            parts.append(inner)
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                raise ConfigError(f"override {key}: '{part}' is not an index into a list of {len(at)}")
            index: Any = int(part)
        elif isinstance(at, dict):
            index = part
            if not last:
                at.setdefault(part, {})
        else:
            raise ConfigError(f"override {key}: {'.'.join(parts[:i])} is a value, not a section")
        if last:
            at[index] = value
        at = at[index]


def sentence(error: ValidationError, data: Mapping[str, Any], model: type[BaseModel] = RunConfig) -> str:
    """The first of pydantic's errors about `data`, meant for `model`, as one sentence, and how many more there are."""
    first = error.errors()[0]
    where = ".".join(str(x) for x in first["loc"])
    if first["type"] == "extra_forbidden":
        text = _unknown(first["loc"], data, model)
    elif first["type"] == "missing":
        text = f"{where} is missing: give it in the recipe or as {where}=VALUE"
    elif first["type"] == "value_error":
        cause = first.get("ctx", {}).get("error")
        text = f"{where}: {cause}" if where else str(cause)
    else:
        text = f"{where} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    more = error.error_count() - 1
    return text + (f" (and {more} more)" if more else "")


def _unknown(location: tuple[int | str, ...], data: Any, model: Any) -> str:
    """Walk the models to the place of an unknown key and name its nearest neighbour."""
    for part in location[:-1]:
        data = data[part]
        if isinstance(part, int):
            continue
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            break
        annotation = fields[part].annotation
        model = next(
            (a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)),
            annotation,
        )
    if model is entropy_base.Settings:  # which settings they are, the kind says
        model = (entropy.METHODS if location[-2] == "method" else entropy.CONTROLLERS)[data["kind"]].Settings
    key, known = str(location[-1]), list(getattr(model, "model_fields", {}))
    return f"unknown key {'.'.join(map(str, location))}{_nearest(key, known)}"


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f": did you mean '{near[0]}'?" if near else f": known there: {', '.join(known)}"


def check_world(config: RunConfig) -> None:
    """What only the disk and the catalog know: model folder, environments. Raises ConfigError; writes nothing."""
    check_model(config.model.path)
    for i, env in enumerate(config.environments):
        try:
            catalog.load(env.name, env.params, seed=config.run.seed)
        except (ValueError, OSError) as error:
            raise ConfigError(f"environments.{i} ({env.name}): {error}") from None


def check_model(model: str) -> None:
    """Raises ConfigError for what can only be a folder and is none with a model in it; a Hugging Face id passes."""
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith((".", "~")) or path.parts[:1] in (("models",), ("runs",))
    local = path.exists() or looks_local or model.count("/") > 1
    if local and not (path / "config.json").is_file():
        state = "has no config.json" if path.is_dir() else "does not exist"
        raise ConfigError(
            f"the model folder {path} {state}: give a Hugging Face folder, or make one with `isentrope init-model`"
        )
