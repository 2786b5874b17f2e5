"""Implements `isentrope eval MODEL`: pass@k, lengths and the exact entropy of a model on held-out prompts, without training.

One engine in a process of its own and one verifier, without Ray. The prompts, seeds and settings are those of a run's evaluation
with the same recipe, so that a checkpoint has the numbers here that its run reports.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.inference import EngineDead, ResponseFailed
from actors.rollout import ContextFull, RolloutSettings, rollout_group
from actors.verifier import ScoreRequest, Verifier
from actors.vllm_process import EngineProcess
from envs import catalog
from envs.types import Group, Observation, Verdict
from orchestration.cluster.actor_settings import environment_specs, policy_engine
from orchestration.commands.model_source import ModelSource, find_model
from orchestration.commands.precision_probe import exact_entropy
from orchestration.config.loader import local, parse_overrides, put
from orchestration.config.preflight import run_preflight
from orchestration.config.run_config import RunConfig, load_config, validate
from orchestration.errors import ConfigError, IsentropeError
from orchestration.group_stats import by_env, mean_reward
from orchestration.run.resume import config_of_run
from orchestration.sampling.codec import HFCodec, load_codec
from orchestration.sampling.curriculum import Curriculum, stages_of
from orchestration.sampling.evaluation import scores
from orchestration.text import number

START_S = 600  # that an engine may take to be ready
PROMPT_ROOM = 1024  # tokens of a prompt and of what an environment says, without a recipe
KS = "evaluation.ks"
MEASURED = 256  # responses whose entropy is measured


@dataclass(frozen=True, slots=True)
class Asked:
    """Holds the command's options.

    arguments: with env its parameters, as name=value; with a recipe or a run's own configuration overrides
    changes: values of options by the dotted keys that they replace; None leaves a value as the recipe has it
    """

    env: str | None = None
    recipe: str | None = None
    arguments: Sequence[str] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False  # without the chat template
    gpu: bool = False
    entropy: bool = True


def run(model: str, asked: Asked, out: Path | None) -> dict[str, float]:
    """Evaluates, prints a table, writes the metrics to `out` and returns them. Raises ConfigError before anything starts."""
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out} cannot be written: the folder {out.parent} does not exist")
    source = find_model(model).whole()
    config = configured(source, asked)
    run_preflight(config)
    codec = load_codec("MODEL", config.model.path, config.model.chat_template)
    try:
        with EngineProcess(policy_engine(config, local(config.model.path), 0), START_S) as engine:
            groups = asyncio.run(_sample(config, engine, codec))
    except EngineDead as error:
        raise IsentropeError(f"the engine of {source.model}: {error}") from error
    except (ContextFull, ResponseFailed) as error:
        raise ConfigError(
            f"{error}; give --recipe with another generators.max_model_len, or a smaller --max-tokens"
        ) from error
    row = metrics(groups, config)
    if asked.entropy:
        row |= entropies(groups, config)
    show(row, config, source)
    if out is not None:
        record = {
            "model": source.model,
            "checkpoint": source.checkpoint,
            "metrics": {k: _json(v) for k, v in row.items()},
        }
        out.write_text(json.dumps(record | {"config": config.model_dump(mode="json")}, indent=2) + "\n", "utf-8")
    return row


# --- configuration ------------------------------------------------------------------------------------------------------


def configured(source: ModelSource, asked: Asked) -> RunConfig:
    """Returns the configuration of the evaluation: a recipe's, the model's own run's, or the smallest one for `env`."""
    if asked.env is not None and asked.recipe is not None:
        raise ConfigError("--env and --recipe were both given: a recipe names its environments, leave one out")
    if asked.env is not None:
        config = validate(_for_environment(asked.env, asked))
    elif asked.recipe is not None:
        config = load_config(asked.recipe, asked.arguments)
    elif source.run is not None:
        config = config_of_run(source.run, asked.arguments)
    else:
        raise ConfigError("what should be asked? give --env NAME, or --recipe for a recipe's environments and limits")
    data = config.model_dump(mode="json")
    data["model"]["path"] = source.model
    changes = {key: value for key, value in asked.changes.items() if value is not None}
    for key, value in changes.items():
        put(data, key, value)
    evaluation: dict[str, Any] = data["evaluation"]
    if KS not in changes:  # those of the recipe that so many samples have
        evaluation["ks"] = [k for k in evaluation["ks"] if k <= evaluation["samples"]] or [1]
    if asked.raw:
        data["model"]["chat_template"] = False
    if not evaluation["prompts"]:
        raise ConfigError("evaluation.prompts is 0 in this recipe: give --prompts")
    return validate(data)


