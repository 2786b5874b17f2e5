"""What each actor is built from, out of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.verifier import EnvSpec
from envs import catalog
from learner.deepspeed_engine import EngineSettings
from learner.learner import LearnerSettings, LearnerStage
from learner.objective import Importance, Objective
from orchestration.config.loader import local
from orchestration.config.reward_sections import JudgeGeneratorSection, RewardModelTerm
from orchestration.config.run_config import RunConfig
from orchestration.config.sections import GeneratorSection

MEMORY_SHARE = 0.85  # of its GPU, or of its share of one, for a generator's weights and KV cache
CPU_KV_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Start:
    """Where the weights come from: the configured model as version 0, or a checkpoint."""

    model: str
    version: int = 0
    engine: Path | None = None  # DeepSpeed's state, when resuming
    learner: dict[str, Any] | None = None  # Learner.state_dict, when resuming
    stage: int = 0  # the one that the checkpoint is in
    base: str | None = (
        None  # what replaced generators are built from, when resuming: the checkpoint may be deleted by then
    )


def layout_key(config: RunConfig) -> dict[str, Any]:
    """What actors are built from: runs that agree in it can follow one another on the same actors."""
    c, model, judge = config.learner, config.rewards.model, config.judge_generator
    return {
        "reward model": None if model is None else model.model_dump(exclude={"weight", "gather_ms"}),
        "judge": None if judge is None else judge.model_dump(),
        "model": config.model.model_dump(),
        "generators": config.generators.model_dump(),
        "verifiers": config.verifiers.model_dump(),
        "precision": config.precision.model_dump(),
        "learner": (c.ranks, c.zero_stage, c.precision, c.cpus, c.gpus, c.threads, c.timeout_s),
        "weights": (config.weights.timeout_s,),
    }


def threads(cpus: float, gpus: float) -> int | None:
    """OpenMP threads of an actor that works on the CPU; None on a GPU."""
    return None if gpus else max(1, int(cpus))


def cpu_env(threads: int | None) -> dict[str, str]:
    """Variables of a process that is to have no GPU; none where threads is None."""
    return {} if threads is None else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}


def policy_engine(config: RunConfig, model: str, version: int) -> dict[str, Any]:
    """VLLMSettings of a generator of the policy."""
    precision = {"dtype": config.engine_dtype, "fp32_head": config.fp32_head}
    return {"model": model, "version": version, **precision, **_engine(config.generators, config.run.seed)}


def judge_engine(config: RunConfig, judge: JudgeGeneratorSection) -> dict[str, Any]:
    """VLLMSettings of a generator that judges."""
    return {"model": local(judge.path), "dtype": judge.dtype or config.engine_dtype, **_engine(judge, config.run.seed)}


def _engine(g: GeneratorSection, seed: int) -> dict[str, Any]:
    kv = None if g.kv_cache_mb is None else g.kv_cache_mb * 2**20
    return {
        "max_model_len": g.max_model_len,
        "max_num_seqs": g.max_num_seqs,
        "kv_cache_bytes": CPU_KV_BYTES if kv is None and not g.gpus else kv,
        "gpu_memory_utilization": g.gpu_memory_utilization or MEMORY_SHARE * (g.gpus or 1.0),
        "tensor_parallel": g.tensor_parallel,
        "enforce_eager": g.enforce_eager,
        "prefix_caching": g.prefix_caching,
        "seed": seed,
    }


def reward_model_settings(term: RewardModelTerm) -> dict[str, Any]:
    """RewardModelSettings."""
    same = ("precision", "label", "chat_template", "max_batch_tokens", "scale", "shift")
    settings = {key: getattr(term, key) for key in same}
    settings |= {"path": local(term.path), "cuda": bool(term.gpus), "threads": threads(term.cpus, term.gpus) or 0}
    return settings if term.clip is None else {**settings, "clip": tuple(term.clip)}


def environment_specs(config: RunConfig) -> list[EnvSpec]:
    """Lists the run's environments in the order that `Prompt.environment` counts in."""
    places, seed = catalog.module_path(), config.run.seed
    return [EnvSpec(e.name, e.params, seed, places) for e in config.all_environments]


def learner_stage(run: RunConfig, index: int) -> LearnerStage:
    """What the learner is told where a stage of the run begins."""
    config, stage = run.at_stage(index), run.stages[index]
    return LearnerStage(_objective(config), config.learner.lr, config.entropy.target, stage.controller, stage.optimiser)


def _objective(config: RunConfig) -> Objective:
    o = config.objective
    return Objective(
        surrogate=o.surrogate,
        clip_low=o.clip_low,
        clip_high=o.clip_high,
        importance=Importance(**o.importance.model_dump()),
        kl=o.kl.coefficient,
        estimator=o.kl.estimator,
    )


def learner_settings(run: RunConfig, start: Start) -> LearnerSettings:
    """Of the stage the run starts in. The reference of a KL penalty is the model the run began with."""
    config = run.at_stage(start.stage)
    c = config.learner
    return LearnerSettings(
        model=start.model,
        attention=config.model.attention,
        gradient_checkpointing=c.gradient_checkpointing,
        threads=c.threads,
        engine=EngineSettings(
            c.zero_stage,
            config.trainer_precision,
            c.lr,
            c.betas,
            c.eps,
            c.weight_decay,
            c.grad_clip,
            config.precision.loss_scale_power,
        ),
        fp32_head=config.fp32_head,
        schedule=c.schedule,
        warmup=c.warmup_steps,
        total_steps=config.total_steps,
        floor=c.lr_floor,
        objective=_objective(config),
        method=config.entropy.method,
        controller=config.entropy.controller,
        target=config.entropy.target,
        environments=config.entropy.environments,
        reference=start.base or start.model,
        hold_reference=any(run.at_stage(i).objective.kl.coefficient for i in range(len(run.stages))),
        seed=config.run.seed,
        bucket_bytes=config.weights.bucket_mb * 2**20,
    )
