"""RunConfig: everything a run is told. Strict, frozen, without torch, so that a mistake is answered in well under a second.

`load_config(recipe, overrides)` reads a YAML file (or the name of a recipe shipped in recipes/), applies `a.b=c` and
`--a.b c`, and validates. Every mistake becomes one ConfigError: a sentence with the numbers in it. Its sections are in
sections.py, how it is read in reading.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from envs import catalog
from learner.entropy import build as entropy
from orchestration.config.loader import parse_overrides, put, read_yaml, sentence, write_yaml
from orchestration.config.reward_sections import JudgeGeneratorSection, RewardsSection
from orchestration.config.sections import (
    BODY,
    DTYPE_OF,
    BatchSection,
    CheckpointSection,
    ClusterSection,
    EngineDtype,
    EntropySection,
    EnvironmentSection,
    EvaluationSection,
    GeneratorSection,
    LearnerSection,
    ModelSection,
    ObjectiveSection,
    PrecisionSection,
    RunSection,
    SamplingSection,
    Section,
    StageSection,
    TrainerPrecision,
    VerifierSection,
    WeightsSection,
)
from orchestration.errors import ConfigError

RECIPES = Path(__file__).parents[1] / "recipes"


class RunConfig(Section):
    run: RunSection
    model: ModelSection
    precision: PrecisionSection = PrecisionSection()
    environments: list[EnvironmentSection] = Field(default_factory=list)  # or, one after the other:
    stages: list[StageSection] = Field(default_factory=list)
    batch: BatchSection
    sampling: SamplingSection
    generators: GeneratorSection
    verifiers: VerifierSection = VerifierSection()
    rewards: RewardsSection = RewardsSection()
    learner: LearnerSection
    objective: ObjectiveSection = ObjectiveSection()
    entropy: EntropySection = Field(default_factory=lambda: EntropySection.model_validate({}))
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
    def _something_to_train(self) -> Self:
        if self.stages and self.environments:
            raise ValueError(
                f"environments and stages are both given: each of the {len(self.stages)} stages names its own environments, "
                "leave those of the top level out"
            )
        if not self.stages and not self.environments:
            raise ValueError("environments is missing: give what the run trains on, or stages of it")
        if not self.stages and self.run.iterations is None:
            raise ValueError("run.iterations is missing: give it in the recipe or as run.iterations=VALUE")
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        responses = self.batch.prompts * self.batch.responses
        if responses % self.learner.updates:
            raise ValueError(
                f"a batch of {self.batch.prompts} prompts x {self.batch.responses} responses = {responses} trajectories cannot be "
                f"divided into learner.updates = {self.learner.updates} equal updates: change one of the three"
            )
        if responses // self.learner.updates < self.learner.ranks:
            raise ValueError(
                f"an update of {responses // self.learner.updates} trajectories cannot be divided over learner.ranks = "
                f"{self.learner.ranks}: make the batch larger, or the updates or ranks fewer"
            )
        if (responses // self.learner.updates) % self.learner.ranks:
            raise ValueError(
                f"an update of {responses // self.learner.updates} trajectories cannot be divided evenly over learner.ranks = "
                f"{self.learner.ranks}: change batch.prompts ({self.batch.prompts}), batch.responses ({self.batch.responses}), "
                f"learner.updates ({self.learner.updates}) or learner.ranks"
            )
        if self.batch.responses < 2:
            raise ValueError(
                f"a group baseline compares responses of one prompt: batch.responses is {self.batch.responses}, give 2 or more"
            )
        if self.sampling.max_tokens >= self.generators.max_model_len:
            raise ValueError(
                f"sampling.max_tokens ({self.sampling.max_tokens}) leaves no room for a prompt in generators.max_model_len "
                f"({self.generators.max_model_len})"
            )
        if self.sampling.max_total_tokens is not None and self.sampling.max_total_tokens < self.sampling.max_tokens:
            raise ValueError(
                f"sampling.max_total_tokens ({self.sampling.max_total_tokens}) is for all responses of a trajectory and "
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
        if o.advantage == "reinforce_pp" and self.batch.dynamic.kind != "none":
            raise ValueError(
                f"batch.dynamic {self.batch.dynamic.kind} drops groups of equal rewards, and objective.advantage reinforce_pp "
                "learns from them, since its baseline is the batch's: use reinforce_pp_baseline or another group baseline"
            )
        if o.credit.kind == "turn" and self.batch.dynamic.kind != "none":
            raise ValueError(
                f"batch.dynamic {self.batch.dynamic.kind} drops groups of equal verdicts, and objective.credit turn learns from "
                "what their turns earn: use one of the two"
            )
        if o.surrogate == "policy_gradient" and steps > 1:
            raise ValueError(
                f"objective.surrogate policy_gradient is on-policy and learner.updates x epochs = {steps} steps are taken on one "
                "batch: all but the first would be off-policy without a correction; set both to 1, or use surrogate ppo"
            )
        if o.surrogate == "gspo" and o.aggregation != "sequence":
            raise ValueError(
                f"objective.surrogate gspo clips a response as a whole and aggregation is {o.aggregation}, which weighs responses "
                "by their length: use aggregation sequence"
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
        return self

    @model_validator(mode="after")
    def _gpus(self) -> Self:
        g, c = self.generators, self.learner
        judges = self.judge_generator
        engines = {"generators": g} if judges is None else {"generators": g, "rewards.judge.generator": judges}
        groups = [("learner", c.gpus, "ranks", c.ranks)]
        groups += [(name, e.gpus, "tensor_parallel", e.tensor_parallel) for name, e in engines.items()]
        for section, gpus, key, members in groups:
            if gpus > 1:
                raise ValueError(
                    f"{section}.gpus is {gpus:g}: a learner rank, and each of the tensor_parallel shards of a generator, has one "
                    "GPU at most: give 1, 0 or a share"
                )
            if 0 < gpus < 1 and members > 1:
                raise ValueError(
                    f"{section}.gpus is {gpus:g}, a share of a GPU, and {section}.{key} is {members}: NCCL refuses a group two of "
                    f"whose members have the same GPU; give {section}.gpus 1, or {section}.{key} 1"
                )
        if (g.gpus > 0) != (c.gpus > 0):
            raise ValueError(
                f"generators.gpus is {g.gpus:g} and learner.gpus {c.gpus:g}: both work on GPUs or both on CPUs; give both a "
                "GPU (or a share of one) or both 0"
            )
        if judges is not None and (judges.gpus > 0) != (g.gpus > 0):
            raise ValueError(
                f"rewards.judge.generator.gpus is {judges.gpus:g} and generators.gpus {g.gpus:g}: an installed vLLM works on GPUs "
                "or on CPUs; give both a GPU (or a share of one) or both 0"
            )
        for section, e in engines.items():
            if 0 < e.gpus < 1 and (e.gpu_memory_utilization or 0.0) > e.gpus:
                raise ValueError(
                    f"{section}.gpu_memory_utilization is {e.gpu_memory_utilization:g} and a generator has {e.gpus:g} of its GPU: "
                    "the others on it would have too little memory; lower it or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _rewards_fit(self) -> Self:
        limit, length, overlong = self.sampling.max_tokens, self.rewards.length, self.rewards.overlong
        if overlong is not None and overlong.buffer > limit:
            raise ValueError(
                f"rewards.overlong.buffer ({overlong.buffer}) is the end of what a response may have and sampling.max_tokens is "
                f"{limit}: make the buffer smaller"
            )
        if length is not None and length.free >= (limit if length.full is None else length.full):
            key, value = ("sampling.max_tokens", limit) if length.full is None else ("rewards.length.full", length.full)
            raise ValueError(
                f"rewards.length.free ({length.free}) has to be under {key} ({value}): the term goes from one to the other"
            )
        judge = self.rewards.judge
        if judge is not None and judge.generator is not None and judge.max_tokens >= judge.generator.max_model_len:
            raise ValueError(
                f"rewards.judge.max_tokens ({judge.max_tokens}) leaves no room for a question in "
                f"rewards.judge.generator.max_model_len ({judge.generator.max_model_len})"
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

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        names = [stage.name for stage in self.stages]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"stages {', '.join(names)}: '{twice[0]}' is there twice, give each a name of its own")
        if self.stages:
            first, most = self.stages[0], sum(stage.iterations for stage in self.stages)
            for key, value in (("controller", first.controller), ("optimiser", first.optimiser)):
                if value != "keep":
                    raise ValueError(
                        f"stages.0.{key} is {value}, and nothing comes before the first stage: leave it out"
                    )
            if self.run.iterations is not None and self.run.iterations > most:
                raise ValueError(
                    f"run.iterations caps the run at {self.run.iterations} and its stages have {most} iterations at most: leave it "
                    "out, or give stages more"
                )
        for index in range(len(self.stages)):
            self.at_stage(index)
        return self

    @property
    def judge_generator(self) -> JudgeGeneratorSection | None:
        return None if self.rewards.judge is None else self.rewards.judge.generator

    @property
    def shares_gpus(self) -> bool:
        """Whether actors of the run may sit on one GPU: NCCL refuses them then, and weights travel over gloo."""
        return any(0 < gpus < 1 for gpus in (self.generators.gpus, self.learner.gpus))

    def at_stage(self, index: int) -> RunConfig:
        """The run as it is in one stage: that stage's environments and overrides, and no stages. Without stages, the run itself.

        Raises ValueError, one sentence, where the stage's overrides cannot be.
        """
        if not self.stages:
            return self
        stage, data = self.stages[index], self.model_dump()
        data["environments"], data["stages"] = data["stages"][index]["environments"], []
        data["run"]["iterations"] = self.iterations
        try:
            for key, value in stage.overrides.items():
                put(data, key, value)
            return RunConfig.model_validate(data)
        except ConfigError as error:
            raise ValueError(f"stages.{index} ({stage.name}): {error}") from None
        except ValidationError as error:
            raise ValueError(f"stages.{index} ({stage.name}): {sentence(error, data, RunConfig)}") from None

    @property
    def iterations(self) -> int:
        """The most the run takes; advance rules may end its stages earlier."""
        return self.run.iterations or sum(stage.iterations for stage in self.stages)

    @property
    def all_environments(self) -> list[EnvironmentSection]:
        """Every environment of the run, once: an environment's index counts in this list. Of stages, in order of first mention;
        the same name with other params is another environment. Weights are the stages' own matter."""
        found = list(self.environments)
        for environment in (e for stage in self.stages for e in stage.environments):
            if not any((e.name, e.params) == (environment.name, environment.params) for e in found):
                found.append(environment)
        return found

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
        return self.iterations * self.learner.updates * self.learner.epochs

    def to_yaml(self) -> str:
        """What load_config reads back as an equal config."""
        return write_yaml(self.model_dump(mode="json"))


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
    file = find_recipe(recipe)
    if file.parent != RECIPES:
        catalog.look_in(file.parent)  # for environments of the user's own
    data = read_yaml(file)
    for key, value in pairs:
        put(data, key, value)
    return validate(data)


def validate(data: Mapping[str, Any]) -> RunConfig:
    """Raises ConfigError, one sentence."""
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(sentence(error, data, RunConfig)) from None
