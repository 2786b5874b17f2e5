"""Converts text to token ids with a model's own tokenizer and chat template: the policy's, and a judge's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envs.types import Message
from orchestration.config.loader import local
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError


class HFCodec:
    """Implements a rollout's Codec and a judge's JudgeCodec on a Hugging Face tokenizer; imports transformers when it is built."""

    def __init__(self, folder: str | Path, chat_template: bool) -> None:
        from transformers import GenerationConfig

        from learner import chat

        self._impl = chat
        self.tokenizer: Any = chat.load_tokenizer(folder)
        # transformers builds an empty tokenizer for a folder that has a config and no tokenizer files.
        if not self.tokenizer("1 a").input_ids:
            raise ValueError("it has no vocabulary: put the model's tokenizer files beside its config.json")
        self._chat = chat_template and bool(self.tokenizer.chat_template)
        config = None
        if (Path(folder) / "generation_config.json").is_file() or not Path(folder).is_dir():
            config = GenerationConfig.from_pretrained(folder)
        self._generation = config
        self.stop_token_ids = chat.stop_token_ids(self.tokenizer, config)

    def save(self, folder: Path) -> None:
        """Saves tokenizer and generation config, which the weights' own save leaves out."""
        self.tokenizer.save_pretrained(folder)
        if self._generation is not None:
            self._generation.save_pretrained(folder)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        if self._chat:
            return self._impl.render(self.tokenizer, messages)
        return tuple(self.tokenizer("\n".join(m.content for m in messages)).input_ids)

    def render_observation(
        self, before: Sequence[Message], observation: Sequence[Message], response_ids: Sequence[int]
    ) -> tuple[int, ...]:
        if self._chat:
            return self._impl.render_observation(self.tokenizer, before, observation, response_ids)
        text = "\n" + "\n".join(m.content for m in observation) + "\n"
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self._impl.decode(self.tokenizer, ids)

    def defuse(self, text: str) -> str:
        return self._impl.defuse(self.tokenizer, text)


def load_codec(key: str, path: str, chat_template: bool) -> HFCodec:
    """Loads a tokenizer. Raises ConfigError, which names the configuration's `key`, for a model without a usable one."""
    try:
        return HFCodec(local(path), chat_template)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the tokenizer of {key} {path} cannot be used: {reason}") from None


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
