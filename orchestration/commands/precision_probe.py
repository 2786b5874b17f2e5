"""Measures what `isentrope precision` reports: responses of an engine in each precision, scored by the trainer in each.

Engines run in a process of their own, one after the other, and end before this process loads the trainer's models.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.settings import DTYPE_OF, GeneratorSettings, VLLMSettings
from envs.types import Prompt, Trajectory, Turn, Verdict
from learner.settings import BODY, BatchPlan, Mode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from learner.ledger.phantom import Phantom
    from learner.policy import Policy

GPU_MEMORY_SHARE = 0.9  # of a GPU that nobody else is on
MICRO_BATCH_TOKENS = 2048  # a packed row's attention is quadratic in it, and emulated where a CPU has no bf16


class EngineFailed(RuntimeError):
    """Reports that the engine of a mode gave no responses; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """Holds the command's options."""

    env: str | None = None
    params: Sequence[str] = ()  # name=value of the environment
    prompts: int = 64
    responses: int = 8
    max_tokens: int = 32
    modes: str | None = None  # names with commas between; None: all
    clip_low: float = 0.2
    clip_high: float = 0.2
    seed: int = 0
    limit_s: float = 600.0  # of one engine, from its start to its last response


@dataclass(frozen=True, slots=True)
class Tasks:
    """Holds prompts as token ids, the ids that end a response, and a phrase that says where the prompts come from."""

    prompts: tuple[tuple[int, ...], ...]
    stop_token_ids: tuple[int, ...]
    source: str


@dataclass(slots=True)
class Row:
    """Holds the measurements of one mode. A comparison that could not be made is None, and a note says why."""

    mode: Mode
    tokens: int = 0
    engine: Phantom | None = None  # trainer against engine
    packed: Phantom | None = None  # trainer packed against trainer padded
    fp32: Phantom | None = None  # trainer against the float32 trainer
    notes: list[str] = field(default_factory=list)


# --- engines ------------------------------------------------------------------------------------------------------------


def engine_responses(
    model: str, tasks: Tasks, options: Options, rows: Mapping[Mode, Row], progress: Any
) -> dict[Mode, list[Trajectory]]:
    """Returns the responses, with log-probs, of every mode whose engine runs here; the other modes get a note."""
    responses: dict[Mode, list[Trajectory]] = {}
    for mode, row in rows.items():
        progress.print(f"{mode}: engine", highlight=False)
        try:
            responses[mode] = _ask(model, mode, tasks, options)
        except EngineFailed as error:
            row.notes.append(f"no engine: {error}")
    return responses


def _ask(model: str, mode: Mode, tasks: Tasks, options: Options) -> list[Trajectory]:
    """Runs one engine in a process of its own, since engines cannot share one and one that hangs has to be killed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_serve, args=(sender, model, mode, tasks, options), daemon=False)
    child.start()
    sender.close()
    try:
        if not receiver.poll(options.limit_s):
            raise EngineFailed(f"no responses within --limit {options.limit_s:g} s")
        answer = receiver.recv()
    except EOFError:
        child.join(30)
        raise EngineFailed(f"its process ended with exit code {child.exitcode}") from None
    finally:
        child.kill()  # an engine that has answered has nothing to save, and would take seconds to shut down
        child.join()
    if isinstance(answer, str):
        raise EngineFailed(answer)
    prompt = Prompt("probe", "train", 0, ())
    prompts = [ids for ids in tasks.prompts for _ in range(options.responses)]
    return [
        Trajectory(prompt, (Turn(ids, r.response_ids, r.logprobs, r.finish, 0, 0),), ("",), Verdict(0.0))
        for ids, r in zip(prompts, answer, strict=True)
    ]


def _serve(pipe: Any, model: str, mode: Mode, tasks: Tasks, options: Options) -> None:
    """Runs in the child: sends completions in the order of the prompts through the pipe, or the reason why there are none."""
    import logging
    import os
    import warnings

    # Errors go through the pipe; log lines and warnings would only disturb the terminal that shows the table.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from actors.inference import EngineDead, Request, SamplingParams
    from actors.vllm_engine import VLLMEngine

    cuda = torch.cuda.is_available()
    settings = VLLMSettings(
        model=model,
        generator=GeneratorSettings(
            max_model_len=max(map(len, tasks.prompts)) + options.max_tokens,
            gpus=int(cuda),
            gpu_memory_utilization=GPU_MEMORY_SHARE,
        ),
        dtype=DTYPE_OF[BODY[mode]],
        fp32_head=mode == "bf16-fp32head",
        seed=options.seed,
    )
    sampling = SamplingParams(options.max_tokens, stop_token_ids=tasks.stop_token_ids)
    requests = [
        Request(f"{i}/{k}", ids, sampling, options.seed + i * options.responses + k)
        for i, ids in enumerate(tasks.prompts)
        for k in range(options.responses)
    ]
    try:
        engine = VLLMEngine(settings, options.limit_s)
        pipe.send(_complete(engine, requests))
    except EngineDead as error:
        pipe.send(" ".join(str(error).split()))


def _complete(engine: Any, requests: Sequence[Any]) -> list[Any]:
    """Returns completions in the order of the requests; raises what ended the engine. The parent's limit bounds the wait."""
    import queue

    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.submit(requests, done.put)
    completions: dict[str, Any] = {}
    while len(completions) < len(requests):
        item = done.get()
        if isinstance(item, BaseException):
            raise item
        completions[item.id] = item
    return [completions[request.id] for request in requests]


