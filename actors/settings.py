"""Declares what can be set about generators, verifiers, sampling and reward terms. Without torch, vLLM and Ray.

The sections `generators`, `verifiers` and `sampling` of a recipe are these classes, those of `rewards` are composed of them in
orchestration/config/reward_sections.py, and actors read the same objects: nothing is declared twice and nothing is copied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from learner.settings import LoraSettings, ModelPath, Settings, TrainerPrecision

EngineDtype = Literal["float32", "bfloat16", "float16"]
DTYPE_OF: dict[TrainerPrecision, EngineDtype] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# What vLLM makes of weights in a larger type when they arrive: it rounds every version anew, as it rounded the first.
Quantization = Literal["fp8_per_tensor", "fp8_per_channel", "fp8_per_block", "int8_per_channel_weight_only"]
MOST_ACTORS = 10_000  # of one kind
MEMORY_SHARE = 0.85  # of its GPU, or of its share of one, for a generator's weights and KV cache
# Of the learner's GPU: its weights and the forward passes of checks stay there while the generator is awake.
COLOCATED_SHARE = 0.5
KEEPS_MEMORY = (
    "an engine that sleeps frees nothing with expandable segments, and generators.colocated has it sleep while the learner trains: "
    "take expandable_segments out of that variable, or generators.colocated out of the recipe"
)
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
CPU_KV_MB = 256
MAX_STOP = 64  # characters of a text that ends a response: each token is searched for it together with those before
RUBRIC = """\
Judge the response to the task below. What counts is whether it does what was asked, correctly and completely.

{prompt}

{response}

Explain in a sentence or two, then end with one line: SCORE: n, where n is from 0 (useless) to 10 (perfect)."""
SCORE = r"SCORE:\s*([0-9]+(?:\.[0-9]+)?)"


def cpu_threads(cpus: float, gpus: float) -> int | None:
    """Returns the threads of an actor that works on the CPU; None on a GPU."""
    return None if gpus else max(1, int(cpus))


def keeps_memory(variables: Mapping[str, str]) -> str | None:
    """Returns what among a process's variables keeps a sleeping engine from freeing memory, as "NAME=value"; None without."""
    for name in ALLOCATOR_VARIABLES:
        if re.search(r"expandable_segments\s*:\s*true", variables.get(name, ""), re.IGNORECASE):
            return f"{name}={variables[name]}"
    return None


# --- sampling -------------------------------------------------------------------------------------------------------------


class SamplingSettings(Settings):
    """Limits and shapes what the policy samples: section `sampling`."""

    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)  # a run that trains takes 1 alone: orchestration/config/checks.py
    max_tokens: int = Field(ge=1)  # of one response
    # Texts that end a response. What follows one is not scored; its tokens are trained on, as those that the policy sampled.
    stop: list[str] = Field(default=[])
    max_turns: int = Field(default=8, ge=1)
    max_total_tokens: int | None = Field(default=None, ge=1)  # of all responses of a trajectory; None: no such limit
    # Of a trajectory's responses, each from the engine step of its first token on, and of its verdicts; looked at between its
    # turns, so a response under way is finished. What ends there depends on the machine: a resumed run no longer equals one that
    # was never stopped.
    max_seconds: float | None = Field(default=None, gt=0)

    @field_validator("stop")
    @classmethod
    def _texts(cls, value: list[str]) -> list[str]:
        if any(not text or len(text) > MAX_STOP for text in value):
            raise ValueError(f"a text that ends a response has 1 to {MAX_STOP} characters: give others")
        return value


# --- actors -----------------------------------------------------------------------------------------------------------------


