"""Measures an iteration against what nothing could be faster than: the engine alone, and plain torch alone on the same tokens.

    PYTHONPATH=.:tests python -m benchmarks.ideal [--json FILE] [--workloads heavy short]

Pure generation is vLLM's engine core in one process on one core, given the whole round at once. Pure training is the plain torch of
benchmarks.learner on the replies just generated, sorted by length, in the same process on the same core, in turns. Iterations are
those of `isentrope train` with one thread for the generator and one for the learner: synchronous, then with `batch.staleness: 1`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import measure, runs

SLACK = 1.15
STALENESS = {"synchronous": 0, "asynchronous": 1}


def pure(workload: str, repeats: int = measure.REPEATS, limit_s: float = 600) -> dict[str, list[float]]:
    """Returns seconds of generation and of training, and the tokens, of `repeats` rounds; in a process that has one core."""
    command = [sys.executable, "-m", "benchmarks.ideal", "--pure", workload, "--repeats", str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode:
        raise RuntimeError(f"the engine alone ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_pure(workload: str, repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Generates rounds and trains on them, one after the other, in this process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import numpy as np
    import torch
    from benchmarks.learner import Plain

    from actors.inference import Completion, Request, SamplingParams
    from actors.vllm_engine import VLLMEngine
    from envs.types import Message, Prompt, Trajectory, Turn, Verdict
    from learner.chat import load_tokenizer, render, stop_token_ids
    from orchestration.cluster.actor_settings import policy_engine
    from orchestration.config.run_config import load_config

    torch.set_num_threads(1)
    folder = str(runs.make_model(workload))
    config = load_config(str(runs.WORKLOADS / f"{workload}.yaml"))
    tokenizer = load_tokenizer(folder)
    params = SamplingParams(config.sampling.max_tokens, stop_token_ids=stop_token_ids(tokenizer, None))
    engine = VLLMEngine(policy_engine(config, folder, 0))
    plain = Plain(folder)
    count, group = config.batch.prompts * config.batch.responses, config.batch.responses

    def prompt_ids(index: int) -> tuple[int, ...]:
        return tuple(render(tokenizer, [Message("user", f"{index:06d}")]))

    def generate(number: int) -> list[Trajectory]:
        asked = [
            Request(str(i), prompt_ids(number * count + i // group), params, number * count + i) for i in range(count)
        ]
        done: dict[str, Completion] = {}
        over = threading.Event()

        def on_done(completion: Completion | BaseException) -> None:
            if isinstance(completion, Completion):
                done[completion.id] = completion
            if isinstance(completion, BaseException) or len(done) == count:
                over.set()

        engine.submit(asked, on_done)
        over.wait()
        if len(done) < count:
            raise RuntimeError("the engine ended a request with an error")
        return [
            Trajectory(
                Prompt("benchmark", "train", i // group, ()),
                (Turn(r.prompt_ids, done[r.id].response_ids, done[r.id].logprobs, "stop", 0, 0),),
                ("",),
                Verdict(0.0),
            )
            for i, r in enumerate(asked)
        ]

    found: dict[str, list[float]] = {"generate": [], "train": [], "tokens": []}
    rng = np.random.default_rng(0)
    for i in range(warm + repeats):
        began = time.perf_counter()
        made = generate(i)
        generated = time.perf_counter()
        plain.train(made, rng.standard_normal(count))
        trained = time.perf_counter()
        if i >= warm:
            found["generate"].append(generated - began)
            found["train"].append(trained - generated)
            found["tokens"].append(sum(t.response_tokens for t in made))
    engine.close()
    return found


def compare(workload: str, folder: Path, repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the lines of a workload and what they are made of."""
    alone = pure(workload, repeats)
    generate, train = statistics.median(alone["generate"]), statistics.median(alone["train"])
    recipe = runs.WORKLOADS / f"{workload}.yaml"
    lines: list[dict[str, Any]] = []
    details: dict[str, Any] = {"pure": alone}
    common = (f"run.iterations={repeats + 1}", "learner.threads=1")
    given = {f"{workload}-{name}": (f"batch.staleness={staleness}", *common) for name, staleness in STALENESS.items()}
    measured = runs.in_turn(recipe, folder, given)
    for name, staleness in STALENESS.items():
        found = measured[f"{workload}-{name}"]
        walls, transfer = found.walls, statistics.median(found.steady("time/sync"))
        wall, tokens = statistics.median(walls), statistics.median(found.steady("tokens/generated"))
        least = max(generate, train) + transfer / SLACK if staleness else generate + train
        value = wall / least
        said = (
            "max(pure generation, pure training) and the transfer" if staleness else "pure generation + pure training"
        )
        lines.append(
            measure.ratio(
                f"{workload}: {name} iteration / {said}",
                value,
                goal=f"at most {SLACK}",
                held=value <= SLACK,
                ours=f"{measure.seconds(wall)} ({tokens:.0f} tokens)",
                other=f"generation {measure.seconds(generate)}, training {measure.seconds(train)} "
                f"({statistics.median(alone['tokens']):.0f} tokens), transfer {measure.seconds(transfer)}",
                values=[w / least for w in walls],
            )
        )
        details[name] = {"walls": walls, "by kind of work": found.breakdown()}
    return lines, details


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workloads", nargs="+", default=["heavy", "short"])
    parser.add_argument("--repeats", type=int, default=measure.REPEATS)
    parser.add_argument("--pure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pure:
        print(json.dumps(measure_pure(args.pure, args.repeats)))
        return
    lines: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for workload in args.workloads:
            found, details[workload] = compare(workload, Path(folder), args.repeats)
            lines += found
            print(measure.table(found), flush=True)
    measure.write(args.json, "ideal", lines, **details)


if __name__ == "__main__":
    main()
