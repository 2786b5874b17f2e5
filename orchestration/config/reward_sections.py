"""Composes the section `rewards`: the terms of a reward and their weights. Without torch.

What a term can be set to is declared in actors/settings.py.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from actors.settings import (
    EndpointSettings,
    FormatSettings,
    FunctionSettings,
    JudgeGeneratorSettings,
    JudgeSettings,
    LengthSettings,
    OverlongSettings,
    RewardModelSettings,
    TermSettings,
)
from learner.settings import Settings


class RewardModelTerm(RewardModelSettings, TermSettings):
    """Weighs the score of a reward model, on actors of its own."""


class JudgeTerm(EndpointSettings, JudgeSettings, TermSettings):
    """Weighs the score of a language model, behind an OpenAI-compatible endpoint (url, model) or on generators of the run's own
    (generator)."""

    generator: JudgeGeneratorSettings | None = None

    @model_validator(mode="after")
    def _somebody_answers(self) -> Self:
        endpoint = {"url": self.url, "model": self.model, "api_key_env": self.api_key_env}
        given = [key for key, value in endpoint.items() if value is not None]
        if self.generator is None and (self.url is None or self.model is None):
            raise ValueError("nobody answers: give url and model, those of an endpoint, or generator, with a path")
        if self.generator is not None and given:
            raise ValueError(
                f"the judge is an endpoint or generators of the run's own, and both are given ({', '.join(given)} and generator): "
                "leave one out"
            )
        for key, field in EndpointSettings.model_fields.items() if self.generator is not None else ():
            if getattr(self, key) != field.default:
                raise ValueError(f"{key} is an endpoint's, and the judge is generators of the run's own: leave it out")
        return self


class RewardsSection(Settings):
    """Adds up what a response earns: verdict * the environment's reward + the sum of weight * term. Without terms, the
    environment's alone. A function of your own counts in place of the environment's, unless `verdict` is given."""

    verdict: float = 1.0
    function: FunctionSettings | None = None
    length: LengthSettings | None = None
    format: FormatSettings | None = None
    overlong: OverlongSettings | None = None
    model: RewardModelTerm | None = None
    judge: JudgeTerm | None = None

    @property
    def terms(self) -> dict[str, TermSettings]:
        """Returns the terms that are given, by name, in the order in which they are added."""
        fields: dict[str, TermSettings | None] = {
            "function": self.function,
            "length": self.length,
            "format": self.format,
            "overlong": self.overlong,
            "model": self.model,
            "judge": self.judge,
        }
        return {name: term for name, term in fields.items() if term is not None}

    @property
    def plain(self) -> bool:
        """Returns whether the reward is the environment's own, and nothing is measured beside it."""
        return self.verdict == 1.0 and not self.terms

    @model_validator(mode="before")
    @classmethod
    def _function_by_its_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("function") is not None:
            function = data["function"]
            data = {"verdict": 0.0, **data, "function": {"path": function} if isinstance(function, str) else function}
        return data

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not self.verdict and not any(term.weight for term in self.terms.values()):
            named = " and ".join(["verdict", *(f"{name}.weight" for name in self.terms)])
            raise ValueError(
                f"weights are 0 throughout ({named}), so that every response would earn the same: give one a weight"
            )
        return self
