"""Runs the cases of the learner group's tests in processes of their own: real DeepSpeed, gloo, tiny random models."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ITERATIONS = 2
UPDATES = 2
LR = 1e-4
CLIP = 0.2
GRAD_CLIP = 1.0
EPS = 1e-6  # of AdamW: with 1e-8 its first steps turn the rounding of a gradient of nearly 0 into a step of full size


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def run_ranks(
    main: Callable[..., None], world: int, model: str, cases: list[Any], out: Path, limit_s: float = 280.0
) -> None:
    """Plays cases on `world` processes of one group: main(rank, world, port, model, cases, out). Checks that each ends well."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    ranks = [context.Process(target=main, args=(r, world, port, model, cases, str(out))) for r in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(limit_s)
        if process.is_alive():
            process.kill()
    codes = [process.exitcode for process in ranks]
    assert codes == [0] * world, f"the ranks of a group of {world} ended with exit codes {codes}"


def make_model(folder: str, tied: bool = True) -> str:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=48,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=tied,
        max_position_embeddings=128,
        initializer_range=0.2,  # far from uniform, so that entropies and ratios say something
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def make_groups(iteration: int) -> list[Any]:
    from envs.types import Group, Prompt, Trajectory, Turn, Verdict

    rng = random.Random(iteration)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, 48) for _ in range(n))

    groups = []
    for g in range(4):
        prompt = Prompt(("even", "odd")[g % 2], "train", g, ())
        members = []
        for _ in range(4):
            turns = []
            for _ in range(rng.randint(1, 2)):
                n = rng.randint(2, 9)
                turns.append(
                    Turn(ids(rng.randint(3, 7)), ids(n), tuple(-rng.random() * 5 for _ in range(n)), "stop", 0, 0)
                )
            reward = float(rng.random() < 0.5)
            members.append(Trajectory(prompt, tuple(turns), ("",) * len(turns), Verdict(reward, reward > 0)))
        groups.append(Group(prompt, tuple(members)))
    return groups


def with_one_prompt(group: Any) -> Any:
    """Returns the group with the first response's prompt before each of its responses."""
    from dataclasses import replace

    prompt = group.trajectories[0].turns[0].context_ids
    turns = [(replace(t.turns[0], context_ids=prompt), *t.turns[1:]) for t in group.trajectories]
    return replace(
        group, trajectories=tuple(replace(t, turns=own) for t, own in zip(group.trajectories, turns, strict=True))
    )


def batches(
    iteration: int, ranks: int, tokens: int, packing: bool, aggregation: Any, sharing: bool | None = None
) -> list[Any]:
    """sharing: whether the responses of a group share their prompt; None: each has one of its own."""
    from learner.advantages import ADVANTAGES
    from learner.batching import build_batches, trajectory_advantages
    from learner.settings import BatchPlan

    groups = make_groups(iteration)
    if sharing is not None:
        groups = [with_one_prompt(group) for group in groups]
    plan: dict[str, Any] = {"ranks": ranks, "micro_batch_tokens": tokens, "packing": packing, "prefix_sharing": sharing}
    return build_batches(
        [t for g in groups for t in g.trajectories],
        trajectory_advantages(groups, ADVANTAGES["grpo"]),
        plan=BatchPlan(updates=UPDATES, mixed=False, epochs=1, **plan),
        aggregation=aggregation,
        temperature=0.9,
    )


def settings(model: str, case: dict[str, Any]) -> Any:
    """Returns the settings of a case: its stage and, where not the usual, precision (a mode), method, coefficient (fixed),
    objective and loss_scale_power.
    """
    from learner.entropy.settings import EntropySettings
    from learner.entropy.target import TargetSettings
    from learner.rank_settings import RankSettings
    from learner.settings import LearnerSettings, ModelSettings, ObjectiveSettings

    method = case.get("method") or {"kind": "repo_r"}
    precision: Any = case.get("precision", "fp32")
    body: Any = precision.removesuffix("-fp32head")
    fixed = method["kind"] == "none" or "coefficient" in case
    controller = {"kind": "fixed", "value": case.get("coefficient")} if fixed else {"kind": "doubling", "start": 0.04}
    return RankSettings(
        model=ModelSettings(path=model),
        learner=LearnerSettings(
            zero_stage=case["stage"],
            lr=case.get("lr", LR),
            eps=EPS,
            weight_decay=0.01,
            grad_clip=GRAD_CLIP,
            threads=1,
            lora=case.get("lora"),
            optimiser_bits=case.get("bits", 32),
            offload_optimiser=case.get("offload", False),
            gradient_checkpointing=case.get("checkpointing", False),
            offload_activations=case.get("inputs_away", False),
        ),
        objective=ObjectiveSettings(**{"clip_low": CLIP, "clip_high": CLIP, **case.get("objective", {})}),
        entropy=EntropySettings.model_validate(
            {"method": method, "controller": controller, "target": TargetSettings(fraction=0.7)}
        ),
        precision=body,
        loss_scale_power=case.get("loss_scale_power", 16),
        fp32_head=precision != body,
        reference=model,
        hold_reference=False,
        total_steps=100,
        seed=0,
        bucket_bytes=1 << 20,
        adapter=case.get("adapter"),
    )


