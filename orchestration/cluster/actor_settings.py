"""Derives what each actor is built from out of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.settings import JudgeGeneratorSettings, RewardModelSettings, VLLMSettings
from actors.verifier import EnvSpec
from envs import catalog
from learner.entropy.settings import EntropySettings
from learner.rank_settings import LearnerStage, RankSettings
from orchestration.config.loader import local
from orchestration.config.reward_sections import RewardModelTerm
from orchestration.config.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class Start:
    """Says where the weights come from: the configured model as version 0, or a checkpoint."""

    model: str
    version: int = 0
    engine: Path | None = None  # DeepSpeed's state, when resuming
    learner: dict[str, Any] | None = None  # Learner.state_dict, when resuming
    stage: int = 0  # of the curriculum, at the checkpoint
    # What replaced generators are built from, when resuming: the checkpoint may be deleted by then.
    base: str | None = None
    adapter: str | None = None  # the folder of the adapter at the checkpoint, of a run that trains one


def layout_key(config: RunConfig) -> dict[str, Any]:
    """Returns what actors are built from: runs that agree in it can follow one another on the same actors."""
    c, model, judge = config.learner, config.rewards.model, config.judge_generator
    return {
        "reward model": None if model is None else model.model_dump(exclude={"weight", "gather_ms"}),
        "judge": None if judge is None else judge.model_dump(),
        "model": config.model.model_dump(),
        "generators": config.generators.model_dump(),
        "verifiers": config.verifiers.model_dump(),
        "precision": config.precision.model_dump(),
        "nodes": config.cluster.node_resources,
        "learner": (c.ranks, c.zero_stage, c.precision, c.cpus, c.gpus, c.threads, c.timeout_s),
        "adapter": None if c.lora is None else c.lora.model_dump(),
        "weights": (config.weights.timeout_s, config.weights.shared_memory),
    }


def cpu_env(threads: int | None) -> dict[str, str]:
    """Returns the variables of a process that is to have no GPU; none where threads is None."""
    return {} if threads is None else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}


def policy_engine(config: RunConfig, model: str, version: int) -> VLLMSettings:
    """Returns what a generator of the policy is built from."""
    return VLLMSettings(
        model=model,
        generator=config.generators,
        dtype=config.engine_dtype,
        fp32_head=config.fp32_head,
        lora=config.learner.lora,
        seed=config.run.seed,
        version=version,
    )


def judge_engine(config: RunConfig, judge: JudgeGeneratorSettings) -> VLLMSettings:
    """Returns what a generator that judges is built from."""
    dtype = judge.dtype or config.engine_dtype
    return VLLMSettings(model=local(judge.path), generator=judge, dtype=dtype, seed=config.run.seed)


def reward_model(term: RewardModelTerm) -> RewardModelSettings:
    """Returns what a reward model is built from: the term, its folder named in full."""
    return term.model_copy(update={"path": local(term.path)})


def environment_specs(config: RunConfig) -> list[EnvSpec]:
    """Returns the run's environments in the order that `Prompt.environment` counts in."""
    search_path, seed = catalog.module_path(), config.run.seed
    return [EnvSpec(e.name, e.params, seed, search_path) for e in config.all_environments]


def learner_stage(run: RunConfig, index: int) -> LearnerStage:
    """Returns what the learner changes where a stage of the run begins."""
    config, stage = run.at_stage(index), run.stages[index]
    target = annealed(run, index, config).target
    return LearnerStage(config.objective, config.learner.lr, target, stage.controller, stage.optimiser)


def annealed(run: RunConfig, index: int, config: RunConfig) -> EntropySettings:
    """Returns the entropy section of `config`, the run in its stage `index`, with schedules in the place of pairs of fractions.

    They are as long as the targets count on: the stage and those around it that keep the controllers, or a run without stages.
    """
    if not run.stages:
        return config.entropy.annealed(run.iterations)
    fresh = [i for i, stage in enumerate(run.stages) if i and stage.controller != "keep"]
    first = max((i for i in fresh if i <= index), default=0)
    after = min((i for i in fresh if i > index), default=len(run.stages))
    return config.entropy.annealed(sum(stage.iterations for stage in run.stages[first:after]))


def rank_settings(run: RunConfig, start: Start) -> RankSettings:
    """Returns what a learner rank is started with in the stage the run starts in. The reference of a KL penalty is the model
    the run began with."""
    config = run.at_stage(start.stage)
    return RankSettings(
        model=config.model.model_copy(update={"path": start.model}),
        learner=config.learner,
        objective=config.objective,
        entropy=annealed(run, start.stage, config),
        precision=config.trainer_precision,
        loss_scale_power=config.precision.loss_scale_power,
        fp32_head=config.fp32_head,
        reference=start.base or start.model,
        hold_reference=any(run.at_stage(i).objective.kl.coefficient for i in range(len(run.stages))),
        total_steps=config.total_steps,
        seed=config.run.seed,
        bucket_bytes=config.weights.bucket_mb * 2**20,
        shared_memory=config.weights.shared_memory,
        adapter=start.adapter,
    )
