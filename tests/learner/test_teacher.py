"""The teacher's packed rows: the loss of replies that share a prompt is the loss each has alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from envs import catalog
from envs.types import Message
from learner.teacher import Lesson, Teacher, create_model
from learner.tokenizer import END_ID, build_tokenizer, render
from learner.warmstart import InitModelSettings


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama", "gemma"])
def test_packed_replies_have_the_loss_they_have_alone(architecture: str) -> None:
    """K replies in one row, prompts and replies of different lengths: the mean over separate rows is the reference."""
    shape = {"hidden_size": 32, "layers": 1, "heads": 1, "kv_heads": 1, "intermediate_size": 32}
    data = {"architecture": architecture, "batch_size": 16, "replies_per_prompt": 3}
    settings = InitModelSettings.model_validate({**shape, **data, "environments": [{"name": "arithmetic"}]})
    environment: Any = catalog.load("arithmetic", {"digits": 2}, 0)
    tokenizer = build_tokenizer(environment.alphabet())
    torch.manual_seed(0)
    model = create_model(settings, tokenizer)
    teacher = Teacher(settings, [environment], tokenizer, model)
    for index, answers in enumerate((["1", "23", "456"], ["", "77", "8"])):
        replies = tuple((*tokenizer(text)["input_ids"], END_ID) for text in answers)
        prompt_ids = render(tokenizer, [Message("user", "1+22="[index:])])
        teacher.lessons.append(Lesson(prompt_ids, replies))
    teacher.order, lessons = [0, 1] * 8, list(teacher.lessons)
    teacher._lesson = lambda: teacher.lessons[teacher.order.pop()]  # type: ignore[method-assign]
    packed = teacher._loss(*teacher._batch())
    total, tokens = torch.tensor(0.0), 0
    for lesson in lessons:
        for reply in lesson.replies:
            ids = torch.tensor([[*lesson.prompt_ids, *reply]])
            logp = model(ids).logits[0, len(lesson.prompt_ids) - 1 : -1].log_softmax(-1)
            total = total - logp[torch.arange(len(reply)), torch.tensor(reply)].sum()
            tokens += len(reply)
    assert packed.item() == pytest.approx((total / tokens).item(), rel=1e-5)
