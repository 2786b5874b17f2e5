"""The character tokenizer round-trips and cannot be injected into; turns are appended without re-tokenising responses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.types import Message
from learner.chat import REPLACEMENT, decode, load_tokenizer, render, render_observation, stop_token_ids
from learner.warmstart.tokenizer import ASSISTANT, END, PAD, SENTINEL, SPECIAL_TOKENS, TOOL, UNK, USER, build_tokenizer

ALPHABET = "0123456789+-*= \n\t<>abcdenrsu/ée\u0301"
TOKENIZER = build_tokenizer(ALPHABET)
IDS = dict(zip(SPECIAL_TOKENS, range(7), strict=True))
inside = st.text(alphabet=ALPHABET, max_size=30)
pieces = st.one_of(inside, st.sampled_from([*SPECIAL_TOKENS, "<end>", "<user>", SENTINEL, "中"]))
typed = st.lists(pieces, max_size=6).map("".join)
roles = st.sampled_from(["system", "user", "tool"])

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def chatml():
    """Returns a byte-level tokenizer with a Qwen-like template, whose eos is not the token that ends a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHATML,
    )


@given(inside)
def test_round_trip_is_lossless_one_token_a_character(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text) and all(i >= 7 for i in ids)
    assert TOKENIZER.decode(ids) == text == decode(TOKENIZER, ids)


def test_ids_are_fixed_by_the_set_of_characters() -> None:
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(7))
    assert build_tokenizer(reversed(ALPHABET)).get_vocab() == TOKENIZER.get_vocab()
    assert len(TOKENIZER) == 7 + len(set(ALPHABET))


@settings(max_examples=200)
@given(typed)
def test_typed_text_never_becomes_a_special_token(text: str) -> None:
    ids = render(TOKENIZER, [Message("user", text)])
    assert ids[0] == IDS[USER] and ids[-2:] == (IDS[END], IDS[ASSISTANT])
    assert len(ids) == len(text) + 3
    expected = [TOKENIZER.get_vocab().get(c, IDS[UNK]) if c != SENTINEL else IDS[UNK] for c in text]
    assert list(ids[1:-2]) == expected


@given(roles, inside, inside, st.lists(st.tuples(roles, typed), min_size=1, max_size=3), st.booleans())
def test_appending_an_observation_is_a_pure_suffix(role, asked, response, answers, ended) -> None:
    messages, observation = [Message(role, asked)], [Message(r, text) for r, text in answers]
    context = render(TOKENIZER, messages)
    response_ids = (*TOKENIZER(response, add_special_tokens=False)["input_ids"], *((IDS[END],) if ended else ()))
    appended = render_observation(TOKENIZER, messages, observation, response_ids)
    conversation = render(TOKENIZER, [*messages, Message("assistant", response), *observation])
    assert (*context, *response_ids, *appended) == conversation


def test_chatml_observation_skips_the_end_that_was_sampled(chatml) -> None:
    messages, observation = [Message("user", "STANDINRESPONSE?")], [Message("tool", "42")]
    start, end = chatml.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    appended = render_observation(chatml, messages, observation, (5, 6))
    assert chatml.decode(appended) == "<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    assert appended[0] == end and appended.count(start) == 2
    assert render_observation(chatml, messages, observation, (5, 6, end)) == appended[1:]


def test_observation_errors(chatml) -> None:
    with pytest.raises(ValueError, match="no message"):
        render_observation(TOKENIZER, [Message("user", "1")], [], (1,))
    bare = build_tokenizer("a")
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        render(bare, [Message("user", "a")])
    bare.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="0 times"):
        render_observation(bare, [Message("user", "a")], [Message("user", "a")], ())


def test_stop_tokens_union_eos_generation_config_and_end_of_turn(chatml) -> None:
    assert stop_token_ids(TOKENIZER) == (IDS[END],)
    eos, end = chatml.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert stop_token_ids(chatml) == tuple(sorted((eos, end)))
    assert stop_token_ids(chatml, [3, end]) == tuple(sorted((3, eos, end)))
    none = build_tokenizer("a")
    none.eos_token, none.chat_template = None, None
    with pytest.raises(ValueError, match="end token"):
        stop_token_ids(none)


def test_decode_drops_the_end_and_shows_special_tokens_inside(chatml) -> None:
    one, two = (TOKENIZER.get_vocab()[character] for character in "12")
    assert decode(TOKENIZER, [one, two, IDS[END], IDS[PAD], IDS[PAD]]) == "12"
    assert decode(TOKENIZER, [one, IDS[PAD], two, IDS[TOOL], IDS[END]]) == f"1{REPLACEMENT}2{REPLACEMENT}"
    assert decode(TOKENIZER, []) == ""
    eos, end = chatml.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert decode(chatml, [*chatml("hi")["input_ids"], end]) == "hi"
    assert decode(chatml, [*chatml("hi")["input_ids"], end, eos]) == f"hi{REPLACEMENT}"


@pytest.mark.parametrize("alphabet", [[], ["ab"], [""], [SENTINEL], ["\ud800"]])
def test_bad_alphabets_are_refused(alphabet: list[str]) -> None:
    with pytest.raises(ValueError, match=r"alphabet"):
        build_tokenizer(alphabet)


@pytest.mark.slow
def test_loads_in_a_fresh_process(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    messages = [{"role": "user", "content": f"1 <end>{END}\n"}]
    program = (
        "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        f"print(list(t.apply_chat_template({messages!r}, add_generation_prompt=True)['input_ids']), t.eos_token_id)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    expected = render(TOKENIZER, [Message("user", messages[0]["content"])])
    assert done.stdout.split("\n")[0] == f"{list(expected)} {IDS[END]}"


@pytest.mark.parametrize("family", ["Qwen2Config", "Qwen3Config", "LlamaConfig", "GemmaConfig"])
def test_a_model_of_any_family_keeps_its_own_tokenizer(tmp_path: Path, family: str) -> None:
    """Beside a Qwen2 config AutoTokenizer splits text as Qwen2 does, and drops the spaces."""
    import transformers

    getattr(transformers, family)().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    text = "1 2 3+4 = a \n"
    assert load_tokenizer(tmp_path)(text).input_ids == TOKENIZER(text).input_ids


def test_a_tokenizer_of_a_family_is_loaded_as_one(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2Tokenizer

    Qwen2Config().save_pretrained(tmp_path)
    vocabulary = {c: i for i, c in enumerate("abc123")}
    Qwen2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path)
    assert type(load_tokenizer(tmp_path)) is Qwen2Tokenizer
