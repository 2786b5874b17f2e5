"""Part `colocated` of check.py: an engine that sleeps and wakes, a learner's state on the host, and whole runs that take turns."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

GIB = 2**30
LEAST = 2 * GIB  # of KV cache, so that what sleep frees is seen beside what a process takes anyway


def free() -> int:
    """Returns the bytes that are free on the GPU, whichever process took the others."""
    import torch

    return torch.cuda.mem_get_info()[0]


def engine(say: Callable[..., None], model: str) -> None:
    """Measures what a sleep frees and whether the engine is the same afterwards."""
    from actors.settings import GeneratorSettings, VLLMSettings
    from actors.vllm_engine import VLLMEngine

    settings = GeneratorSettings(max_model_len=64, gpus=1, colocated=True, kv_cache_mb=2 * LEAST // 2**20)
    before = free()
    made = VLLMEngine(VLLMSettings(model=model, generator=settings, dtype="float32"), start_timeout_s=120)
    try:
        sequences = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
        scores, awake = made.sequence_logprobs(sequences), free()
        for turn in range(3):
            began = time.perf_counter()
            made.sleep()
            asleep, slept = free(), time.perf_counter() - began
            made.wake("weights")
            weights = free()
            made.wake("kv_cache")
            back, seconds = free(), time.perf_counter() - began
            right = asleep - awake >= LEAST and weights - back >= LEAST and abs(back - awake) < GIB / 4
            say(
                f"engine, sleep {turn + 1}: GiB free before it was built, awake, asleep, with weights, awake",
                ", ".join(f"{n / GIB:.2f}" for n in (before, awake, asleep, weights, back))
                + f"; {slept:.2f} s asleep, {seconds:.2f} s in all",
                right,
            )
            say("the same log-probs as before", "equal bits", made.sequence_logprobs(sequences) == scores)
    finally:
        made.close()


def engine_alone(pipe: Connection, model: str) -> None:
    engine(lambda *line: pipe.send(line), model)


def learner(say: Callable[..., None], model: str) -> None:
    """Compares training with the optimiser's state on the host between two iterations with training without, at every stage."""
    import torch
    from integration import learner_cases

    from learner.learner import Learner
    from learner.rank_settings import RankPlace

    place = RankPlace(0, 1, "127.0.0.1", learner_cases.free_port(), True, 120.0)
    for stage in (0, 1, 2, 3):
        for precision in ("fp32", "bf16"):
            found: list[dict[str, Any]] = []
            freed = 0
            for away in (False, True):
                case = {"name": "x", "stage": stage, "precision": precision}
                trained = Learner(learner_cases.settings(model, case), place)
                trained.train(learner_cases.batches(0, 1, 200, False, "token")[0])
                if away:
                    held = torch.cuda.memory_allocated()
                    trained.engine.offload()
                    freed = held - torch.cuda.memory_allocated()
                trained.train(learner_cases.batches(1, 1, 200, False, "token")[0])
                found.append(learner_cases.weights(trained))
                trained.release()
            far = max(float(abs(found[0][name] - found[1][name]).max()) for name in found[0])
            text = f"{freed / 2**20:.2f} MiB freed, weights differ by {far:.1e}"  # sums on a GPU vary in their order
            say(
                f"learner, {precision}, ZeRO {stage}", text, freed > 0 and far < (1e-6 if precision == "fp32" else 1e-3)
            )


def colocated(say: Callable[..., None]) -> None:
    """Runs all of it; `run` needs models/countdown-tiny."""
    from gpu import whole_runs
    from integration import learner_cases

    folder = Path(tempfile.mkdtemp())
    model = learner_cases.make_model(str(folder / "model"))
    learner(say, model)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=engine_alone, args=(theirs, model))
    process.start()  # vLLM makes process groups of its own
    theirs.close()
    with suppress(EOFError):
        while True:
            say(*ours.recv())
    process.join(30)
    say("engine: exit code of its process", process.exitcode, process.exitcode == 0)
    turns = (
        "generators.colocated=true",
        "generators.gpus=1",
        "learner.gpus=1",
        "generators.gpu_memory_utilization=0.3",
    )
    for precision in ("fp32", "bf16"):
        code, output, rows = whole_runs.train(
            folder, precision, 150, *turns, f"precision={precision}", "run.iterations=4", "evaluation.prompts=20",
            "evaluation.samples=4", "evaluation.ks=[1,4]", "checkpoint.every=2",
        )  # fmt: skip
        if code or len(rows) < 4:
            say(f"{precision}: isentrope train", f"exit {code}: {' '.join(output.split())[-700:]}", False)
            continue
        gap = max(whole_runs.column(rows, "sync/logprob_gap_max"))
        took, whole = (whole_runs.middle(whole_runs.column(rows, key)) for key in ("time/turns", "time/iteration"))
        text = f"engine gap max {gap:.1e}, {took:.2f} of {whole:.2f} s an iteration are changes of turn"
        say(f"{precision}: isentrope train, 4 iterations", text, True)