def refusal(model: str, case: dict[str, Any], placement: Any) -> str:
    from learner.learner import Learner
    from learner.types import UnsupportedPrecision

    try:
        Learner(settings(model, case), placement)
    except UnsupportedPrecision as error:
        return str(error)
    return ""


def allow_fp16() -> None:
    """Lets DeepSpeed use fp16 on a CPU, where torch emulates it slowly and correctly, to test its loss scaler."""
    import deepspeed

    accelerator: Any = deepspeed.get_accelerator()
    accelerator.is_fp16_supported = lambda: True


def exploding(batch: Any) -> Any:
    """Returns the same batch with advantages whose gradient overflows fp16 at every loss scale."""
    from dataclasses import replace

    updates = tuple(
        tuple(replace(m, advantages=m.advantages * np.float32(1e9)) for m in update) for update in batch.updates
    )
    return replace(batch, updates=updates)


class Demeaned:
    """Subtracts the mean of A * L over the whole global batch from A: a method of scope "batch", to test that scope."""

    def __init__(self) -> None:
        from learner.entropy.base import CoefficientRange

        self.seen: list[int] = []
        self.coefficient_range = CoefficientRange(start=0.0, low=0.0, high=0.0, signed=False)

    scope = "batch"

    def shape(self, tokens: Any, coefficient: float) -> Any:
        from learner.types import Shaping

        self.seen.append(len(tokens.logp))
        return Shaping(advantages=tokens.advantages - (tokens.advantages * tokens.centred).mean())


def weights(learner: Any) -> dict[str, np.ndarray]:
    return {k: v.float().cpu().numpy().copy() for k, v in learner.engine.full_weights(learner.policy.weights())}


