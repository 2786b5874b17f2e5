"""The reward model, with a real classifier and tokenizer from a folder: scores are the model's, whatever else is in the batch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeVerifierMember
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from actors.pool import VerifierPool
from actors.rewards.reward_model import RewardModel, batches
from actors.settings import RewardModelSettings
from actors.verifier import ScoreRequest
from envs.types import Message, Observation, Prompt, Status, Verdict
from learner.warmstart.tokenizer import build_tokenizer

ALPHABET = "0123456789+-= abcdefghijklmnopqrstuvwxyz\n"
LIMIT = 64


def saved(folder: Path, labels: int = 1, causal: bool = False) -> str:
    """Saves a random classifier over single characters."""
    tokenizer = build_tokenizer(ALPHABET)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LIMIT,
        initializer_range=0.5,
        pad_token_id=None,
        num_labels=labels,  # type: ignore[call-arg]
    )
    (LlamaForCausalLM if causal else LlamaForSequenceClassification)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "one")


def made(path: str, **settings: Any) -> RewardModel:
    return RewardModel(RewardModelSettings(path=path, **settings))


def ask(response: str, *before: Message) -> ScoreRequest:
    messages = before or (Message("user", "3+4="),)
    return ScoreRequest(f"it 1/0:toy/train/0/{response}", Prompt("toy", "train", 0, messages), (response,))


RESPONSES = [
    ask("7"),
    ask("the answer is 7"),
    ask(""),
    ask("8" * 30),
    ask("7", Message("user", "a"), Message("tool", "b")),
]


def by_hand(path: str, request: ScoreRequest, label: int | None = None) -> float:
    """Scores one text with transformers alone, without any padding."""
    model = LlamaForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    chat = [{"role": m.role, "content": m.content} for m in request.prompt.messages]
    chat.append({"role": "assistant", "content": request.responses[-1]})
    ids = build_tokenizer(ALPHABET).apply_chat_template(chat, tokenize=True, return_dict=False)
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        logits = model.score(hidden)
    return float(logits[0] if label is None else logits.softmax(-1)[label])


def rewards(answers: Sequence[Observation | Verdict]) -> list[float]:
    assert all(isinstance(a, Verdict) and a.status is Status.OK for a in answers), answers
    return [a.reward for a in answers if isinstance(a, Verdict)]


@pytest.mark.parametrize("most", [1, 40, 8192])
def test_scores_are_the_classifiers_own_however_they_are_batched(folder: str, most: int) -> None:
    scores = rewards(made(folder, max_batch_tokens=most).score(RESPONSES))
    assert scores == pytest.approx([by_hand(folder, r) for r in RESPONSES], abs=1e-5)
    assert len(set(scores)) == len(scores)  # the responses are told apart


def test_what_else_is_in_the_batch_changes_nothing(folder: str) -> None:
    model = made(folder)
    together = rewards(model.score(RESPONSES))
    assert together == pytest.approx([rewards(model.score([r]))[0] for r in RESPONSES], abs=1e-5)
    assert together == pytest.approx(rewards(model.score(RESPONSES[::-1]))[::-1], abs=1e-5)
    alone = made(folder, max_batch_tokens=1)  # then to the last bit
    assert rewards(alone.score(RESPONSES)) == rewards(alone.score(RESPONSES[::-1]))[::-1]


def test_a_model_that_reads_both_ways_sees_no_padding(tmp_path: Path) -> None:
    path, tokenizer = str(tmp_path / "bert"), build_tokenizer(ALPHABET)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LIMIT,
        initializer_range=0.5,
        num_labels=1,  # type: ignore[call-arg]
        **sizes,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    model = made(path)
    assert rewards(model.score(RESPONSES)) == pytest.approx([rewards(model.score([r]))[0] for r in RESPONSES], abs=1e-5)


def test_of_several_labels_one_has_its_probability(tmp_path: Path) -> None:
    path = saved(tmp_path / "three", labels=3)
    scores = rewards(made(path, label=2).score(RESPONSES))
    assert scores == pytest.approx([by_hand(path, r, 2) for r in RESPONSES], abs=1e-5)
    assert all(0 <= x <= 1 for x in scores)


def test_a_score_is_normalised(folder: str) -> None:
    raw = rewards(made(folder).score(RESPONSES))
    middle = sorted(raw)[2]
    scores = rewards(made(folder, scale=2.0, shift=-2 * middle, clip=[-0.1, 1e9]).score(RESPONSES))
    assert scores == pytest.approx([max(-0.1, 2 * (x - middle)) for x in raw], abs=1e-4)
    assert -0.1 in scores and max(scores) > 0


def test_without_a_chat_template_the_texts_are_joined(folder: str) -> None:
    model = made(folder, chat_template=False)
    assert model._ids(ask("7").prompt.messages) == list(model.tokenizer("3+4=").input_ids)
    assert rewards(model.score(RESPONSES)) != rewards(made(folder).score(RESPONSES))


def test_lower_precision_is_near(folder: str) -> None:
    exact, near = (rewards(made(folder, precision=p).score(RESPONSES)) for p in ("fp32", "bf16"))
    assert near == pytest.approx(exact, abs=0.2)
    assert near != exact


def test_a_conversation_it_cannot_read_costs_its_own_response(folder: str) -> None:
    good, long, better = made(folder).score([RESPONSES[0], ask("1" * (LIMIT + 1)), RESPONSES[1]])
    assert rewards([good, better]) == rewards(made(folder).score(RESPONSES[:2]))
    assert isinstance(long, Verdict)
    assert (long.status, long.reward) == (Status.ERROR, 0.0)
    assert f"tokens and the model reads 1 to {LIMIT}" in long.detail
    odd = made(folder).score([ask("7", Message("narrator", "x"))])[0]  # type: ignore[arg-type]
    assert isinstance(odd, Verdict) and odd.status is Status.ERROR
    assert "unknown role: narrator" in odd.detail


def test_a_forward_pass_that_fails_and_a_score_that_is_not_finite_are_errors(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(folder)
    with torch.no_grad():
        model.model.score.weight.fill_(math.nan)
    answers = model.score(RESPONSES)
    assert {(a.status, a.detail) for a in answers if isinstance(a, Verdict)} == {
        (Status.ERROR, "the reward model: its score is nan")
    }

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(model.model, "forward", full)
    answer = model.score(RESPONSES[:1])[0]
    assert answer == Verdict(
        0.0, status=Status.ERROR, detail="the reward model: the forward pass failed: CUDA out of memory."
    )


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    """transformers would give it a random score head, and warn."""
    with pytest.raises(
        ValueError, match=r"not a whole sequence classifier: score\.weight are not in it and would be random"
    ):
        made(saved(tmp_path / "causal", causal=True))


@pytest.mark.parametrize(
    ("labels", "settings", "match"),
    [
        (2, {}, "has 2 labels: say whose probability"),
        (2, {"label": 2}, "label is 2 and .* has labels 0 to 1"),
        (1, {"label": 0}, "label is 0 and .* has labels 0 to 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: int, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        made(saved(tmp_path / "some", labels=labels), **settings)


def test_a_template_that_is_asked_for_and_missing_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    assert rewards(made(path).score(RESPONSES))  # left open, the texts are joined
    with pytest.raises(ValueError, match=r"has no chat template: set rewards\.model\.chat_template=false"):
        made(path, chat_template=True)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_batches_hold_each_once_and_keep_to_their_size(lengths: list[int], most: int) -> None:
    made = list(batches(list(enumerate(lengths)), most))
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    for batch in made:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most


def test_requests_of_a_few_milliseconds_go_together() -> None:
    async def main(gather_s: float) -> list[int]:
        member = FakeVerifierMember("reward model 0")
        pool = VerifierPool([member], lambda text: None, gather_s=gather_s)

        async def late(i: int) -> Observation | Verdict:
            await asyncio.sleep(0.002 * i)
            return await pool.score(replace(ask("x"), session=str(i)))

        await asyncio.gather(*(late(i) for i in range(5)))
        return [len(batch) for batch in member.batches]

    assert asyncio.run(main(0.3)) == [5]
    assert len(asyncio.run(main(0.0))) > 1


def test_a_token_that_the_model_has_no_row_for_costs_its_own_response(tmp_path: Path) -> None:
    path = saved(tmp_path / "short")
    tokenizer = build_tokenizer(ALPHABET + "\u00e9")  # one character more than the embedding has rows
    tokenizer.save_pretrained(path)
    model = made(path)
    most = max(tokenizer(ALPHABET + "\u00e9").input_ids)
    character = tokenizer.convert_ids_to_tokens(most)
    lost, fine = model.score([ask(f"7{character}"), ask("7")])
    assert isinstance(lost, Verdict) and lost.status is Status.ERROR
    assert f"it has token {most} and the model has tokens 0 to {most - 1}" in lost.detail
    assert isinstance(fine, Verdict) and fine.status is Status.OK


def test_padding_that_the_model_has_no_row_for_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "padless")
    tokenizer = build_tokenizer(ALPHABET)
    tokenizer.add_special_tokens({"pad_token": "<another>"})
    tokenizer.save_pretrained(path)
    with pytest.raises(ValueError, match=r"pads with token .* they do not belong together"):
        made(path)
