"""Compares what is trained with what transformers computes, on a few tokens: the head, padded rows, packed rows, shared prompts.

Three computations of the same log-probs have to agree before a gradient of any of them means something: those of a trajectory
alone in its row, those of the same trajectory in a batch, and log_softmax of what `model(input_ids).logits` returns. Measured, not
looked up: no table of model families is ever complete.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.types import Prompt, Trajectory, Turn, Verdict
from learner.batching import micro_batch
from learner.microbatches.packed_attention import MaskRefused
from learner.policy import Policy
from learner.types import MicroBatch, ModelCheck

LENGTH = 64  # tokens of a sequence, at most
SEQUENCES = 8  # that are compared, at most
SHORTER = 4  # tokens by which each is shorter than the one before: padded rows are to have padding
CHUNK = 16  # positions whose float32 logits exist at once, beside those of the model's own forward


def cut(sequences: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Returns up to SEQUENCES of the sequences, cut to different lengths of at most LENGTH; two at least, those with one token
    left out."""
    usable = [tuple(ids) for ids in sequences if len(ids) > 1][:SEQUENCES]
    return [ids[: LENGTH - SHORTER * i] for i, ids in enumerate(usable if len(usable) > 1 else usable * 2)]


def sequence_logprobs(
    engine: Callable[..., Any], device: torch.device, sequences: Sequence[Sequence[int]], slots: int = 0
) -> list[list[float]]:
    """Returns log-probs at temperature 1 of tokens 1.. of each sequence. engine: runs the policy's forward.

    slots: how many a forward of several sequences may have, each of them padded on the right to the longest; one that is longer has
    a forward to itself, and with 0 each has.
    """
    out: list[list[float]] = []
    for rows in _few(sequences, slots):
        width, lengths = max(map(len, rows)), [len(ids) for ids in rows]
        tokens = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in rows], device=device)
        # Padding goes on counting, as in the learner's batches: a restart would begin another sequence.
        positions = torch.arange(width, device=device).repeat(len(rows), 1)
        at = torch.cat([torch.arange(n - 1, device=device) + i * width for i, n in enumerate(lengths)])
        with torch.no_grad():
            logp, *_ = engine(tokens, positions, at, tokens.flatten()[at + 1], 1.0, False)
        out += [part.tolist() for part in logp.cpu().split([n - 1 for n in lengths])]
    return out


def _few(sequences: Sequence[Sequence[int]], slots: int) -> list[list[Sequence[int]]]:
    """Divides sequences, in order, into parts that fit into `slots` when all are as long as the longest; one sequence at least."""
    parts: list[list[Sequence[int]]] = []
    for ids in sequences:
        if parts and (len(parts[-1]) + 1) * max(len(ids), *map(len, parts[-1])) <= slots:
            parts[-1].append(ids)
        else:
            parts.append([ids])
    return parts


def check_model(
    policy: Policy,
    engine: Callable[..., Any],
    forward: Callable[[MicroBatch], Tensor],
    device: torch.device,
    sequences: Sequence[Sequence[int]],
    packing: bool,
    sharing: bool = False,
) -> ModelCheck:
    """Computes a ModelCheck. A collective under ZeRO-3: every rank is given the same.

    sharing: whether prompts are to be shared, in packed rows. engine: runs the policy's forward with whatever hooks hang on it.
    forward: returns the log-probs [N] of a micro-batch, as training takes them. No gradient; the model stays in the mode it trains
    in, which has no dropout (learner/policy.py).
    """
    tokens = cut(sequences)
    if not tokens:
        return ModelCheck([], [], None, [], [])
    with torch.no_grad():
        alone = [_listed(forward(_micro_batch([ids], packing))) for ids in tokens]
        padded = _by_sequence(forward, _micro_batch(tokens, False), len(tokens))
        packed = _by_sequence(forward, _micro_batch(tokens, True), len(tokens)) if packing else None
        shared = _shared(forward, tokens) if packing and sharing else None
        with _float32_head(policy):
            plain = [_listed(_plain(policy, engine, torch.tensor([ids], device=device))) for ids in tokens]
        fp32_head, policy.fp32_head = policy.fp32_head, True
        try:
            head = [_listed(forward(_micro_batch([ids], packing))) for ids in tokens]
        finally:
            policy.fp32_head = fp32_head
    return ModelCheck(alone, padded, packed, head, plain, shared)


