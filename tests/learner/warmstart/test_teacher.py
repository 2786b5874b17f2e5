"""The teacher: packed rows have the loss that each conversation has alone, and hold the tokens a rollout would have."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fakes import beginning

from actors.inference import Completion, Request
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs import catalog
from envs.base import demonstrate
from envs.types import Message, Observation, Verdict
from learner.chat import render
from learner.warmstart.settings import InitModelSettings
from learner.warmstart.teacher import Demonstration, Lesson, Teacher, create_model
from learner.warmstart.tokenizer import END_ID, PAD_ID, build_tokenizer
from orchestration.sampling.codec import HFCodec

SHAPE = {"hidden_size": 32, "layers": 1, "heads": 1, "kv_heads": 1, "intermediate_size": 32}


def make_teacher(name: str, params: dict[str, Any], **settings: Any) -> Teacher:
    data = {**SHAPE, **settings, "environments": [{"name": name, "params": params}]}
    parsed = InitModelSettings.model_validate(data)
    environment: Any = catalog.load(name, params, 0)
    tokenizer = build_tokenizer(environment.alphabet())
    torch.manual_seed(0)
    return Teacher(parsed, [environment], tokenizer, create_model(parsed, tokenizer))


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama", "gemma"])
def test_packed_responses_have_the_loss_they_have_alone(architecture: str) -> None:
    """K responses in one row, prompts and responses of different lengths: the mean over separate rows is the reference."""
    teacher = make_teacher(
        "arithmetic", {"digits": 2}, architecture=architecture, batch_size=16, responses_per_prompt=3
    )
    tokenizer, model = teacher.tokenizer, teacher.model
    # An observation between two responses, which is read and not learned: 5 and 6 are tokens of it.
    for index, answers in enumerate((["1", "23", "456"], ["", "77", "8"])):
        responses = [(*tokenizer(text)["input_ids"], END_ID) for text in answers]
        demonstrations = [Demonstration(response, response) for response in responses[:2]]
        contexts = (responses[2], (5, 6), responses[0])
        ids = tuple(token for part in contexts for token in part)
        demonstrations.append(Demonstration(ids, (*contexts[0], PAD_ID, PAD_ID, *contexts[2])))
        prompt_ids = render(tokenizer, [Message("user", "1+22="[index:])])
        teacher.lessons.append(Lesson(prompt_ids, tuple(demonstrations)))
    teacher.order, lessons = [0, 1] * 8, list(teacher.lessons)
    teacher._lesson = lambda: teacher.lessons[teacher.order.pop()]  # type: ignore[method-assign]
    packed = teacher._loss(*teacher._batch())
    total, tokens = torch.tensor(0.0), 0
    for lesson in lessons:
        for one in lesson.demonstrations:
            logits: Any = model(torch.tensor([[*lesson.prompt_ids, *one.ids]])).logits
            logp = logits[0, len(lesson.prompt_ids) - 1 : -1].log_softmax(-1)
            learned = [i for i, token in enumerate(one.taught) if token != PAD_ID]
            total = total - sum(logp[i, one.ids[i]] for i in learned)
            tokens += len(learned)
    assert packed.item() == pytest.approx((total / tokens).item(), rel=1e-5)


@pytest.mark.parametrize(("name", "params"), [("toolbox", {"level": 3}), ("guess", {}), ("countdown", {})])
def test_the_teacher_has_the_tokens_of_a_rollout_of_the_same_responses(
    name: str, params: dict[str, Any], tmp_path: Path
) -> None:
    teacher = make_teacher(name, params, responses_per_prompt=1)
    environment, tokenizer = teacher.environments[0], teacher.tokenizer
    teacher.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    codec = HFCodec(tmp_path, chat_template=True)
    for index in range(5):
        prompt = environment.prompt("train", index)
        played = demonstrate(environment, prompt, random.Random(index))
        session, responses = environment.open(prompt), iter(played.responses)

        async def generate(requests: Sequence[Request], responses: Any = responses) -> list[Completion]:
            (request,) = requests
            ids = (*tokenizer(next(responses))["input_ids"], END_ID)
            return [Completion(request.id, ids, (0.0,) * len(ids), "stop", 0, 0)]

        async def score(request: ScoreRequest, session: Any = session) -> Observation | Verdict:
            return session.reply(request.responses[-1])

        settings = RolloutSettings(
            SamplingSettings(max_tokens=64, max_turns=20), responses=1, max_model_len=2000, seed=0
        )
        group = asyncio.run(rollout_group(prompt, beginning(generate), score, codec, settings, "s"))
        (trajectory,) = group.trajectories
        assert trajectory.texts == played.responses and trajectory.verdict.correct
        prompt_ids, taught = render(tokenizer, prompt.messages), teacher._render(prompt, played)
        assert (*prompt_ids, *taught.ids) == trajectory.token_ids
        mask = (*(False,) * len(prompt_ids), *(token != PAD_ID for token in taught.taught))
        assert mask == trajectory.action_mask
        assert all(a == b for a, b in zip(taught.ids, taught.taught, strict=True) if b != PAD_ID)


def test_accuracy_is_that_of_whole_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that plays the expert's responses: solved, though no first response ends a game. One wrong bit: not solved."""
    teacher = make_teacher("bits", {}, holdout_prompts=4, holdout_responses=2)
    environment, tokenizer = teacher.environments[0], teacher.tokenizer
    spoiled: set[int] = set()

    def sample(conversations: Sequence[Any], longest: int) -> list[list[int]]:
        out = []
        for one in conversations:
            turn = sum(message.role == "assistant" for message in one.before)
            responses = demonstrate(
                environment, environment.prompt("eval", one.prompt.index), random.Random(0)
            ).responses
            wrong = one.prompt.index in spoiled and turn == len(responses) - 1
            text = responses[turn].translate(str.maketrans("01", "10")) if wrong else responses[turn]
            out.append([*tokenizer(text)["input_ids"], END_ID, PAD_ID, PAD_ID])
        return out

    monkeypatch.setattr(teacher, "_sample", sample)
    assert teacher._accuracy() == (1.0, 1.0)
    spoiled.add(2)
    assert teacher._accuracy() == (0.75, 0.75)
