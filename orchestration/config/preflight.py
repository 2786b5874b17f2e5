"""Checks whether what a configuration names is there: on the disk, in the catalog, among the process's variables."""

from __future__ import annotations

import importlib.util
import os

from actors.settings import KEEPS_MEMORY, keeps_memory
from envs import catalog
from envs.base import Environment, HasForm
from envs.reward_terms.own_function import find_function
from orchestration.config.model_folder import check_model, check_positions
from orchestration.config.run_config import RunConfig
from orchestration.config.sections import EnvironmentSection
from orchestration.errors import ConfigError

# The package of a sink that is optional, by the module that it imports.
SINK_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}


def run_preflight(config: RunConfig) -> None:
    """Looks for every model folder, environment and key. Raises ConfigError; writes nothing."""
    check_model(config.model.path)
    check_positions("generators", config.generators.max_model_len, config.model.path)
    if config.rewards.model is not None:
        check_model(config.rewards.model.path)
    if config.judge_generator is not None:
        check_model(config.judge_generator.path)
        check_positions("rewards.judge.generator", config.judge_generator.max_model_len, config.judge_generator.path)
    if config.generators.colocated and (found := keeps_memory(os.environ)):
        raise ConfigError(f"{found}: {KEEPS_MEMORY}")
    _check_optimiser(config)
    _check_sinks(config)
    _check_key(config)
    if config.rewards.function is not None:
        _check_function(config.rewards.function.path)
    first: dict[str, str] = {}  # the name metrics go by -> the first environment that has it
    for env in config.all_environments:
        where = f"{_where(config, env)} ({env.name})"
        try:
            made = catalog.load(env.name, env.params, seed=config.run.seed)
            if ":" in env.name:
                catalog.try_out(env.name, made)
            names = {made.prompt("train", k).env for k in range(4 if config.stages else 1)}  # a server must answer, too
            lacking = _lacks(config, made)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None
        except Exception as error:  # of a user's or another library's environment
            raise ConfigError(f"{where}: {catalog.error_in_one_line(error)}") from error
        if lacking:
            raise ConfigError(f"{lacking[0]}, and {where} has none: {lacking[1]}")
        for name in names if config.stages else ():
            if name in first:
                raise ConfigError(
                    f"{where} and {first[name]} both report as '{name}', so nothing could tell which of them was retained: give "
                    "one a params.name of its own"
                )
            first[name] = where


def _check_function(path: str) -> None:
    try:
        find_function(path)
    except ValueError as error:
        raise ConfigError(f"rewards.function: {' '.join(str(error).split())}") from None


def _check_optimiser(config: RunConfig) -> None:
    if config.learner.optimiser_bits == 8 and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "learner.optimiser_bits is 8, which bitsandbytes computes, and that package is not installed: `pip install "
            "bitsandbytes`, or set learner.optimiser_bits to 32"
        )


def _check_sinks(config: RunConfig) -> None:
    if "prometheus" in config.run.sinks and not (config.cluster.address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(
            "run.sinks has prometheus, which Ray's agents of a joined cluster serve, and the run starts a cluster of its own: "
            "submit it with `isentrope submit`, give cluster.address, or take prometheus out"
        )
    for sink in config.run.sinks:
        package = SINK_PACKAGES.get(sink)
        if package is not None and importlib.util.find_spec(sink) is None:
            raise ConfigError(
                f"run.sinks has {sink}, whose package is not installed: `pip install {package}`, or take {sink} out of run.sinks"
            )


def _check_key(config: RunConfig) -> None:
    judge = config.rewards.judge
    if judge is not None and judge.api_key_env is not None and not os.environ.get(judge.api_key_env):
        raise ConfigError(
            f"rewards.judge.api_key_env names {judge.api_key_env}, which is not set here: put the key into that variable"
        )
    if judge is not None and judge.api_key_env is not None:
        key = os.environ[judge.api_key_env].strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"the variable {judge.api_key_env}, which rewards.judge.api_key_env names, holds no key that a header could carry: "
                "it is empty, or has characters beyond printable ASCII"
            )


def _lacks(config: RunConfig, environment: Environment) -> tuple[str, str] | None:
    """Returns what a term of the reward asks of every environment and this one does not offer, and what to do; else None."""
    form, judge = config.rewards.format, config.rewards.judge
    if form is not None and form.pattern is None and not isinstance(environment, HasForm):
        return (
            "rewards.format has no pattern, so that it takes the environment's own form",
            "give rewards.format.pattern",
        )
    if (
        judge is not None
        and "{reference}" in judge.rubric
        and judge.reference not in environment.prompt("train", 0).task
    ):
        return (
            f"rewards.judge.rubric shows {{reference}}, the '{judge.reference}' of a prompt's task",
            "name another key in rewards.judge.reference, or leave {reference} out",
        )
    function = config.rewards.function
    if function is not None and find_function(function.path)[1] == "verl":
        known = environment.prompt("train", 0).task
        if function.reference not in known:
            return (
                f"rewards.function gets '{function.reference}' of a prompt's task as ground_truth",
                f"its task has {', '.join(known) or 'nothing'}, name one of them in rewards.function.reference",
            )
    return None


def _where(config: RunConfig, environment: EnvironmentSection) -> str:
    """Returns the key under which an environment is first mentioned."""
    for i, env in enumerate(config.environments):
        if env == environment:
            return f"environments.{i}"
    for s, stage in enumerate(config.stages):
        for i, env in enumerate(stage.environments):
            if env == environment:
                return f"stages.{s}.environments.{i}"
    raise ValueError(f"{environment.name} is not an environment of {config.run.name}")
