"""Trains the learner on a task that any policy can learn, responses of even tokens, with all weights and with an adapter.

One process: responses are sampled from the trained model itself, so that no engine is needed. Run as `python adapter_curve.py`, it
prints the curves.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ITERATIONS, PROMPTS, RESPONSES, LENGTH = 20, 8, 16, 6
RATES = {"full": 1e-3, "lora": 1e-2, "dora": 1e-2}
ADAPTERS: dict[str, dict[str, Any] | None] = {"full": None, "lora": {"rank": 4}, "dora": {"rank": 4, "dora": True}}


def sampled(model: Any, iteration: int) -> list[Any]:
    """Returns a group of responses to each prompt; a response's reward is its share of even tokens."""
    import torch

    from envs.types import Group, Prompt, Trajectory, Turn, Verdict

    numbers = torch.Generator().manual_seed(iteration)
    prompts = torch.randint(2, 48, (PROMPTS, 3), generator=numbers).repeat_interleave(RESPONSES, 0)
    tokens, chosen = prompts, []
    with torch.no_grad():
        for _ in range(LENGTH):
            log_p = model(input_ids=tokens).logits[:, -1].log_softmax(-1)
            token = torch.multinomial(log_p.exp(), 1, generator=numbers)
            chosen.append(log_p.gather(1, token)[:, 0])
            tokens = torch.cat([tokens, token], 1)
    logprobs = torch.stack(chosen, 1).tolist()
    groups = []
    for g in range(PROMPTS):
        prompt = Prompt("even", "train", g, ())
        members = []
        for i in range(g * RESPONSES, (g + 1) * RESPONSES):
            ids = tuple(tokens[i].tolist())
            reward = sum(t % 2 == 0 for t in ids[3:]) / LENGTH
            turn = Turn(ids[:3], ids[3:], tuple(logprobs[i]), "length", 0, 0)
            members.append(Trajectory(prompt, (turn,), ("",), Verdict(reward, reward > 0.5)))
        groups.append(Group(prompt, tuple(members)))
    return groups


def curve(kind: str, model: str, port: int) -> list[float]:
    """Returns the mean reward of each iteration's responses."""
    from integration import learner_cases

    from learner.advantages import ADVANTAGES
    from learner.batching import build_batches, trajectory_advantages
    from learner.learner import Learner
    from learner.rank_settings import RankPlace
    from learner.settings import BatchPlan

    case = {"name": kind, "stage": 0, "lora": ADAPTERS[kind], "lr": RATES[kind], "method": {"kind": "none"}}
    learner = Learner(learner_cases.settings(model, case), RankPlace(0, 1, "127.0.0.1", port, False, 60.0))
    plan = BatchPlan(updates=2, mixed=False, packing=False)
    rewards: list[float] = []
    for iteration in range(ITERATIONS):
        groups = sampled(learner.policy.model, iteration)
        flat = [t for g in groups for t in g.trajectories]
        rewards.append(sum(t.verdict.reward for t in flat) / len(flat))
        advantages = trajectory_advantages(groups, ADVANTAGES["grpo"])
        learner.train(build_batches(flat, advantages, plan=plan, aggregation="token", temperature=1.0)[0])
    learner.release()
    return rewards


def curves(out: str) -> None:
    """Writes the curves of full training, LoRA and DoRA."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from integration import learner_cases

    with tempfile.TemporaryDirectory() as folder:
        model, port = learner_cases.make_model(folder), learner_cases.free_port()
        Path(out).write_text(json.dumps({kind: curve(kind, model, port) for kind in ADAPTERS}))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    with tempfile.NamedTemporaryFile() as file:
        curves(file.name)
        for name, rewards in json.loads(Path(file.name).read_text()).items():
            print(name, " ".join(f"{reward:.2f}" for reward in rewards))
