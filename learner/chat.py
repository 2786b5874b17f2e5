"""Turns chats into token ids and responses into text, for any Hugging Face tokenizer.

A tokenizer keeps whatever its own chat template does against typed special tokens; `defuse` adds to it where a text comes from
somebody who gains by typing them. transformers is imported where it is needed, so that this module costs nothing to import.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# transformers leaves its tokenizers' attributes and the results of apply_chat_template untyped.

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that belong to no model family


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder or hub name.

    One whose saved class belongs to no model family is loaded as it was saved: AutoTokenizer goes by the model's type instead, and
    beside a Qwen2 config would put Qwen2's rules for splitting text around any vocabulary; ours lost its spaces.
    """
    from transformers import PreTrainedTokenizerFast

    if saved_json(path, "tokenizer_config.json").get("tokenizer_class") in PLAIN:
        return PreTrainedTokenizerFast.from_pretrained(path)
    from transformers import AutoTokenizer  # which imports torch and most of transformers: seconds

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)  # left out, transformers asks on the terminal


def saved_json(path: str | Path, name: str) -> dict[str, Any]:
    """Returns what a JSON file of a model's folder or hub name says; nothing where there is none. ValueError for other JSON."""
    from transformers.utils.hub import cached_file

    file = Path(path) / name
    if not Path(path).is_dir():
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        file = None if found is None else Path(found)
    if file is None or not file.is_file():
        return {}
    value = json.loads(file.read_text("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"its {name} holds no JSON object")
    return value


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Returns the ids of the chat template over `messages` with the generation prompt: what goes before a response.

    Example: render(tokenizer, [Message("user", "1+1=")]) -> ids of <user> 1 + 1 = <end> <assistant>.
    Raises ValueError when the tokenizer has no chat template.
    """
    _check_template(tokenizer)
    encoded = tokenizer.apply_chat_template(_as_dicts(messages), tokenize=True, add_generation_prompt=True)
    return _ids(encoded)


def render_whole(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Returns the ids of the chat template over `messages` as they stand: what a reward model reads.

    Raises ValueError when the tokenizer has no chat template.
    """
    _check_template(tokenizer)
    return _ids(tokenizer.apply_chat_template(_as_dicts(messages), tokenize=True, add_generation_prompt=False))


def render_observation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    observation: Sequence[Message],
    response_ids: Sequence[int],
) -> tuple[int, ...]:
    """Returns the ids to append after a sampled response so that the model can answer `observation`.

    messages     what came before the response, the response itself left out (it stays the ids that were sampled)
    observation  the messages the environment answered with, at least one
    response_ids the sampled ids; only their last one is looked at: where it already is the token with which the
                 template ends an assistant turn, that token is not repeated
    The ids are what the template puts after a stand-in response, tokenised on their own: nothing is re-tokenised and
    ids(context) + response_ids + the result is the sequence to generate from. Templates that rewrite earlier turns
    (dropping their reasoning, say) are thereby kept append-only.
    Raises ValueError for an empty observation, a tokenizer without a chat template, or a template that drops or repeats
    a response.
    """
    if not observation:
        raise ValueError("the observation holds no message: there is nothing to render after the response")
    suffix = _ids(tokenizer(_after_response(tokenizer, messages, observation), add_special_tokens=False))
    if suffix and response_ids and response_ids[-1] == suffix[0]:
        return suffix[1:]
    return suffix


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, generation_eos: int | Sequence[int] | None = None
) -> tuple[int, ...]:
    """Returns the ids that end a response, ascending: the tokenizer's eos, `generation_eos` and the template's end of turn.

    generation_eos: `eos_token_id` of the model's generation config.

    The last matters for base models whose eos is <|endoftext|> while their template closes a turn with <|im_end|>. It
    counts only when it is a special token. Raises ValueError when none of the three names one.
    """
    stops: set[int] = set()
    for eos in (tokenizer.eos_token_id, generation_eos):
        if isinstance(eos, int):
            stops.add(eos)
        elif eos is not None:
            stops.update(int(token) for token in eos)
    if tokenizer.chat_template:
        tail = _ids(tokenizer(_after_response(tokenizer, [Message("user", "a")], []), add_special_tokens=False))
        stops.update(token for token in tail[:1] if token in tokenizer.all_special_ids)
    if not stops:
        raise ValueError("neither the tokenizer nor the generation config names an end token: responses could not end")
    return tuple(sorted(stops))


@lru_cache(maxsize=8)
def _special_of(tokenizer: PreTrainedTokenizerBase) -> tuple[frozenset[int], Any, Any]:
    """Returns a tokenizer's special ids, its padding and its end. transformers looks them all up anew at every question, which for
    models with some hundred reserved tokens takes longer than to decode a response."""
    return frozenset(tokenizer.all_special_ids), tokenizer.pad_token_id, tokenizer.eos_token_id


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Returns the text of a response, without trailing padding and the special token that ended it.

    A special token inside the response becomes U+FFFD instead of vanishing: what the policy sampled must not be cleaned up
    before it is scored, or noise tokens would be free entropy.
    """
    special, pad, eos = _special_of(tokenizer)
    kept = list(ids)
    while kept and kept[-1] == pad:
        kept.pop()
    # Where padding and the end share an id, the loop above has dropped the end already.
    ended = len(kept) < len(ids) and pad == eos
    if kept and not ended and kept[-1] in special:
        kept.pop()
    runs: list[list[int]] = [[]]
    for token in kept:
        if token in special:
            runs.append([])
        else:
            runs[-1].append(token)
    texts = (tokenizer.decode(run, skip_special_tokens=True, clean_up_tokenization_spaces=False) for run in runs)
    return REPLACEMENT.join(str(text) for text in texts)


def defuse(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Returns the text with a zero-width space in everything that this tokenizer would read as a special token.

    It is meant for texts whose author gains by ending his own turn and beginning another's. Half a surrogate pair, which no
    tokenizer reads, becomes "?"."""
    text = text.encode("utf-8", "replace").decode()
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    for special in sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True):
        if len(special) == 1:
            text = text.replace(special, REPLACEMENT)
        else:  # where one begins, also within another: |a|a| is |a| twice
            text = re.sub(
                f"{re.escape(special[0])}(?={re.escape(special[1:])})", lambda match: f"{match.group()}\u200b", text
            )
    return text


def _after_response(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], observation: Sequence[Message]
) -> str:
    """Returns what the template writes after an assistant response; with an observation, up to the next generation prompt."""
    _check_template(tokenizer)
    stand_in = "STANDINRESPONSE"
    while any(stand_in in message.content for message in (*messages, *observation)):
        stand_in += "X"
    text = tokenizer.apply_chat_template(
        _as_dicts((*messages, Message("assistant", stand_in), *observation)),
        tokenize=False,
        add_generation_prompt=bool(observation),
    )
    count = str(text).count(stand_in)
    if count != 1:
        raise ValueError(f"the chat template shows an assistant response {count} times, not once: cannot append turns")
    return str(text).partition(stand_in)[2]


def _check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template: set one or use an instruction-tuned model")


def _as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _ids(encoded: Any) -> tuple[int, ...]:
    """Returns the ids of what transformers answers: 5 gives a mapping where 4 gave a list, either may hold a batch of one."""
    if isinstance(encoded, Mapping):
        encoded = encoded["input_ids"]
    if len(encoded) and not isinstance(encoded[0], int):
        encoded = encoded[0]
    return tuple(int(token) for token in encoded)
