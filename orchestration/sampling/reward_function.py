"""From the recipe's `rewards` to the callable that gives responses their reward."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from actors.rewards.composite import (
    RewardFunction,
    ScoreFn,
    Term,
    asked_term,
    form_request,
    last_response,
    length_term,
    overlong_term,
)
from actors.rewards.endpoint import Endpoint
from actors.rewards.judge import Judge, JudgeBackend
from actors.rewards.judge_generators import Generators
from actors.rollout import GenerateFn
from envs.base import Environment
from orchestration.config.reward_sections import JudgeTerm
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError
from orchestration.sampling.codec import HFCodec


def make_judge(config: RunConfig, codec: HFCodec | None, generate: GenerateFn) -> Judge | None:
    """The language model of rewards.judge. Of generators that judge, where the run has them: their codec, and `generate`.

    Raises ConfigError for a cache_file that cannot be one.
    """
    term = config.rewards.judge
    if term is None:
        return None
    speaker = _speaker(term, codec, generate)
    try:
        return Judge(term, speaker)
    except OSError as error:
        cache = Path(term.cache_file or "").expanduser()
        raise ConfigError(f"rewards.judge.cache_file {cache} cannot be used: {error}") from None


def _speaker(term: JudgeTerm, codec: HFCodec | None, generate: GenerateFn) -> JudgeBackend:
    if (g := term.generator) is not None and codec is not None:
        return Generators(g.path, generate, codec, g.max_model_len)
    if term.url is None or term.model is None:
        raise ConfigError("rewards.judge has neither an endpoint nor a generator")
    return Endpoint(term, os.environ.get(term.api_key_env or ""))


def compose(
    config: RunConfig,
    environments: Sequence[Environment],
    *,
    verify: ScoreFn,
    model: ScoreFn,
    judge: ScoreFn | None,
    on_event: Callable[[str], None],
) -> RewardFunction | None:
    """None where the reward is the environment's own and nothing is measured beside it.

    verify: of the verifiers, which have Form behind the run's environments; model: of the reward models; judge: the language model.
    """
    rewards = config.rewards
    if rewards.plain:
        return None
    terms: list[Term] = []
    if (t := rewards.length) is not None:
        terms.append(length_term(t))
    if (t := rewards.format) is not None:
        forms = [t.pattern if t.pattern is not None else getattr(e, "form", "") for e in environments]
        terms.append(asked_term("format", t.weight, verify, form_request(forms, len(environments))))
    if (t := rewards.overlong) is not None:
        terms.append(overlong_term(t))
    if (t := rewards.model) is not None:
        terms.append(asked_term("model", t.weight, model, last_response))
    if (t := rewards.judge) is not None and judge is not None:
        terms.append(asked_term("judge", t.weight, judge, last_response))
    return RewardFunction(rewards.verdict, terms, on_event)
