"""Implements `isentrope chat MODEL`: a conversation with a model or a checkpoint on the terminal, with transformers alone."""

from __future__ import annotations

import sys
from typing import Any

from envs.types import Message
from learner import chat as templates
from orchestration.commands.model_source import find_model
from orchestration.errors import ConfigError
from orchestration.text import one_line


def run(model: str, system: str, max_tokens: int, temperature: float, seed: int, raw: bool) -> list[Message]:
    """Talks until the input ends, and returns what was said. An empty line begins a new conversation.

    raw: every line is a text that the model continues, without the chat template and without what was said before.
    """
    from transformers import AutoModelForCausalLM, TextStreamer, set_seed

    source = find_model(model).whole()
    try:
        tokenizer: Any = templates.load_tokenizer(source.model)
        weights: Any = AutoModelForCausalLM.from_pretrained(source.model, dtype="auto").eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the model {source.model} cannot be loaded: {one_line(error)}") from error
    if not raw and not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer of {source.model} has no chat template: give --raw, to have it continue your text"
        )
    set_seed(seed)
    start = [Message("system", system)] if system and not raw else []
    said, room = list(start), _positions(weights)
    stops = list(templates.stop_token_ids(tokenizer, weights.generation_config.eos_token_id))
    sampled = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    while (line := _line()) is not None:
        if not line:
            said = list(start)
            continue
        said = [*(start if raw else said), Message("user", line)]
        ids = tuple(tokenizer(line).input_ids) if raw else templates.render(tokenizer, said)
        if len(ids) + max_tokens > room:
            raise ConfigError(
                f"the conversation has {len(ids)} tokens and --max-tokens is {max_tokens}, together more than the model's {room} "
                "positions: begin a new one, or give fewer"
            )
        encoded = tokenizer.pad({"input_ids": [list(ids)]}, return_tensors="pt").to(weights.device)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer = weights.generate(
            **encoded,
            max_new_tokens=max_tokens,
            eos_token_id=stops,
            pad_token_id=stops[0],
            streamer=streamer,
            **sampled,
        )
        said.append(Message("assistant", templates.decode(tokenizer, answer[0][len(ids) :].tolist())))
    return said


def _line() -> str | None:
    """Returns the next line of the terminal, None at its end."""
    if sys.stdin.isatty():
        sys.stdout.write("> ")
        sys.stdout.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None


def _positions(weights: Any) -> int:
    positions = weights.config.get_text_config().to_dict().get("max_position_embeddings")
    return positions if isinstance(positions, int) else sys.maxsize