def _shared(
    forward: Callable[[MicroBatch], Tensor], tokens: Sequence[tuple[int, ...]]
) -> tuple[list[list[float]], list[list[float]]] | None:
    """Gives half of the sequences the beginning of one of them and half that of another, all of them one where they are few.
    Returns the log-probs of the rest of each, alone and with these beginnings once; None where a layer's mask refuses."""
    size = len(tokens) if len(tokens) < 4 else -(-len(tokens) // 2)
    made, prompts, skipped = list[tuple[int, ...]](), list[int](), list[int]()
    for first in range(0, len(tokens), size):
        prompt = tokens[first][: len(tokens[first]) // 2]
        made += [prompt + ids[len(ids) // 2 :] for ids in tokens[first : first + size]]
        prompts += [len(prompt)] * (len(made) - first)
        skipped += [0] + [len(prompt) - 1] * (len(made) - first - 1)
    alone = [_listed(forward(_micro_batch([ids], True, [n]))) for ids, n in zip(made, prompts, strict=True)]
    try:
        return alone, _by_sequence(forward, _micro_batch(made, True, prompts, skipped), len(made))
    except MaskRefused:
        return None


def _micro_batch(
    sequences: Sequence[tuple[int, ...]], packing: bool, prompts: Sequence[int] = (), skipped: Sequence[int] = ()
) -> MicroBatch:
    """Lays sequences out as the learner's batches are, so that what is compared is what is trained. prompts: how many of the tokens
    of each are its prompt's; () for 1 of all."""
    made = [
        Trajectory(
            Prompt("check", "train", i, ()),
            (Turn(ids[:n], ids[n:], (0.0,) * (len(ids) - n), "length", 0, 0),),
            ("",),
            Verdict(0.0),
        )
        for i, (ids, n) in enumerate(zip(sequences, prompts or (1,) * len(sequences), strict=True))
    ]
    silent = np.zeros(len(made))
    return micro_batch(range(len(made)), made, silent, [0.0] * len(made), ("check",), packing, skipped)


def _listed(logp: Tensor) -> list[float]:
    return logp.cpu().numpy().tolist()


def _by_sequence(forward: Callable[[MicroBatch], Tensor], micro: MicroBatch, count: int) -> list[list[float]]:
    logp: list[list[float]] = [[] for _ in range(count)]
    for i, value in zip(micro.trajectory, _listed(forward(micro)), strict=True):
        logp[int(i)].append(value)
    return logp


def _plain(policy: Policy, engine: Callable[..., Any], tokens: Tensor) -> Tensor:
    """Returns log-probs [T - 1] of tokens [1, T] by the model's own forward, which is run as the policy's: the hooks that gather
    weights under ZeRO-3 are started by the call of the outermost module."""
    model: Any = policy.model

    def forward(tokens: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        rows = [slice(start, start + CHUNK) for start in range(0, len(logits), CHUNK)]
        return torch.cat([logits[r].float().log_softmax(-1).gather(-1, tokens[0, 1:][r, None])[:, 0] for r in rows])

    with _forward_of(policy, forward):
        return engine(tokens)


@contextmanager
def _float32_head(policy: Policy) -> Generator[None]:
    """Lets the head's plain forward take its product in float32: what the model does to the logits after it is float32 too."""
    head = policy.head

    def forward(hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), head.weight.float(), _float(head.bias))

    with _forward_of(head, forward):
        yield


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Generator[None]:
    """Gives a module another forward for a while. Its hooks go on working: they belong to the call, not to the forward."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
