"""Builds the character-level tokenizer of models that are made here.

Every special token starts with U+E000, a private-use character that alphabets refuse, and the chat template replaces U+E000 in a
message by U+FFFD before it adds its own. A user's "<end>" is therefore five characters, and the real token cannot be typed at all.
transformers is imported where it is needed, so that this module costs nothing to import.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SENTINEL = "\ue000"
PAD, UNK, END, SYSTEM, USER, ASSISTANT, TOOL = (
    f"{SENTINEL}<{name}>" for name in ("pad", "unk", "end", "system", "user", "assistant", "tool")
)
SPECIAL_TOKENS = (PAD, UNK, END, SYSTEM, USER, ASSISTANT, TOOL)  # ids 0..6, in this order
PAD_ID, END_ID = 0, 2
# Jinja reads \u escapes inside its own string literals, so the saved file stays plain ASCII.
CHAT_TEMPLATE = (
    r"{%- for message in messages -%}"
    r"{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}"
    r"{{- raise_exception('unknown role: ' + message['role']) -}}"
    r"{%- endif -%}"
    r"{{- '\ue000<' + message['role'] + '>' + message['content'] | replace('\ue000', '\ufffd') + '\ue000<end>' -}}"
    r"{%- endfor -%}"
    r"{%- if add_generation_prompt -%}{{- '\ue000<assistant>' -}}{%- endif -%}"
)


def build_tokenizer(alphabet: Iterable[str]) -> PreTrainedTokenizerFast:
    """Builds a tokenizer of one token a character: lossless over the alphabet, other characters become <unk>.

    alphabet: single characters (code points) in any order, repeats allowed; the ids depend only on the set. Special
    tokens take ids 0-6, so the vocabulary has 7 + len(set(alphabet)) entries. A chat is <user>text<end><assistant>.
    Raises ValueError for an empty alphabet, an entry that is not one character, U+E000 or a surrogate.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted(set(alphabet))
    if not characters:
        raise ValueError("the tokenizer's alphabet is empty: it needs at least one character")
    for character in characters:
        if len(character) != 1:
            raise ValueError(f"an alphabet entry is one character, but {character!r} has {len(character)}")
        if character == SENTINEL or "\ud800" <= character <= "\udfff":
            raise ValueError(f"U+{ord(character):04X} cannot be in an alphabet: special token mark or surrogate")
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *characters))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    # Oniguruma's (?m) lets the dot match newlines; no normalizer, so composed and decomposed forms stay apart.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT, TOOL],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
