"""Builds, from the recipe's `rewards`, the function that gives responses their reward."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from actors.inference import GenerateFn
from actors.rewards.composite import (
    RewardFunction,
    ScoreFn,
    Term,
    format_request,
    function_request,
    last_response,
    length_term,
    overlong_term,
    scored_term,
)
from actors.rewards.endpoint import Endpoint
from actors.rewards.judge import Judge, JudgeBackend
from actors.rewards.judge_generators import Generators
from envs.base import Environment, HasForm
from orchestration.config.reward_sections import JudgeTerm
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError
from orchestration.sampling.codec import HFCodec


def make_judge(config: RunConfig, codec: HFCodec | None, generate: GenerateFn) -> Judge | None:
    """Builds the language-model judge of rewards.judge, if the recipe has one.

    codec, generate: of the run's own judge generators, where it has them; otherwise an endpoint is asked.
    Raises ConfigError for a cache_file that cannot be one.
    """
    term = config.rewards.judge
    if term is None:
        return None
    backend = _judge_backend(term, codec, generate)
    try:
        return Judge(term, backend)
    except OSError as error:
        cache = Path(term.cache_file or "").expanduser()
        raise ConfigError(f"rewards.judge.cache_file {cache} cannot be used: {error}") from None


def _judge_backend(term: JudgeTerm, codec: HFCodec | None, generate: GenerateFn) -> JudgeBackend:
    if (g := term.generator) is not None and codec is not None:
        return Generators(g.path, generate, codec, g.max_model_len)
    if term.url is None or term.model is None:
        raise ConfigError("rewards.judge has neither an endpoint nor a generator")
    return Endpoint(term, os.environ.get(term.api_key_env or ""))


def _form(environment: Environment) -> str:
    return environment.form if isinstance(environment, HasForm) else ""


def make_reward_function(
    config: RunConfig,
    environments: Sequence[Environment],
    *,
    verify: ScoreFn,
    model: ScoreFn,
    judge: ScoreFn | None,
    on_event: Callable[[str], None],
) -> RewardFunction | None:
    """Builds the reward function; returns None where the reward is the environment's own and nothing is measured beside it.

    verify, model, judge: score requests on the verifiers, the reward models and the language-model judge.
    """
    rewards = config.rewards
    if rewards.plain:
        return None
    terms: list[Term] = []
    if (t := rewards.function) is not None:
        terms.append(scored_term("function", t.weight, verify, function_request(t)))
    if (t := rewards.length) is not None:
        terms.append(length_term(t))
    if (t := rewards.format) is not None:
        patterns = [t.pattern if t.pattern is not None else _form(e) for e in environments]
        terms.append(scored_term("format", t.weight, verify, format_request(patterns)))
    if (t := rewards.overlong) is not None:
        terms.append(overlong_term(t))
    if (t := rewards.model) is not None:
        terms.append(scored_term("model", t.weight, model, last_response))
    if (t := rewards.judge) is not None and judge is not None:
        terms.append(scored_term("judge", t.weight, judge, last_response))
    return RewardFunction(rewards.verdict, terms, on_event)
