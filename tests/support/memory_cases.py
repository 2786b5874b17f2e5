"""Trains for two iterations on learner ranks in processes of their own, and compares what each took with what was planned.

Real DeepSpeed, gloo and AdamW on a CPU, without Ray and engines. What is compared is the peak of the resident set as the kernel
counts it (VmHWM): of a rank almost all of it is its own, the pages of library files aside, which other processes may share.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
PROMPT, LENGTH = 16, 64  # tokens of every trajectory: a row of a micro-batch
ITERATIONS = 2  # moments are there from the second on, while the entropy's gradient is taken
UPDATES = 2


@dataclass(frozen=True)
class Measured:
    """Holds one rank's bytes: planned, and the peak measured. libraries: resident before there was a model, which is in both."""

    case: str
    rank: int
    planned: int
    peak: int
    libraries: int

    @property
    def ratio(self) -> float:
        return self.planned / self.peak

    @property
    def ratio_above(self) -> float:
        """Returns the ratio of what is there beside the libraries."""
        return (self.planned - self.libraries) / (self.peak - self.libraries)


def resident(key: str = "VmRSS") -> int:
    """Returns this process's resident bytes now; with VmHWM their peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def make_model(folder: Path, **shape: int) -> str:
    """Writes a random Llama with a tied head."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 6,
             "num_key_value_heads": 2, "vocab_size": 32_000, **shape}  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, tie_word_embeddings=True))
    model.save_pretrained(folder)
    return str(folder)


def name_of(learner: Mapping[str, Any]) -> str:
    """Names a case: "LoRA 32, ZeRO 3, 2 ranks"."""
    kind = f"LoRA {learner['lora']}" if learner.get("lora") else "full"
    ranks = learner.get("ranks", 1)
    return f"{kind}, ZeRO {learner.get('zero_stage', 0)}, {ranks} rank{'s' if ranks > 1 else ''}"


def config_of(model: str, learner: Mapping[str, Any]) -> Any:
    """Returns a run's configuration with this learner."""
    from orchestration.config.run_config import validate
    from support.builders import config_data

    usual = {"lr": 1e-5, "micro_batch_tokens": 4 * LENGTH, "threads": 1, "updates": UPDATES}
    batch = {"prompts": 8, "responses": 2 * learner.get("ranks", 1)}
    method = {"method": {"kind": "none"}}
    return validate(config_data(model={"path": model}, batch=batch, learner={**usual, **learner}, entropy=method))


def measure(model: str, learner: Mapping[str, Any], limit_s: float = 280.0) -> list[Measured]:
    """Plays a case; returns what was planned and measured of each rank."""
    from integration import learner_cases

    from orchestration.memory.learner_rank import LIBRARIES, rank_need
    from orchestration.memory.model_size import model_size

    config, size = config_of(model, learner), model_size(model)
    assert size is not None
    need = rank_need(config, size)
    planned = need.total - LIBRARIES - need.parts["transfer buffers"]  # there is nobody to send weights to
    with tempfile.TemporaryDirectory(prefix="memory-") as out:
        learner_cases.run_ranks(rank_main, config.learner.ranks, model, [dict(learner)], Path(out), limit_s)
        found = [json.loads((Path(out) / f"{r}.json").read_text()) for r in range(config.learner.ranks)]
    return [
        Measured(name_of(learner), r, planned + f["libraries"], f["peak"], f["libraries"]) for r, f in enumerate(found)
    ]


def rank_main(rank: int, world: int, port: int, model: str, cases: list[Any], out: str) -> None:
    """Trains one rank of a case; writes its peak, and what was resident before there was a model."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401 - it is part of what is resident before
    import peft  # noqa: F401
    import torch.distributed

    from learner.learner import Learner
    from learner.rank_settings import RankPlace
    from orchestration.cluster.actor_settings import Start, rank_settings

    libraries, config = resident(), config_of(model, cases[0])
    learner = Learner(rank_settings(config, Start(model)), RankPlace(rank, world, "127.0.0.1", port, False, 120.0))
    for iteration in range(ITERATIONS):
        learner.train(batch(config, iteration)[rank])
    found = {"libraries": libraries, "peak": resident("VmHWM")}
    (Path(out) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    learner.close()


def batch(config: Any, seed: int) -> list[Any]:
    """Returns a batch plan, by rank, of random trajectories of LENGTH tokens, which fill the micro-batches."""
    from envs.types import Group, Prompt, Trajectory, Turn, Verdict
    from learner.advantages import ADVANTAGES
    from learner.batching import build_batches, trajectory_advantages

    rng = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, 30_000) for _ in range(count))

    def trajectory(prompt: Prompt, reward: float) -> Trajectory:
        count = LENGTH - PROMPT
        turn = Turn(ids(PROMPT), ids(count), tuple(-rng.random() for _ in range(count)), "stop", 0, 0)
        return Trajectory(prompt, (turn,), ("",), Verdict(reward, reward > 0))

    prompts = [Prompt("countdown", "train", i, ()) for i in range(config.batch.prompts)]
    groups = [Group(p, tuple(trajectory(p, float(i % 2)) for i in range(config.batch.responses))) for p in prompts]
    every = [t for group in groups for t in group.trajectories]
    advantages = trajectory_advantages(groups, ADVANTAGES["grpo"])
    return build_batches(every, advantages, plan=config.learner, aggregation="token", temperature=1.0)
