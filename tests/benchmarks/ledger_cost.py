"""Measures what the entropy ledger costs: the same training iteration with and without its tallies, one after the other in one
process.

    python tests/benchmarks/ledger_cost.py [--cuda] [--hidden 64 --layers 3 --vocab 48 --response 8 --prompts 32 --responses 16 ...]

Prints the share of an iteration's training time that the ledger takes: medians over `repeats`, taken in turns so that a busy
machine slows both. Without tallies: nothing is added up, reduced or predicted; forward passes, loss and steps are the same.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from integration import learner_cases  # noqa: E402

from envs.types import Group, Prompt, Trajectory, Turn, Verdict  # noqa: E402
from learner import learner as module  # noqa: E402
from learner.advantages import ADVANTAGES  # noqa: E402
from learner.batching import build_batches, trajectory_advantages  # noqa: E402
from learner.rank_settings import RankPlace  # noqa: E402
from learner.settings import BatchPlan  # noqa: E402

TALLIES = ("tally_policy", "tally_shaping", "tally_update")


def groups(prompts: int, responses: int, length: int, seed: int) -> list[Group]:
    rng = random.Random(seed)
    out = []
    for g in range(prompts):
        prompt = Prompt("toy", "train", g, ())
        context = tuple(rng.randrange(1, 48) for _ in range(14))
        members = []
        for _ in range(responses):
            n = rng.randint(length - length // 8, length + length // 8)
            turn = Turn(context, tuple(rng.randrange(1, 48) for _ in range(n)), (-1.0,) * n, "stop", 0, 0)
            reward = float(rng.random() < 0.4)
            members.append(Trajectory(prompt, (turn,), ("",), Verdict(reward, reward > 0)))
        out.append(Group(prompt, tuple(members)))
    return out


def make_model(folder: str, hidden: int, layers: int, vocab: int) -> str:
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64), num_key_value_heads=max(1, hidden // 128), head_dim=max(32, min(64, hidden // 2)),
        tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


class Without:
    """Removes the tallies, and what reads them, from the module of the learner."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def __enter__(self) -> None:
        self.kept = {name: getattr(module, name) for name in (*TALLIES, "update_metrics")}
        for name in TALLIES:
            setattr(module, name, lambda *args: None)
        module.update_metrics = lambda *args: {}  # type: ignore[assignment]
        row = type("Row", (), {"metrics": {}, "updates": 1, "parts": {}})()
        self.tally, module.Tally = module.Tally, type("Tally", (module.Tally,), {"sums": {"loss": 0.0}})  # type: ignore[misc]
        quiet = {"row": lambda *a: row, "metrics": lambda: {}, "predict": lambda *a: {}}
        for name, call in quiet.items():
            setattr(self.learner.ledger, name, call)
        setattr(self.learner.steering, "observe", lambda row: {})  # noqa: B010
        setattr(self.learner, "_reduce", lambda tally: None)  # noqa: B010

    def __exit__(self, *_: object) -> None:
        for name, value in self.kept.items():
            setattr(module, name, value)
        module.Tally = self.tally
        for holder, names in (
            (self.learner.ledger, ("row", "metrics", "predict")),
            (self.learner.steering, ("observe",)),
            (self.learner, ("_reduce",)),
        ):
            for name in names:
                delattr(holder, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("hidden", 64),
        ("layers", 3),
        ("vocab", 48),
        ("response", 8),
        ("prompts", 32),
        ("responses", 16),
        ("updates", 16),
        ("repeats", 7),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cuda", action="store_true", help="On the GPU, in bf16.")
    args = parser.parse_args()
    model = make_model(tempfile.mkdtemp(), args.hidden, args.layers, args.vocab)
    placement = RankPlace(0, 1, "127.0.0.1", learner_cases.free_port(), args.cuda, 120.0)
    learner = module.Learner(
        learner_cases.settings(model, {"stage": 0, "precision": "bf16" if args.cuda else "fp32"}), placement
    )
    plan = BatchPlan(updates=args.updates, epochs=1, ranks=1, micro_batch_tokens=16384, packing=False)

    def once(seed: int) -> float:
        made = groups(args.prompts, args.responses, args.response, seed)
        flat = [t for g in made for t in g.trajectories]
        advantages = trajectory_advantages(made, ADVANTAGES["grpo"])
        (batch,) = build_batches(flat, advantages, plan=plan, aggregation="token", temperature=1.0)
        began = time.perf_counter()
        learner.train(batch)
        return time.perf_counter() - began

    once(0)
    with_ledger, without = [], []
    for i in range(args.repeats):
        with_ledger.append(once(i))
        with Without(learner):
            without.append(once(i))
    a, b = statistics.median(with_ledger), statistics.median(without)
    spread = (max(with_ledger) - min(with_ledger)) / a
    print(f"with the ledger {a * 1e3:.0f} ms, without {b * 1e3:.0f} ms an iteration of {args.updates} updates")
    print(f"the ledger takes {(a - b) / a:.1%} of the training time (spread of single measurements {spread:.0%})")
    learner.close()


if __name__ == "__main__":
    main()
