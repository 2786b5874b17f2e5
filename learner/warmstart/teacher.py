"""Creates a tiny model and teaches it on the demonstrations of environments: supervised, fp32, on the CPU."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# transformers leaves from_config, get_decoder and generate untyped, torch manual_seed, from_numpy and tolist.

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from envs.base import Played, Session, demonstrate
from envs.types import Message, Prompt, Verdict
from learner.chat import decode, render, render_observation
from learner.warmstart.tokenizer import END_ID, PAD_ID

if TYPE_CHECKING:
    from learner.warmstart.settings import InitModelSettings


def create_model(settings: InitModelSettings, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Creates random fp32 weights of these shapes; config and generation config carry the tokenizer's ids."""
    ids = {"pad_token_id": PAD_ID, "eos_token_id": END_ID, "bos_token_id": None}
    config = AutoConfig.for_model(
        settings.architecture,
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        intermediate_size=settings.intermediate_size,
        tie_word_embeddings=settings.tie_word_embeddings,
        max_position_embeddings=settings.max_position_embeddings,
        **ids,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    # top_k = 0: transformers would otherwise sample from the 50 likeliest tokens only.
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **ids)
    return model


MAX_TURNS = 8  # of a held-out conversation: what sampling.max_turns is by default


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Holds what follows a prompt: one response, or responses and observations in turn, as a rollout has them.

    ids     the responses with their end tokens, and what is rendered between them
    taught  as ids where a response is, PAD_ID where an observation is: the loss leaves those out
    """

    ids: tuple[int, ...]
    taught: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """Holds a prompt and demonstrations of it."""

    prompt_ids: tuple[int, ...]
    demonstrations: tuple[Demonstration, ...]


class Teacher:
    """Draws lessons, takes the steps, measures. K = responses_per_prompt; B, P, R = rows, prompt and response columns."""

    def __init__(
        self,
        settings: InitModelSettings,
        environments: Sequence[Any],
        tokenizer: PreTrainedTokenizerFast,
        model: PreTrainedModel,
    ) -> None:
        self.settings, self.environments, self.tokenizer, self.model = settings, environments, tokenizer, model
        self.head: Any = model.get_output_embeddings()
        self.rng = random.Random(settings.seed)
        self.lessons: list[Lesson] = []
        self.order: list[int] = []
        self.longest_response = 0  # tokens of any one response taught, its end included

    def run(self, report: Callable[..., None]) -> dict[str, Any]:
        """Trains and evaluates; returns the record's loss, accuracy, pass_at_k and steps."""
        settings, steps = self.settings, self.settings.steps
        optimizers = _optimizers(settings, self.model)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        recent: list[float] = []
        measured: dict[str, Any] = {"loss": None, "accuracy": None, "pass_at_k": None}
        step = 0
        self.model.train()
        while step < steps:
            loss = self._loss(*self._batch())
            _step(optimizers, parameters, loss, _schedule(step, steps, settings.warmup_steps))
            step += 1
            recent.append(loss.item())
            if step % max(1, steps // 50) == 0 and step < steps:
                measured["loss"], recent = float(np.mean(recent)), []
                accuracy = pass_at_k = None
                if settings.target_accuracy is not None and step % max(1, steps // 10) == 0:
                    accuracy, pass_at_k = self._accuracy()
                report(step=step, steps=steps, loss=measured["loss"], accuracy=accuracy, pass_at_k=pass_at_k)
                if accuracy is not None and accuracy >= (settings.target_accuracy or 1.0):
                    break
        if recent:
            measured["loss"] = float(np.mean(recent))
        measured["accuracy"], measured["pass_at_k"] = self._accuracy()
        report(step=step, steps=steps, **measured)
        return {**measured, "steps": step}

    def _lesson(self) -> Lesson:
        """Returns a new prompt until there are `train_prompts`, then each of them again, in a new order every round.

        Prompts are made as they are needed: listing solutions costs about as much as a training step does.
        """
        settings, size = self.settings, len(self.lessons)
        if size == settings.train_prompts:
            if not self.order:
                self.order = self.rng.sample(range(size), size)
            return self.lessons[self.order.pop()]
        environment = self.environments[size % len(self.environments)]
        prompt = environment.prompt("train", size // len(self.environments))
        # Four times what a step shows, so that later rounds still bring solutions the first did not show.
        played = [demonstrate(environment, prompt, self.rng) for _ in range(4 * settings.responses_per_prompt)]
        # Drawn often, rendered once: templates are slow.
        rendered = {one: self._render(prompt, one) for one in set(played)}
        lesson = Lesson(render(self.tokenizer, prompt.messages), tuple(rendered[one] for one in played))
        self.lessons.append(lesson)
        return lesson

    def _render(self, prompt: Prompt, played: Played) -> Demonstration:
        """Builds token ids as actors/rollout.py does: responses are encoded, only observations are rendered."""
        before: list[Message] = list(prompt.messages)
        ids: list[int] = []
        taught: list[int] = []
        for turn, text in enumerate(played.responses):
            encoded: Any = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            response = (*encoded, END_ID)
            self.longest_response = max(self.longest_response, len(response))
            ids += response
            taught += response
            if turn < len(played.observations):
                observed = played.observations[turn].messages
                context = render_observation(self.tokenizer, before, observed, response)
                ids += context
                taught += [PAD_ID] * len(context)
                before += [Message("assistant", text), *observed]
        return Demonstration(tuple(ids), tuple(taught))

    def _batch(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """Returns ids int64 [B, P + K*R], prompts padded on the left and responses on the right; taught [B, K*R]; prompt
        lengths [B]; P."""
        count = self.settings.responses_per_prompt
        lessons = [self._lesson() for _ in range(self.settings.batch_size)]
        drawn = [self.rng.sample(lesson.demonstrations, count) for lesson in lessons]
        columns = max(len(lesson.prompt_ids) for lesson in lessons)
        width = max(len(one.ids) for row in drawn for one in row)
        ids = np.full((len(lessons), columns + count * width), PAD_ID, dtype=np.int64)
        taught = np.full((len(lessons), count * width), PAD_ID, dtype=np.int64)
        for row, (lesson, chosen) in enumerate(zip(lessons, drawn, strict=True)):
            ids[row, columns - len(lesson.prompt_ids) : columns] = lesson.prompt_ids
            for k, one in enumerate(chosen):
                start = k * width
                ids[row, columns + start : columns + start + len(one.ids)] = one.ids
                taught[row, start : start + len(one.taught)] = one.taught
        lengths = torch.tensor([len(lesson.prompt_ids) for lesson in lessons])
        return torch.from_numpy(ids), torch.from_numpy(taught), lengths, columns

    def _loss(self, ids: Tensor, taught: Tensor, lengths: Tensor, columns: int) -> Tensor:
        """Returns the mean cross-entropy over the tokens of responses, ends included, in nats. Observations are not learned.

        The K demonstrations of a prompt follow it in one row, each seeing the prompt and itself only, at the positions
        it would have alone: the prompt is computed once instead of K times.
        """
        total, count = ids.shape[1], self.settings.responses_per_prompt
        width = (total - columns) // count
        column = torch.arange(total)
        response = torch.where(column < columns, -1, (column - columns) // width)  # which response a column belongs to
        position = torch.where(column < columns, column, columns + (column - columns) % width)
        first = (columns - lengths)[:, None]
        visible = (column[:, None] >= column) & ((response == -1) | (response[:, None] == response))
        # Padding sees itself, because a row that sees nothing is NaN.
        mask = visible & (column >= first[:, :, None]) | torch.eye(total, dtype=torch.bool)
        hidden = self.model.get_decoder()(
            input_ids=ids,
            position_ids=(position - first).clamp(min=0),
            attention_mask=mask[:, None],
            use_cache=False,
        ).last_hidden_state
        # A response's first token is predicted by the prompt's last column, the others by the column before them.
        source = column[columns:] - 1
        source[::width] = columns - 1
        logits = self.head(hidden[:, source])
        return functional.cross_entropy(logits.flatten(0, 1), taught.flatten(), ignore_index=PAD_ID)

    def _accuracy(self) -> tuple[float, float]:
        """Returns the shares of conversations and of prompts solved, sampled at temperature 1 on the eval split's first prompts."""
        settings, count = self.settings, len(self.environments)
        asked = [(self.environments[i % count], i // count) for i in range(settings.holdout_prompts)]
        prompts = [(environment, environment.prompt("eval", index)) for environment, index in asked]
        open_: list[_Conversation] = []
        for environment, prompt in prompts:
            ids = render(self.tokenizer, prompt.messages)
            open_ += [_Conversation(environment.open(prompt), prompt, ids) for _ in range(settings.holdout_responses)]
        conversations = list(open_)
        longest = self.longest_response or 16  # nothing was taught: any short length shows that responses are noise
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # the same noise at every report: the curve shows the model, not the dice
            for _ in range(MAX_TURNS):
                for conversation, response in zip(open_, self._sample(open_, longest), strict=True):
                    conversation.take(self.tokenizer, response)
                room = settings.max_position_embeddings - longest
                open_ = [one for one in open_ if not one.over and len(one.ids) <= room]
                if not open_:
                    break
        self.model.train()
        solved = np.array([one.correct for one in conversations]).reshape(len(prompts), settings.holdout_responses)
        return float(solved.mean()), float(solved.any(axis=1).mean())

    def _sample(self, conversations: Sequence[_Conversation], longest: int) -> list[list[int]]:
        """Samples a response to each, at most `longest` tokens, padded behind its end."""
        columns = max(len(one.ids) for one in conversations)
        ids = torch.full((len(conversations), columns), PAD_ID)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(conversations):
            ids[row, columns - len(one.ids) :] = torch.tensor(one.ids)
            mask[row, columns - len(one.ids) :] = 1
        sampled: Any = self.model.generate(  # pyright: ignore[reportCallIssue]
            ids, attention_mask=mask, max_new_tokens=longest
        )
        return sampled[:, columns:].tolist()


class _Conversation:
    """Follows a held-out session: its token ids so far, and in the end whether it was solved."""

    def __init__(self, session: Session, prompt: Prompt, ids: tuple[int, ...]) -> None:
        self.session, self.prompt, self.ids = session, prompt, ids
        self.before: list[Message] = list(prompt.messages)
        self.over = self.correct = False

    def take(self, tokenizer: PreTrainedTokenizerFast, sampled: Sequence[int]) -> None:
        """Plays the next response; padding behind it is allowed."""
        response = tuple(sampled[: sampled.index(END_ID) + 1] if END_ID in sampled else sampled)
        text = decode(tokenizer, response)
        answer = self.session.reply(text)
        if isinstance(answer, Verdict):
            self.over, self.correct = True, answer.correct
            return
        self.ids += response + render_observation(tokenizer, self.before, answer.messages, response)
        self.before += [Message("assistant", text), *answer.messages]


def _optimizers(settings: InitModelSettings, model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon (github.com/KellerJordan/Muon) for the weight matrices, AdamW for embeddings, head, norms and biases.

    Orthogonalised updates reach a given loss in about half the steps that AdamW takes here.
    """
    heads: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(module.weight) for module in heads}
    parameters = list(model.parameters())
    matrices = [p for p in parameters if settings.matrix_lr and p.ndim == 2 and id(p) not in outside]
    chosen = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, settings.lr, (0.9, 0.95), weight_decay=0.0)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, settings.matrix_lr, weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate: linear up over `warmup` steps, linear down to 0 at `steps`."""
    return min(1.0, (step + 1) / (warmup + 1)) * (1 - step / steps)


def _step(optimizers: Iterable[torch.optim.Optimizer], parameters: list[Any], loss: Tensor, scale: float) -> None:
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
        optimizer.step()
