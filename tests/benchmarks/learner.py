"""Times the learner beside plain torch on the same responses, in one process, in turns.

    python tests/benchmarks/learner.py [--threads 2] [--rounds 5] [--json FILE]

One rank, fp32 on the CPU, a Qwen3 of 0.6 million random weights, 256 responses to prompts of 8 tokens, 4 updates. Two kinds of
lengths: "heavy" (log-normal, mean about 83 tokens, at most 512) and "short" (uniform, at most 32).

The plain trainer does what any trainer of this loss does and nothing else: log-probs of all responses without gradient, then for
every update forward, backward and clipping by norm on micro-batches of at most 2,048 slots, filled in order of length and padded on
the right, and one step of torch's AdamW. It computes no entropy, and has no control, no ledger and no metrics. The learner is
`Learner.train` with the default settings of a recipe, padded and packed, with all of those.

Then the learner beside itself on responses of which 16 have the same prompt, one update, packed: each with its prompt, and with its
prompt once (`learner.prefix_sharing`). Of prompts and responses of 20 and 6 tokens, 8 and about 83, 1,000 and 500.

Prints medians of the rounds and the learner's time over the plain trainer's; --out writes the same as JSON.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from benchmarks.measure import ratio, write  # noqa: E402
from integration.learner_cases import free_port  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoModelForCausalLM, Qwen3Config  # noqa: E402

from envs.types import Prompt, Trajectory, Turn, Verdict  # noqa: E402
from learner.batching import build_batches  # noqa: E402
from learner.deepspeed_engine import RankPlace  # noqa: E402
from learner.entropy.settings import EntropySettings  # noqa: E402
from learner.learner import Learner  # noqa: E402
from learner.rank_settings import RankSettings  # noqa: E402
from learner.settings import LEAST_SAVED, BatchPlan, LearnerSettings, ModelSettings, ObjectiveSettings  # noqa: E402

VOCAB, PROMPT, RESPONSES, UPDATES = 64, 8, 256, 4
SLOTS = 2048  # of a plain micro-batch
LR, CLIP = 1e-4, 0.2
CLOCK = time.perf_counter
LENGTHS: dict[str, Callable[[random.Random], int]] = {
    "heavy": lambda rng: min(512, max(1, round(rng.lognormvariate(3.95, 1.0)))),
    "short": lambda rng: rng.randint(1, 32),
}


GROUP = 16  # responses of a prompt, where prompts are shared
# A prompt's tokens, those of a response, and how many responses.
SHARED: dict[str, tuple[int, Callable[[random.Random], int], int]] = {
    "20 and 6": (20, lambda rng: 6, 256),
    "8 and 83": (8, LENGTHS["heavy"], 256),
    "1,000 and 500": (1000, lambda rng: 500, 16),
}


def make_model(folder: str) -> str:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def responses(kind: str, seed: int) -> list[Trajectory]:
    rng = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, VOCAB) for _ in range(n))

    made: list[Trajectory] = []
    for i in range(RESPONSES):
        n = LENGTHS[kind](rng)
        turn = Turn(ids(PROMPT), ids(n), (-math.log(VOCAB),) * n, "stop", 0, 0)
        made.append(Trajectory(Prompt("toy", "train", i // 8, ()), (turn,), ("",), Verdict(float(rng.random() < 0.5))))
    return made


def groups(kind: str, seed: int) -> list[Trajectory]:
    """Returns responses of which GROUP stand together and have a prompt in common."""
    rng, (prompt, length, count) = random.Random(seed), SHARED[kind]

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, VOCAB) for _ in range(n))

    made: list[Trajectory] = []
    for i in range(count):
        begins = ids(prompt) if i % GROUP == 0 else made[-1].turns[0].context_ids
        n = length(rng)
        turn = Turn(begins, ids(n), (-math.log(VOCAB),) * n, "stop", 0, 0)
        task = Prompt("toy", "train", i // GROUP, ())
        made.append(Trajectory(task, (turn,), ("",), Verdict(float(rng.random() < 0.5))))
    return made


class Plain:
    """Trains a model with torch alone on responses sorted by length."""

    def __init__(self, folder: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)

    def train(self, made: list[Trajectory], advantages: np.ndarray) -> None:
        size = len(made) // UPDATES
        updates = [self._micro_batches(made, advantages, range(k * size, (k + 1) * size)) for k in range(UPDATES)]
        with torch.no_grad():
            old = [[self._logp(*micro[:2]) for micro in update] for update in updates]
        for update, before in zip(updates, old, strict=True):
            for micro, old_logp in zip(update, before, strict=True):
                change = (self._logp(*micro[:2]) - old_logp).exp()
                advantage = micro[2][:, None]
                loss = -torch.minimum(change * advantage, change.clamp(1 - CLIP, 1 + CLIP) * advantage)
                (loss * micro[3]).sum().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _micro_batches(
        self, made: list[Trajectory], advantages: np.ndarray, members: range
    ) -> list[tuple[Tensor, ...]]:
        """Returns (tokens [B, T], length of the longest prompt, advantages [B], loss weights [B, T - 1]) each."""
        count = sum(made[i].response_tokens for i in members)
        bins: list[list[int]] = []
        for i in sorted(members, key=lambda i: -len(made[i].token_ids)):
            if bins and (len(bins[-1]) + 1) * len(made[bins[-1][0]].token_ids) <= SLOTS:
                bins[-1].append(i)
            else:
                bins.append([i])
        out: list[tuple[Tensor, ...]] = []
        for chosen in bins:
            width = len(made[chosen[0]].token_ids)
            tokens, weight = np.zeros((len(chosen), width), np.int64), np.zeros((len(chosen), width - 1), np.float32)
            for row, i in enumerate(chosen):
                tokens[row, : len(made[i].token_ids)] = made[i].token_ids
                weight[row, PROMPT - 1 : len(made[i].token_ids) - 1] = 1.0 / count
            parts = (tokens, np.array(PROMPT), advantages[chosen].astype(np.float32), weight)
            out.append(tuple(torch.from_numpy(part) for part in parts))
        return out

    def _logp(self, tokens: Tensor, _: Tensor) -> Tensor:
        logits = self.model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def learner_of(folder: str, threads: int) -> Learner:
    settings = RankSettings(
        model=ModelSettings(path=folder),
        learner=LearnerSettings(lr=LR, threads=threads),
        objective=ObjectiveSettings(),
        entropy=EntropySettings.model_validate({}),
        precision="fp32",
        loss_scale_power=16,
        fp32_head=False,
        reference=folder,
        hold_reference=False,
        total_steps=1000,
        seed=0,
        bucket_bytes=1 << 20,
    )
    return Learner(settings, RankPlace(0, 1, "127.0.0.1", free_port(), False, 120.0))


def seconds(work: Callable[[], object]) -> float:
    began = CLOCK()
    work()
    return CLOCK() - began


def measure(kind: str, rounds: int, learner: Learner, plain: Plain, budgets: list[int]) -> dict[str, Any]:
    plans = {
        f"{'packed' if packing else 'padded'} {budget}": BatchPlan(updates=UPDATES, micro_batch_tokens=budget, packing=packing)
        for budget in budgets
        for packing in (False, True)
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ("plain", *plans)}
    tokens = 0
    for i in range(-1, rounds):  # the first one warms up
        made = responses(kind, i)
        tokens = sum(len(t.token_ids) for t in made)
        rewards = np.array([t.verdict.reward for t in made])
        advantages = rewards - rewards.mean()
        for name in times:
            if name == "plain":
                taken = seconds(partial(plain.train, made, advantages))
            else:
                (batch,) = build_batches(made, advantages, plan=plans[name], aggregation="token", temperature=1.0)
                taken = seconds(partial(learner.train, batch))
            if i >= 0:
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    # A ratio of each round: the two times in it were taken side by side.
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, times["plain"], strict=True))
        for name, values in times.items()
        if name != "plain"
    }
    return {"tokens": tokens, "seconds": medians, "ratio": ratios, "rounds": times}


def measure_sharing(kind: str, rounds: int, learner: Learner) -> dict[str, Any]:
    """Times the learner with a prompt for each response and with a prompt once, in turns."""
    times: dict[str, list[float]] = {"apart": [], "shared": []}
    slots: dict[str, int] = {}
    for i in range(-1, rounds):  # the first one warms up
        made = groups(kind, i)
        rewards = np.array([t.verdict.reward for t in made])
        for name in times:
            plan = BatchPlan(packing=True, prefix_sharing=name == "shared")
            advantages = rewards - rewards.mean()
            (batch,) = build_batches(made, advantages, plan=plan, aggregation="token", temperature=1.0)
            slots[name] = sum(m.tokens.size for update in batch.updates for m in update)
            taken = seconds(partial(learner.train, batch))
            if i >= 0:
                times[name].append(taken)
    values = [a / b for a, b in zip(times["shared"], times["apart"], strict=True)]
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {"slots": slots, "seconds": medians, "ratio": statistics.median(values), "values": values}


def sharing_line(kind: str, result: dict[str, Any]) -> dict[str, Any]:
    """Returns the line of the results: where sharing saves what it has to by default, it must not cost time."""
    by_default = result["slots"]["shared"] <= (1 - LEAST_SAVED) * result["slots"]["apart"]
    return ratio(
        f"prompts and responses of {kind} tokens, 16 a prompt: prompt once / for each response",
        result["ratio"],
        goal="under 1" if by_default else "",
        held=result["ratio"] < 1 if by_default else None,
        ours=f"{result['seconds']['shared']:.3g} s, {result['slots']['shared']} slots",
        other=f"{result['seconds']['apart']:.3g} s, {result['slots']['apart']} slots",
        values=result["values"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budgets", type=int, nargs="+", default=[BatchPlan().micro_batch_tokens])
    parser.add_argument("--kinds", nargs="*", choices=tuple(LENGTHS), default=tuple(LENGTHS))
    parser.add_argument("--sharing", nargs="*", choices=tuple(SHARED), default=tuple(SHARED))
    parser.add_argument(
        "--cpu-time", action="store_true", help="of the process, instead of seconds: for a busy machine, one thread"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    global CLOCK
    CLOCK = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    folder = make_model(tempfile.mkdtemp())
    learner, plain = learner_of(folder, args.threads), Plain(folder)
    results: dict[str, Any] = {}
    for kind in args.kinds:
        result = results[kind] = measure(kind, args.rounds, learner, plain, args.budgets)
        print(f"{kind}: {result['tokens']} tokens, plain torch {result['seconds']['plain']:.3f} s", flush=True)
        for name, share in result["ratio"].items():
            print(f"  learner, {name}: {result['seconds'][name]:.3f} s, {share:.2f} x plain", flush=True)
    sharing: dict[str, Any] = {}
    for kind in args.sharing:
        result = sharing[kind] = measure_sharing(kind, args.rounds, learner)
        print(
            f"prompts and responses of {kind} tokens: {result['slots']['apart']} slots, {result['seconds']['apart']:.3f} s"
        )
        print(
            f"  prompt once: {result['slots']['shared']} slots, {result['seconds']['shared']:.3f} s, {result['ratio']:.2f} x",
            flush=True,
        )
    if args.json:
        lines = [
            ratio(
                f"{kind}, {name} tokens: learner / plain torch",
                result["ratio"][name],
                goal="at most 1.15",
                held=result["ratio"][name] <= 1.15,
                ours=f"{result['seconds'][name]:.3g} s",
                other=f"{result['seconds']['plain']:.3g} s",
                values=[a / b for a, b in zip(result["rounds"][name], result["rounds"]["plain"], strict=True)],
            )
            for kind, result in results.items()
            for name in result["ratio"]
        ]
        lines += [sharing_line(kind, result) for kind, result in sharing.items()]
        write(args.json, "learner", lines, threads=args.threads, kinds=results, sharing=sharing)
    learner.close()


if __name__ == "__main__":
    main()