class GeneratorSettings(Settings):
    """Places and sizes the policy's generators: section `generators`."""

    count: int = Field(default=1, ge=1, le=MOST_ACTORS)
    # How few and how many there may be while the run goes on. With `min` a run starts as soon as there is room for so many, and
    # takes the others when there is room for them.
    min: int | None = Field(default=None, ge=1, le=MOST_ACTORS)
    max: int | None = Field(default=None, ge=1, le=MOST_ACTORS)
    tensor_parallel: int = Field(default=1, ge=1, le=MOST_ACTORS)
    dtype: EngineDtype | None = None  # None: what `precision` says
    max_model_len: int = Field(ge=2)  # tokens, prompt and response together
    max_num_seqs: int = Field(default=256, ge=1)  # responses sampled at the same time
    kv_cache_mb: int | None = Field(default=None, ge=1)  # None on CUDA: gpu_memory_utilization decides
    # Of the GPU; None: 0.85 of the share in `gpus`.
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    enforce_eager: bool | None = None  # None: without CUDA graphs on a CPU, with them on a GPU
    prefix_caching: bool = True
    max_num_batched_tokens: int | None = Field(default=None, ge=1)  # of one engine step; None: vLLM's choice
    kv_cache_dtype: Literal["auto", "fp8_e4m3", "fp8_e5m2"] = "auto"
    quantization: Quantization | None = None  # of the weights, as they arrive
    async_scheduling: bool = False
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)  # 1, 0, or a share of a GPU that others have the rest of
    colocated: bool = (
        False  # on the learner's GPUs: asleep while it trains, as its optimiser's state is while they generate
    )
    timeout_s: float = Field(default=120, gt=0)  # without an engine step or a response, while there is work

    @model_validator(mode="after")
    def _count_within(self) -> Self:
        self.check_count(self.count)
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        tokens = self.max_num_batched_tokens
        if tokens is not None and tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {tokens} and max_num_seqs {self.max_num_seqs}: a step has a token of each response "
                "that is sampled, give the first at least the second"
            )
        if tokens is not None and not self.gpus and tokens < self.max_model_len:
            raise ValueError(
                f"max_num_batched_tokens is {tokens} and max_model_len {self.max_model_len}: on a CPU a prompt is computed in one "
                "step, give the first at least the second"
            )
        return self

    @model_validator(mode="after")
    def _needs_a_gpu(self) -> Self:
        wanted = {
            "enforce_eager": "false" if self.enforce_eager is False else None,
            "quantization": self.quantization,
            "async_scheduling": "true" if self.async_scheduling else None,
            "colocated": "true" if self.colocated else None,
        }
        for key, value in wanted.items():
            if value is not None and not self.gpus:
                raise ValueError(f"{key} is {value} and gpus 0: vLLM does that on GPUs alone, leave it out")
        return self

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if self.colocated and (self.min is not None or self.max is not None):
            raise ValueError(
                "colocated is true: there is one generator on each of the learner's GPUs, leave min and max out"
            )
        return self

    def check_count(self, count: int) -> None:
        """Raises ValueError where there may not be so many generators."""
        if self.colocated and count != self.count:
            raise ValueError(f"{count} generators, and generators.colocated keeps one on each of the learner's GPUs")
        low, high = self.min or 1, self.max or MOST_ACTORS
        if not low <= count <= high:
            raise ValueError(
                f"{count} generators, and there have to be {low} to {high} (generators.min, generators.max)"
            )

    @property
    def least(self) -> int:
        """Returns how many there have to be for a run to start."""
        return self.count if self.min is None else self.min

    @property
    def kv_cache_bytes(self) -> int | None:
        """Returns the memory of the KV cache; None on a GPU where nothing is set: `memory_share` decides there."""
        megabytes = CPU_KV_MB if self.kv_cache_mb is None and not self.gpus else self.kv_cache_mb
        return None if megabytes is None else megabytes * 2**20

    @property
    def eager(self) -> bool:
        """Returns whether the engine runs without CUDA graphs."""
        return not self.gpus if self.enforce_eager is None else self.enforce_eager

    @property
    def memory_share(self) -> float:
        """Returns the share of a GPU's memory that the engine may have, 0 to 1."""
        own = COLOCATED_SHARE if self.colocated else MEMORY_SHARE * (self.gpus or 1.0)
        return self.gpu_memory_utilization or own


class JudgeGeneratorSettings(GeneratorSettings):
    """Places generators of the run's own that only judge: their model stays as it is."""

    path: ModelPath
    chat_template: bool = True  # false: the messages' text is joined as it is

    @model_validator(mode="after")
    def _stays(self) -> Self:
        if self.min is not None or self.max is not None:
            raise ValueError("generators that judge keep their number: leave min and max out, they are of `generators`")
        if self.colocated:
            raise ValueError("generators that judge have GPUs of their own: leave colocated out, it is of `generators`")
        return self


class VLLMSettings(Settings):
    """Holds what a vLLM engine is built from: a section, and what follows for this engine from the rest of the run.

    An end-of-sequence id does not belong here: a response ends at `SamplingParams.stop_token_ids` and nowhere else.
    """

    model: str  # a Hugging Face folder; its weights are policy version `version`
    generator: GeneratorSettings
    dtype: EngineDtype
    fp32_head: bool = False  # the LM head's product in float32, as in the trainer
    lora: LoraSettings | None = None  # the adapter that arrives as weights; the model's own stay what they are
    seed: int = 0
    version: int = 0


