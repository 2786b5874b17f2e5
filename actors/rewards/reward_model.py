"""Scores the last response of a conversation by a reward model: a Hugging Face sequence classifier.

It answers `ScoreRequest`s like a verifier does, so that one kind of pool serves both. Requests of one call are scored together, by
length, in batches of at most `max_batch_tokens` token slots. What else is in a batch can move a score's last digits, and which
requests meet there is a matter of time: with max_batch_tokens=1 each is scored alone, and a resumed run has the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from actors.settings import RewardModelSettings, cpu_threads
from actors.verifier import ScoreRequest
from envs.reward_terms.length import normalised
from envs.types import Message, Observation, Status, Verdict
from learner import chat

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class RewardModel:
    """Scores conversations; built with a ValueError, one sentence, for a model or tokenizer that cannot. Not thread-safe."""

    def __init__(self, settings: RewardModelSettings) -> None:
        self.settings = settings
        self.done = 0  # batches scored: it grows as long as work makes progress
        if (threads := cpu_threads(settings.cpus, settings.gpus)) is not None:
            torch.set_num_threads(threads)
        self.tokenizer: Any = chat.load_tokenizer(settings.path)
        self._chat = bool(self.tokenizer.chat_template) if settings.chat_template is None else settings.chat_template
        if self._chat and not self.tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {settings.path} has no chat template: set rewards.model.chat_template=false"
            )
        self.device = torch.device("cuda" if settings.gpus else "cpu")
        self.model = _load(settings).to(self.device).eval()
        config = self.model.config.get_text_config()
        pad = self.tokenizer.pad_token_id
        if pad is None:
            pad = self.tokenizer.eos_token_id
        if pad is None:
            raise ValueError(
                f"the tokenizer of {settings.path} has neither a padding nor an end token: it cannot make batches"
            )
        # Classifiers over a causal model take the last token that is not padding, and know it by the id in the configuration.
        self._pad = config.pad_token_id = self.model.config.pad_token_id = pad
        positions: float = getattr(config, "max_position_embeddings", None) or math.inf
        # RoBERTa's have two positions less than they say; tokenizers know. A token without a row would end a process on a GPU.
        self._longest: float = min(positions, self.tokenizer.model_max_length)
        self._rows: int = self.model.get_input_embeddings().num_embeddings
        if pad >= self._rows:
            raise ValueError(
                f"the tokenizer of {settings.path} pads with token {pad} and the model has tokens 0 to {self._rows - 1}: they do "
                "not belong together"
            )
        labels = self.model.config.num_labels
        if settings.label is None and labels != 1:
            raise ValueError(
                f"the reward model {settings.path} has {labels} labels: say whose probability is the score, rewards.model.label"
            )
        if settings.label is not None and not settings.label < labels != 1:
            raise ValueError(
                f"rewards.model.label is {settings.label} and {settings.path} has labels 0 to {labels - 1}"
            )

    def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        """Returns one verdict a request, in order; its reward is the normalised score. What cannot be scored has status ERROR."""
        verdicts: list[Observation | Verdict] = [Verdict(0.0) for _ in requests]
        ids: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            try:
                ids[i] = self._ids((*request.prompt.messages, Message("assistant", request.responses[-1])))
            except Exception as error:  # noqa: BLE001 - the model's own template; it costs its own response alone
                verdicts[i] = _failed(f"the conversation cannot be rendered: {type(error).__name__}: {error}")
        for batch in batches([(i, len(x)) for i, x in ids.items()], self.settings.max_batch_tokens):
            self.done += 1
            try:
                for i, score in zip(batch, self._scores([ids[i] for i in batch]), strict=True):
                    verdicts[i] = self._verdict(score)
            except (RuntimeError, IndexError) as error:  # out of memory among them
                for i in batch:
                    verdicts[i] = _failed(f"the forward pass failed: {str(error).partition(chr(10))[0]}")
        return verdicts

    def _verdict(self, score: float) -> Verdict:
        s = self.settings
        if not math.isfinite(score):
            return _failed(f"its score is {score}")
        return Verdict(normalised(score, s.scale, s.shift, *(s.clip or ())))

    def _ids(self, conversation: Sequence[Message]) -> list[int]:
        """Raises ValueError for what the model cannot read, and whatever its chat template raises."""
        if self._chat:
            ids = list(chat.render_whole(self.tokenizer, conversation))
        else:
            ids = list(self.tokenizer("\n".join(m.content for m in conversation)).input_ids)
        if not 0 < len(ids) <= self._longest:
            raise ValueError(f"it has {len(ids)} tokens and the model reads 1 to {self._longest}")
        if max(ids) >= self._rows:
            raise ValueError(f"it has token {max(ids)} and the model has tokens 0 to {self._rows - 1}")
        return ids

    @torch.no_grad()
    def _scores(self, batch: Sequence[Sequence[int]]) -> list[float]:
        """Returns [n] raw scores: the only logit, or the probability of `label`."""
        width = max(map(len, batch))
        tokens = torch.full((len(batch), width), self._pad)
        mask = torch.zeros_like(tokens)
        for row, ids in enumerate(batch):  # padded on the right, so that positions are those of the text alone
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        logits = self.model(tokens.to(self.device), attention_mask=mask.to(self.device)).logits.float()
        label = self.settings.label
        return (logits[:, 0] if label is None else logits.softmax(-1)[:, label]).tolist()


def _failed(detail: str) -> Verdict:
    return Verdict(0.0, status=Status.ERROR, detail=f"the reward model: {detail}"[:500])


def batches(lengths: Sequence[tuple[int, int]], most: int) -> Iterator[list[int]]:
    """Yields (index, length) pairs as lists of indices, the longest first, each list of at most `most` slots: rows times the
    longest of them. One that is longer by itself is a list of its own."""
    batch: list[int] = []
    width = 0
    for index, length in sorted(lengths, key=lambda pair: -pair[1]):
        if batch and width * (len(batch) + 1) > most:
            yield batch
            batch = []
        width = max(width, length) if batch else length
        batch.append(index)
    if batch:
        yield batch


def _load(settings: RewardModelSettings) -> Any:
    from transformers import AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification  # its annotations leave out what output_loading_info returns
    model, info = auto.from_pretrained(settings.path, dtype=DTYPES[settings.precision], output_loading_info=True)
    # transformers fills in what a folder lacks at random: a language model would load, and score at random.
    if missing := sorted(info["missing_keys"]) + sorted(str(m) for m in info["mismatched_keys"]):
        raise ValueError(
            f"{settings.path} is not a whole sequence classifier: {', '.join(missing[:3])} are not in it and would be random"
        )
    return model
