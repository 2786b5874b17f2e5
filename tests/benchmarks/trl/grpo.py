"""Trains with TRL's GRPOTrainer on a task that the other side of the benchmark wrote; runs in TRL's own virtual environment.

    .venv-trl/bin/python tests/benchmarks/trl/grpo.py TASK.json

TASK.json: model (a folder), prompts (rendered texts, in order, `group` replies each), tasks (what the environment scores with),
environment (name and parameters), group, replies (of a round), updates (of a round), rounds, max_tokens, lr, threads, micro_batch
(rows of a forward and backward pass), until (end once the mean reward over `window` rounds has reached it) and out. Writes a line a
round to `out`: seconds, CPU seconds, tokens, mean length, mean reward, seconds of generation, seconds since training began.

What a knowledgeable user would choose on a CPU: one generate call for the whole round with a KV cache, all cores, float32, no
reference model, one pass over the round, no checkpoint, no evaluation, nothing logged. TRL's vLLM needs a GPU.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[1] / "workloads")]


class Clock:
    """Notes when rounds begin and end, and what they were."""

    def __init__(self, out: Path) -> None:
        self.out, self.rows = out, []
        self.began = self.round_began = time.perf_counter()
        self.cpu = time.process_time()
        self.now: dict[str, float] = {}

    def start(self) -> None:
        self.began = self.round_began = time.perf_counter()
        self.cpu = time.process_time()

    def end_round(self) -> None:
        at, cpu = time.perf_counter(), time.process_time()
        row = {"seconds": at - self.round_began, "cpu": cpu - self.cpu, "elapsed": at - self.began, **self.now}
        self.round_began, self.cpu = at, cpu
        self.rows.append(row)
        with self.out.open("a") as f:
            f.write(json.dumps(row) + "\n")


def main() -> None:
    task: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    import torch

    torch.set_num_threads(task["threads"])
    from datasets import Dataset  # pyright: ignore[reportMissingImports] - in TRL's environment
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportAttributeAccessIssue]

    from envs.types import Message, Prompt, Verdict

    torch.manual_seed(task["seed"])
    module, _, name = task["environment"]["name"].replace(":", ".").rpartition(".")
    environment = getattr(importlib.import_module(module), name)(task["seed"], **task["environment"]["params"])
    clock = Clock(Path(task["out"]))

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], task: Any, **_: Any) -> Any:
        rewards = []
        for text, one in zip(completions, task, strict=True):
            prompt = Prompt("benchmark", "train", 0, (Message("user", ""),), json.loads(one))
            verdict = environment.open(prompt).reply(text)
            rewards.append(verdict.reward if isinstance(verdict, Verdict) else 0.0)
        tokens = sum(map(len, completion_ids))
        clock.now = {
            "tokens": tokens,
            "length": tokens / len(completion_ids),
            "reward": sum(rewards) / len(rewards),
            "generate": time.perf_counter() - clock.round_began,
        }
        return rewards

    updates, replies, micro = task["updates"], task["replies"], task["micro_batch"]
    config = GRPOConfig(
        output_dir=str(Path(task["out"]).parent / "trl"),
        use_cpu=True,
        bf16=False,
        seed=task["seed"],
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=replies // updates // micro,
        steps_per_generation=replies // micro,
        num_generations=task["group"],
        max_completion_length=task["max_tokens"],
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        epsilon=0.2,
        loss_type="dapo",  # the mean over the tokens of a round
        scale_rewards="group",
        mask_truncated_completions=False,
        num_iterations=1,
        max_steps=task["rounds"] * updates,
        learning_rate=task["lr"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        **task.get("trl", {}),
    )

    class Rounds(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % updates == 0:
                clock.end_round()
                recent = [r["reward"] for r in clock.rows[-task["window"] :]]
                if task["until"] is not None and len(recent) == task["window"]:
                    control.should_training_stop = sum(recent) / len(recent) >= task["until"]

    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32, attn_implementation="sdpa")
    GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": task["prompts"], "task": [json.dumps(t) for t in task["tasks"]]}),
        processing_class=AutoTokenizer.from_pretrained(task["model"], padding_side="left"),
        callbacks=[Rounds()],
    ).train()


if __name__ == "__main__":
    main()