# --- trainer ------------------------------------------------------------------------------------------------------------


def trainer_rows(
    model: str,
    responses: Mapping[Mode, list[Trajectory]],
    options: Options,
    rows: Mapping[Mode, Row],
    progress: Any,
) -> None:
    """Scores every mode's responses in that mode and in float32, and fills in the rows."""
    import torch

    from learner.deepspeed_engine import untrainable

    if not responses:
        return
    substitute = next(iter(responses))  # its responses are used for modes without an engine
    progress.print("trainer in float32", highlight=False)
    policy = _load(model, "fp32")
    exact = {mode: _score(policy, trajectories, packing=False) for mode, trajectories in responses.items()}
    for mode, row in rows.items():
        progress.print(f"{mode}: trainer", highlight=False)
        source = mode if mode in responses else substitute
        if source != mode:
            row.notes.append(f"the trainer is measured on the responses of {source}")
        if reason := untrainable(BODY[mode], torch.cuda.is_available()):
            row.notes.append(f"forward only, no training: {reason}")
        try:
            policy = _load(model, mode)
            padded, packed = (_score(policy, responses[source], packing=p) for p in (False, True))
        except RuntimeError as error:  # raised by torch: this device lacks an operator in this type
            row.notes.append(f"no trainer: {' '.join(str(error).split())}")
            continue
        row.tokens = len(padded)
        if source == mode:
            engine = [x for trajectory in responses[source] for x in trajectory.turns[0].logprobs]
            row.engine = _compare(row, "engine", padded, engine, options)
        row.packed = _compare(row, "packed", packed, padded, options)
        if mode != "fp32":
            row.fp32 = _compare(row, "fp32", padded, exact[source], options)


def _compare(row: Row, name: str, logp: Any, reference: Any, options: Options) -> Phantom | None:
    """Returns the statistics of the ratios of two arrays of log-probs; None, with a note, where there are none."""
    from learner.ledger.phantom import phantom_clipping

    try:
        return phantom_clipping(logp, reference, clip_low=options.clip_low, clip_high=options.clip_high)
    except ValueError as error:
        row.notes.append(f"{name}: {error}")
        return None


def _load(model: str, mode: Mode) -> Policy:
    import torch

    from learner.policy import DTYPES, load_policy

    torch.cuda.empty_cache()  # frees the previous policy; does nothing without CUDA
    policy = load_policy(model, attention="sdpa", checkpointing=False, fp32_head=mode == "bf16-fp32head")
    return policy.cast(DTYPES[BODY[mode]]).to("cuda" if torch.cuda.is_available() else "cpu").eval()


def exact_entropy(model: str, mode: Mode, trajectories: Sequence[Trajectory], temperature: float) -> float:
    """Returns the policy's entropy at a temperature in nats, from the whole distribution: the mean over all sampled tokens."""
    return float(_tokens(_load(model, mode), trajectories, temperature, packing=False)[1].mean())


def _score(policy: Policy, trajectories: Sequence[Trajectory], *, packing: bool) -> NDArray[np.float64]:
    """Returns log-probs of all sampled tokens, trajectory by trajectory, batched as in training."""
    return _tokens(policy, trajectories, 1.0, packing=packing)[0]


def _tokens(
    policy: Policy, trajectories: Sequence[Trajectory], temperature: float, *, packing: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns (log-probs, entropies) of all sampled tokens, trajectory by trajectory, batched as in training."""
    import numpy as np
    import torch

    from learner.batching import build_batches

    plan = BatchPlan(micro_batch_tokens=MICRO_BATCH_TOKENS, packing=packing)
    (batch,) = build_batches(
        trajectories, np.zeros(len(trajectories)), plan=plan, aggregation="token", temperature=temperature
    )
    device = next(policy.parameters()).device
    logprobs, entropies, owner = [], [], []
    for micro in batch.updates[0]:
        arrays = (micro.tokens, micro.positions, micro.predict, micro.targets)
        with torch.no_grad():
            logp, entropy, *_ = policy(*(torch.tensor(a, device=device) for a in arrays), temperature)
        logprobs.append(logp.double().cpu().numpy())
        entropies.append(entropy.double().cpu().numpy())
        owner.append(micro.trajectory)
    order = np.argsort(np.concatenate(owner), kind="stable")
    return np.concatenate(logprobs)[order], np.concatenate(entropies)[order]
