"""The sections of `rewards`: the terms of a reward and their weights, with what can be said of each alone. Without torch."""

from __future__ import annotations

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from orchestration.config.sections import GeneratorSection, ModelPath, Section, TrainerPrecision

RUBRIC = """\
Judge the response to the task below. What counts is whether it does what was asked, correctly and completely.

{prompt}

{response}

Explain in a sentence or two, then end with one line: SCORE: n, where n is from 0 (useless) to 10 (perfect)."""
SCORE = r"SCORE:\s*([0-9]+(?:\.[0-9]+)?)"


class _Term(Section):
    weight: float  # may be negative; 0 measures the term without rewarding it


class LengthTerm(_Term):
    """By the tokens of all of a trajectory's responses: from the first value at `free` tokens to the second at `full`."""

    shape: Literal["linear", "cosine"] = "linear"
    free: int = Field(default=0, ge=0)
    full: int | None = Field(default=None, ge=1)  # None: sampling.max_tokens
    # Of responses that the environment calls correct, and of the others.
    correct: list[float] = Field(default=[0.0, -1.0], min_length=2, max_length=2)
    wrong: list[float] = Field(default=[0.0, -1.0], min_length=2, max_length=2)


class FormatTerm(_Term):
    """The share of a trajectory's responses that match as a whole. None: the environment's own form."""

    pattern: str | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return value if value is None else _pattern(value)


class OverlongTerm(_Term):
    """DAPO's soft punishment: from 0 at sampling.max_tokens - buffer to -1 at sampling.max_tokens, of the longest response."""

    buffer: int = Field(ge=1)  # tokens


class RewardModelTerm(_Term):
    """A Hugging Face sequence classifier, on actors of its own. Its score is scale * raw + shift, cut to `clip`."""

    path: ModelPath
    count: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, gt=0)
    gpus: Literal[0, 1] = 0
    precision: TrainerPrecision = "fp32"
    label: int | None = Field(default=None, ge=0)  # of several labels: whose probability is the score
    # None: the tokenizer's own where it has one; false: the messages' text is joined as it is
    chat_template: bool | None = None
    max_batch_tokens: int = Field(default=8192, ge=1)  # of one forward pass, padding included; 1: each alone
    gather_ms: float = Field(default=5.0, ge=0)  # how long the first response of a batch waits for others
    scale: float = 1.0
    shift: float = 0.0
    clip: list[float] | None = Field(default=None, min_length=2, max_length=2)
    timeout_s: float = Field(default=300, gt=0)  # of one message to an actor

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip goes from {self.clip[0]:g} to {self.clip[1]:g}: the first has to be the smaller")
        if self.scale == 0:
            raise ValueError(
                "scale is 0, so that every response would have the same score: leave it out or leave the term out"
            )
        return self


class JudgeGeneratorSection(GeneratorSection):
    """Generators of the run's own that only judge: their model stays as it is."""

    path: ModelPath
    chat_template: bool = True  # false: the messages' text is joined as it is


class JudgeTerm(_Term):
    """A language model, behind an OpenAI-compatible endpoint (url, model) or on generators of the run's own (generator). Its
    score, from `low` to `high`, becomes 0 to 1."""

    url: str | None = None  # up to and without /chat/completions: http://localhost:8000/v1
    model: str | None = Field(default=None, min_length=1)
    api_key_env: str | None = None  # the NAME of an environment variable
    generator: JudgeGeneratorSection | None = None
    rubric: str = RUBRIC  # {prompt}, {response} and {reference} are replaced, each within delimiters of its own
    reference: str = "answer"  # the key of a prompt's task that {reference} is
    score: str = SCORE  # a regular expression with one group; of several matches the last
    low: float = 0.0
    high: float = 10.0
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    cache_entries: int = Field(default=10_000, ge=0)
    cache_file: str | None = None  # answers kept over runs
    # Of an endpoint alone:
    timeout_s: float = Field(default=60, gt=0)  # of one request
    retries: int = Field(default=4, ge=0)  # after a time-out, a lost connection, 408, 429 or 5xx
    backoff_s: float = Field(default=1.0, ge=0)  # before the first of them; doubled every time
    concurrency: int = Field(default=16, ge=1)  # requests at the same time

    @field_validator("url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            _ = parts.port  # looked at only when it is asked for
        except ValueError:
            raise ValueError("its port is no number from 0 to 65535, or its address is none") from None
        if parts.username or parts.password or parts.query or parts.fragment:
            # Not shown: whatever stands there may be a secret.
            raise ValueError(
                "it has more than an address: a key belongs in an environment variable, whose name goes to api_key_env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is no address of an endpoint: give the like of http://localhost:8000/v1")
        return value.rstrip("/").removesuffix("/chat/completions")

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            # Not shown: somebody may have written the key itself.
            raise ValueError("it is no name of an environment variable: give the name, never the key itself")
        return value

    @field_validator("score")
    @classmethod
    def _one_group(cls, value: str) -> str:
        if (groups := re.compile(_pattern(value)).groups) != 1:
            raise ValueError(f"'{value}' has {groups} groups: exactly one of them is the number")
        return value

    @field_validator("rubric")
    @classmethod
    def _shows_the_response(cls, value: str) -> str:
        value = value.replace("{reply}", "{response}")  # as it was called before
        if "{response}" not in value:
            raise ValueError("the judge would never see what it judges: write {response} where it should stand")
        return value

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
        for key in ("timeout_s", "retries", "backoff_s", "concurrency") if self.generator is not None else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is an endpoint's, and the judge is generators of the run's own: leave it out")
        return self

    @model_validator(mode="after")
    def _a_scale(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) has to be under high ({self.high:g})")
        return self


class RewardsSection(Section):
    """What a response earns: verdict * the environment's reward + the sum of weight * term. Without terms, the environment's
    alone."""

    verdict: float = 1.0
    length: LengthTerm | None = None
    format: FormatTerm | None = None
    overlong: OverlongTerm | None = None
    model: RewardModelTerm | None = None
    judge: JudgeTerm | None = None

    @property
    def terms(self) -> dict[str, _Term]:
        found = {name: getattr(self, name) for name in ("length", "format", "overlong", "model", "judge")}
        return {name: term for name, term in found.items() if term is not None}

    @property
    def plain(self) -> bool:
        """The environment's own reward, and nothing to measure beside it."""
        return self.verdict == 1.0 and not self.terms

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not self.verdict and not any(term.weight for term in self.terms.values()):
            named = " and ".join(["verdict", *(f"{name}.weight" for name in self.terms)])
            raise ValueError(
                f"weights are 0 throughout ({named}), so that every response would earn the same: give one a weight"
            )
        return self


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"'{value}' is no regular expression: {error}") from None
    return value
