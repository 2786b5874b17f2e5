"""Measures what loading a model takes of a host: `python tests/benchmarks/loading.py [--mb 300] [--ranks 2] [--stages 0 3]`.

A random model is read by the ranks of a learner group, once as it is (rank 0 reads for all) and once with every rank reading, in
turn. Printed is the largest sum over ranks of their own memory (RssAnon: files that are mapped are the host's, and shared), looked
at every 2 ms, above what the processes had before: until the model is there, and until DeepSpeed has its masters and moments, which
are in the GPUs' memory where there are any. The checkpoint is in bf16, as published ones are, and training in fp32.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import sys
import tempfile
import threading
import time
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))


def own_memory(pid: int) -> int:
    """Returns the bytes of memory that are a process's own."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def rank_main(
    rank: int, world: int, port: int, model: str, stage: int, once: bool, barrier: Any, done: Queue[float]
) -> None:
    import torch

    from learner.deepspeed_engine import DeepSpeedEngine, RankPlace
    from learner.policy import load_policy
    from learner.settings import EngineSettings
    from learner.training_state.one_read import read_once

    torch.set_num_threads(1)
    place = RankPlace(rank, world, "127.0.0.1", port, False, 600.0)
    engine = DeepSpeedEngine(place, EngineSettings(zero_stage=stage), precision="fp32", lr=1e-6)
    barrier.wait()
    begun = time.perf_counter()
    load = partial(load_policy, model, attention="sdpa", checkpointing=False)
    policy = read_once(engine, load) if once else load()
    done.put(time.perf_counter() - begun)
    barrier.wait()  # the peak so far is taken
    barrier.wait()
    engine.attach(policy)
    done.put(time.perf_counter() - begun)
    barrier.wait()


def measure(model: str, world: int, stage: int, once: bool) -> tuple[float, float, float]:
    """Returns MB above the start at the peak of all ranks: with the model, with DeepSpeed; and seconds until the model is there."""
    context = multiprocessing.get_context("spawn")
    barrier, done = context.Barrier(world + 1), context.Queue()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    arguments = [(rank, world, port, model, stage, once, barrier, done) for rank in range(world)]
    ranks = [context.Process(target=rank_main, args=a, daemon=True) for a in arguments]
    for process in ranks:
        process.start()
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, sum(own_memory(process.pid or 0) for process in ranks))

    while barrier.n_waiting < world:
        time.sleep(0.01)
    before = sum(own_memory(process.pid or 0) for process in ranks)
    watcher = threading.Thread(target=watch)
    watcher.start()
    barrier.wait()
    seconds = max(done.get(timeout=600) for _ in ranks)
    barrier.wait()
    loaded = peak
    barrier.wait()
    for _ in ranks:
        done.get(timeout=600)
    ended.set()
    watcher.join()
    barrier.wait()
    for process in ranks:
        process.join(60)
    return (loaded - before) / 1e6, (peak - before) / 1e6, seconds


def make_model(folder: str, mb: int) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers = max(1, mb * 10**6 // 4 // (1024 * 1024 * 16) - 2)
    config = LlamaConfig(
        vocab_size=16384, hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=8
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mb", type=int, default=300)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(folder, options.mb)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e6 * 2
        print(f"a model of {size:.0f} MB in fp32, {options.ranks} ranks, medians of {options.runs}")
        for stage in options.stages:
            found: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
            for _ in range(options.runs):
                for once, figures in found.items():
                    figures.append(measure(model, options.ranks, stage, once))
            for once, figures in found.items():
                loaded, ready, seconds = (sorted(column)[len(figures) // 2] for column in zip(*figures, strict=True))
                who = "rank 0 reads" if once else "every rank reads"
                size_of = f"{loaded:6.0f} MB ({loaded / size:.1f}x) with the model, {ready:6.0f} MB when ready"
                print(f"ZeRO-{stage}  {who:17} {size_of}, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
