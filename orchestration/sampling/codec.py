"""Converts text to token ids with a model's own tokenizer and chat template: the policy's, and a judge's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envs.quoting import shortened
from envs.types import Message
from orchestration.config.loader import local
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError
from orchestration.text import one_line

GENERATION = "generation_config.json"


class HFCodec:
    """Implements a rollout's Codec and a judge's JudgeCodec on a Hugging Face tokenizer; imports transformers when it is built."""

    def __init__(self, folder: str | Path, chat_template: bool) -> None:
        from learner import chat

        self._impl, self._folder = chat, folder
        self.tokenizer: Any = chat.load_tokenizer(folder)
        # transformers builds an empty tokenizer for a folder that has a config and no tokenizer files.
        if not self.tokenizer("1 a").input_ids:
            raise ValueError("it has no vocabulary: put the model's tokenizer files beside its config.json")
        self._chat = chat_template and bool(self.tokenizer.chat_template)
        self._generation = chat.saved_json(folder, GENERATION)
        self.stop_token_ids = chat.stop_token_ids(self.tokenizer, self._generation.get("eos_token_id"))

    def save(self, folder: Path) -> None:
        """Saves tokenizer and generation config, which the weights' own save leaves out."""
        self.tokenizer.save_pretrained(folder)
        if self._generation:
            (folder / GENERATION).write_text(json.dumps(self._generation, indent=2) + "\n", "utf-8")

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        if self._chat:
            return self._templated(messages, lambda: self._impl.render(self.tokenizer, messages))
        return tuple(self.tokenizer("\n".join(m.content for m in messages)).input_ids)

    def render_observation(
        self, before: Sequence[Message], observation: Sequence[Message], response_ids: Sequence[int]
    ) -> tuple[int, ...]:
        if self._chat:
            return self._templated(
                (*before, *observation),
                lambda: self._impl.render_observation(self.tokenizer, before, observation, response_ids),
            )
        text = "\n" + "\n".join(m.content for m in observation) + "\n"
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _templated(self, messages: Sequence[Message], render: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """Returns what `render` returns. Raises ConfigError where the template, which is the model's, fails on these roles."""
        try:
            return render()
        except Exception as error:
            roles = ", ".join(dict.fromkeys(message.role for message in messages))
            raise ConfigError(
                f"the chat template of {self._folder} fails on messages of {roles}: {_reason(error)}; use another model, give it "
                "another template, or set model.chat_template=false"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        return self._impl.decode(self.tokenizer, ids)

    def defuse(self, text: str) -> str:
        return self._impl.defuse(self.tokenizer, text)


def load_codec(key: str, path: str, chat_template: bool) -> HFCodec:
    """Loads a tokenizer. Raises ConfigError, which names the configuration's `key`, for a model without a usable one."""
    try:
        codec = HFCodec(local(path), chat_template)
        codec.render([Message("user", "a")])
    except Exception as error:  # whatever transformers, tokenizers and Jinja raise for the files of a model
        raise ConfigError(f"the tokenizer of {key} {shortened(path)} cannot be used: {_reason(error)}") from error
    return codec


def _reason(error: Exception) -> str:
    text = shortened(one_line(error), 500)
    return text if isinstance(error, OSError | ValueError | ConfigError) else f"{type(error).__name__}: {text}"


class Codecs(NamedTuple):
    """Holds the codecs of the models of one run that are given text."""

    policy: HFCodec
    judge: HFCodec | None  # None unless the run has generators that judge


def load_codecs(config: RunConfig) -> Codecs:
    """Loads the codecs of a run. Raises ConfigError for a model without a usable tokenizer."""
    judge = config.judge_generator
    return Codecs(
        load_codec("model.path", config.model.path, config.model.chat_template),
        None if judge is None else load_codec("rewards.judge.generator.path", judge.path, judge.chat_template),
    )