def rank_main(
    rank: int, world: int, port: int, model: str, cases: list[dict[str, Any]], out: str, cuda: bool = False
) -> None:
    """Runs every case on one rank of one group; rank 0 writes out/NAME.npz and the metrics."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import json

    import torch

    from learner.learner import Learner, NonFiniteError
    from learner.rank_settings import LearnerStage, RankPlace

    placement = RankPlace(rank, world, "127.0.0.1", port, cuda, 120.0)
    learner: Learner | None = None
    for case in cases:
        if case.get("refused"):
            (Path(out) / f"{case['name']}.refused").write_text(refusal(model, case, placement))
            continue
        if case.get("precision") == "fp16" and not cuda:
            allow_fp16()
        learner = Learner(settings(case.get("model", model), case), placement)
        wide = Demeaned() if case.get("batch_scope") else None
        if wide is not None:
            setattr(learner.steering, "method", wide)  # noqa: B010 - it has what the learner uses, not the whole protocol
        metrics = []
        for i in range(ITERATIONS):
            layout = (case["packing"], case.get("aggregation", "token"), case.get("sharing"))
            plan = batches(i, world, case["tokens"], *layout)
            if case.get("explodes"):
                try:
                    learner.train(exploding(plan[rank]))
                except NonFiniteError as error:
                    (Path(out) / f"{case['name']}.refused").write_text(str(error))
                break
            metrics.append(learner.train(plan[rank]))
            if wide is not None:
                metrics[-1]["batch_tokens"] = list(wide.seen)
            if i == 0 and case.get("resume"):  # through a checkpoint, into a learner that has seen nothing
                folder = Path(out) / f"{case['name']}-checkpoint"
                learner.save(folder / "hf", folder / "engine")
                torch.distributed.barrier()  # the driver waits for every rank's save before it goes on
                state = json.loads(json.dumps(learner.state_dict()))
                hf, again = str(folder / "hf"), case
                if case.get("lora"):  # the base model, and the adapter that the checkpoint has
                    hf, again = case.get("model", model), {**case, "adapter": hf}
                learner = Learner(settings(hf, again), placement)
                learner.load(folder / "engine")
                learner.load_state_dict(state)
            if i == 0 and (how := case.get("optimiser")):
                if how == "new":  # the same weights and the same state in a learner whose optimiser has seen nothing
                    folder = Path(out) / f"{case['name']}-weights"
                    learner.save(folder / "hf", folder / "engine")
                    torch.distributed.barrier()
                    state = learner.state_dict()
                    learner = Learner(settings(str(folder / "hf"), case), placement)
                    learner.load_state_dict(state)
                s = learner.settings
                learner.begin_stage(
                    LearnerStage(
                        s.objective, s.learner.lr, s.entropy.target, optimiser="reset" if how == "reset" else "keep"
                    )
                )
        full = weights(learner)
        if rank == 0:
            np.savez(Path(out) / f"{case['name']}.npz", **full)  # type: ignore[arg-type]
            (Path(out) / f"{case['name']}.json").write_text(json.dumps(metrics))
    if learner is not None:
        learner.close()


def reference(model: str) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Computes the same two iterations with plain torch: full logits, one sequence at a time, explicit REPO-R, AdamW, clipping.

    Shares only the data with the learner. Returns the weights, and of each iteration the exact entropy and the effect of its steps
    on the first response of the first and of the third group: gradient times displacement, and what it came to.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    wide = [p for p in net.parameters() if p.ndim >= 2]
    thin = [p for p in net.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": wide, "weight_decay": 0.01}, {"params": thin, "weight_decay": 0.0}],
        lr=LR,
        betas=(0.9, 0.95),
        eps=EPS,
    )

    def tokens_of(trajectory: Any) -> tuple[Any, Any]:
        ids = torch.tensor([trajectory.token_ids])
        logits = net(input_ids=ids).logits[0, :-1] / 0.9
        mask = torch.tensor(trajectory.action_mask[1:])
        log_p = logits.log_softmax(-1)[mask]
        chosen = ids[0, 1:][mask]
        return log_p.gather(-1, chosen[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

    def followed() -> Any:
        """Mean entropy of an eighth of the responses."""
        return torch.cat([tokens_of(flat[k])[1] for k in (0, 8)]).double().mean()

    coefficient, start = 0.04, 0.0
    rows: list[dict[str, float]] = []
    for i in range(ITERATIONS):
        groups = make_groups(i)
        flat = [t for g in groups for t in g.trajectories]
        advantages = []
        for g in groups:
            r = np.array([t.verdict.reward for t in g.trajectories])
            advantages += list((r - r.mean()) / (r.std() + 1e-6))
        with torch.no_grad():
            before = [tokens_of(t) for t in flat]
        entropy = float(torch.cat([h for _, h in before]).double().mean())
        start = entropy if i == 0 else start
        coefficient = min(coefficient * 2, 0.05) if entropy < 0.7 * start else coefficient / 2
        at_first, origin = followed(), [p.detach().clone() for p in net.parameters()]
        gradient = torch.autograd.grad(at_first, list(net.parameters()))
        half = len(flat) // UPDATES
        for k in range(UPDATES):
            members = range(k * half, (k + 1) * half)
            total = sum(t.response_tokens for t in (flat[j] for j in members))
            loss = torch.zeros(())
            for j in members:
                logp, h = tokens_of(flat[j])
                a = float(advantages[j])
                surprise = (logp + h).detach()
                sign = (a > 0) - (a < 0)
                shaped = a * torch.clamp(1 - coefficient * sign * surprise, min=0)
                ratio = torch.exp(logp - before[j][0])
                loss = loss - torch.minimum(ratio * shaped, ratio.clamp(1 - CLIP, 1 + CLIP) * shaped).sum() / total
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), GRAD_CLIP)
            optimizer.step()
        with torch.no_grad():
            moved = zip(gradient, net.parameters(), origin, strict=True)
            predicted = sum(float((g.double() * (p - o).double()).sum()) for g, p, o in moved)
            made = float(followed() - at_first)
        rows.append({"entropy/exact": entropy, "entropy/predicted_dh": predicted, "entropy/step_dh": made})
    return {n: p.detach().numpy() for n, p in net.named_parameters()}, rows