def _for_environment(name: str, asked: Asked) -> dict[str, Any]:
    longest = asked.changes.get("sampling.max_tokens") or 256
    return {
        "run": {"name": "eval", "iterations": 1},
        "model": {"path": "MODEL"},
        "environments": [{"name": name, "params": dict(parse_overrides(asked.arguments))}],
        "batch": {"prompts": 1, "responses": 2},
        "sampling": {"max_tokens": longest},
        "generators": {"max_model_len": longest + PROMPT_ROOM, "gpus": int(asked.gpu)},
        "learner": {"lr": 1e-6, "gpus": int(asked.gpu)},
    }


def parse_ks(text: str | None) -> list[int] | None:
    """Parses the k of pass@k, with commas between them; None stands for the recipe's. Raises ConfigError."""
    try:
        return None if text is None else sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise ConfigError(f"--k is '{text}': give numbers with commas between them, such as 1,16") from None


# --- sampling -----------------------------------------------------------------------------------------------------------


async def _sample(config: RunConfig, engine: EngineProcess, codec: HFCodec) -> dict[float, list[Group]]:
    """Returns the groups of every temperature, in the order of the prompts."""
    environments = [catalog.load(e.name, e.params, seed=config.run.seed) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), config.run.seed)
    prompts = curriculum.held_out("eval", config.evaluation.prompts)
    if not prompts:
        raise ConfigError("no environment has held-out prompts: give its parameters a second source, or eval_fraction")
    verifier, turn = Verifier(environment_specs(config), config.verifiers.timeout_s), asyncio.Lock()

    async def score(request: ScoreRequest) -> Observation | Verdict:
        async with turn:
            (answer,) = await asyncio.to_thread(verifier.score, [request])
        return answer

    groups: dict[float, list[Group]] = {}
    try:
        for temperature in config.evaluation.temperatures:
            settings = RolloutSettings(
                sampling=config.sampling,
                responses=config.evaluation.samples if temperature > 0 else 1,
                max_model_len=config.generators.max_model_len,
                seed=config.run.seed,
                stop_token_ids=codec.stop_token_ids,
                temperature=temperature,
            )
            stamp = f"eval/T={temperature:g}"
            played = (rollout_group(prompt, engine.begin, score, codec, settings, stamp) for prompt in prompts)
            groups[temperature] = list(await asyncio.gather(*played))
    finally:
        await asyncio.to_thread(verifier.close)
    return groups


# --- numbers ------------------------------------------------------------------------------------------------------------


def metrics(groups: dict[float, list[Group]], config: RunConfig) -> dict[str, float]:
    """Returns eval/ENV/... of every environment: pass@k at each temperature; reward, length and shares at the first one."""
    row: dict[str, float] = {}
    for i, (temperature, of_all) in enumerate(groups.items()):
        for env, members in sorted(by_env(of_all).items()):
            trajectories = [t for g in members for t in g.trajectories]
            ks = [k for k in config.evaluation.ks if k <= len(members[0].trajectories)]
            row |= scores(env, members, ks, temperature, first=i == 0)
            if i == 0:
                row[f"eval/{env}/reward"] = mean_reward(members)
                row[f"eval/{env}/length"] = sum(t.response_tokens for t in trajectories) / len(trajectories)
                for status in ("truncated", "error", "timeout"):
                    share = sum(str(t.verdict.status) == status for t in trajectories) / len(trajectories)
                    row[f"eval/{env}/{status}"] = share
    return row


def entropies(groups: dict[float, list[Group]], config: RunConfig) -> dict[str, float]:
    """Returns eval/ENV/entropy: nats a token at the first temperature, of the whole distribution; nothing where that is greedy."""
    temperature, of_all = next(iter(groups.items()))
    row: dict[str, float] = {}
    for env, members in sorted(by_env(of_all).items()) if temperature > 0 else ():
        trajectories = [t for g in members for t in g.trajectories]
        step = max(1, math.ceil(len(trajectories) / MEASURED))
        row[f"eval/{env}/entropy"] = exact_entropy(
            config.model.path, config.precision.mode, trajectories[::step], temperature
        )
    return row


def show(row: dict[str, float], config: RunConfig, source: ModelSource) -> None:
    """Prints one line for each metric, environment by environment."""
    from rich.console import Console
    from rich.table import Table

    of_run = f", {source.checkpoint} of {source.run}" if source.run is not None else ""
    e = config.evaluation
    table = Table(title=f"{source.model}{of_run}: {e.prompts} prompts x {e.samples} responses", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in row.items():
        if "/T=" in key and len(e.temperatures) == 1:
            continue  # the short name says the same
        table.add_row(key.removeprefix("eval/"), number(value))
    Console(soft_wrap=True).print(table, highlight=False)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