class VerifierSettings(Settings):
    """Places verifiers: section `verifiers`."""

    count: int = Field(default=1, ge=1, le=MOST_ACTORS)
    cpus: float = Field(default=0.1, ge=0)
    timeout_s: float = Field(default=10, gt=0)  # of one verdict
    # An environment that raises for more than this share of its responses, for so many iterations in a row, ends the run; 1: never.
    max_error_share: float = Field(default=0.5, ge=0, le=1)
    error_iterations: int = Field(default=3, ge=1)


# --- terms of a reward ------------------------------------------------------------------------------------------------------


class TermSettings(Settings):
    """Weighs one term of a reward."""

    weight: float  # may be negative; 0 measures the term without rewarding it


class LengthSettings(TermSettings):
    """Rewards by the tokens of all of a trajectory's responses: from the first value at `free` tokens to the second at `full`."""

    shape: Literal["linear", "cosine"] = "linear"
    free: int = Field(default=0, ge=0)
    full: int | None = Field(default=None, ge=1)  # None: sampling.max_tokens
    # Of responses that the environment calls correct, and of the others.
    correct: list[float] = Field(default=[0.0, -1.0], min_length=2, max_length=2)
    wrong: list[float] = Field(default=[0.0, -1.0], min_length=2, max_length=2)


class FormatSettings(TermSettings):
    """Rewards the share of a trajectory's responses that match as a whole."""

    pattern: str | None = None  # None: the environment's own form

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return value if value is None else _pattern(value)


class OverlongSettings(TermSettings):
    """Adds DAPO's soft punishment: from 0 at sampling.max_tokens - buffer to -1 at sampling.max_tokens, of the longest response."""

    buffer: int = Field(ge=1)  # tokens


class FunctionSettings(TermSettings):
    """Names a function of your own with TRL's or verl's signature; its name alone, in place of the section, is its path."""

    weight: float = 1.0
    path: str = Field(min_length=1)  # my.py:score, with my.py beside the recipe
    reference: str = "answer"  # the key of a prompt's task that verl's ground_truth is
    chat: bool = False  # whether TRL's prompts and completions are lists of messages, not text


class RewardModelSettings(Settings):
    """Names a Hugging Face sequence classifier and places its actors. Its score is scale * raw + shift, cut to `clip`."""

    path: ModelPath
    count: int = Field(default=1, ge=1, le=MOST_ACTORS)
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
    timeout_s: float = Field(default=300, gt=0)  # of one batch: without progress

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip goes from {self.clip[0]:g} to {self.clip[1]:g}: the first has to be the smaller")
        if self.scale == 0:
            raise ValueError(
                "scale is 0, so that every response would have the same score: leave it out or leave the term out"
            )
        return self


class JudgeSettings(Settings):
    """Says what a language model is asked about a response and how its answer is read. Its score, from `low` to `high`, becomes
    0 to 1."""

    rubric: str = RUBRIC  # {prompt}, {response} and {reference} are replaced, each within delimiters of its own
    reference: str = "answer"  # the key of a prompt's task that {reference} is
    score: str = SCORE  # a regular expression with one group; of several matches the last
    low: float = 0.0
    high: float = 10.0
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    cache_entries: int = Field(default=10_000, ge=0)
    cache_file: str | None = None  # answers kept over runs

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
    def _a_scale(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) has to be under high ({self.high:g})")
        return self


class EndpointSettings(Settings):
    """Says where an OpenAI-compatible endpoint is and how patiently it is asked. The key itself is in no configuration."""

    url: str | None = None  # up to and without /chat/completions: http://localhost:8000/v1
    model: str | None = Field(default=None, min_length=1)
    api_key_env: str | None = None  # the NAME of an environment variable
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
            raise ValueError("its port is not a number from 0 to 65535, or its address is not valid") from None
        if parts.username or parts.password or parts.query or parts.fragment:
            # Not shown: whatever stands there may be a secret.
            raise ValueError(
                "it has more than an address: a key belongs in an environment variable, whose name goes to api_key_env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is not an address of an endpoint: give something like http://localhost:8000/v1")
        return value.rstrip("/").removesuffix("/chat/completions")

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            # Not shown: somebody may have written the key itself.
            raise ValueError("it is not the name of an environment variable: give the name, never the key itself")
        return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"'{value}' is not a regular expression: {error}") from None
    return value
