"""The CUDA path on one GPU, part by part, as one table: `python tests/gpu/check.py [--parts maths,learner] [--out FOLDER]`.

    maths      log-probs, exact entropy and their gradients against float64, in every precision
    head       the head's kernels against float64 (tests/gpu/head.py), and beside plain torch, torch.compile and Liger
    learner    DeepSpeed on the device: every case of tests/integration/test_learner_group.py on one rank, against plain torch,
               against each other and against the same case on the CPU
    engine     vLLM on the device: updates, in-flight updates, sampling rules and broken transfers of test_weight_sync.py
    nccl       the weight channel over NCCL, as far as one GPU goes: a group of one, and the refusal of two members on one device
    ipc        weights that an engine on the learner's GPU reads out of its memory, and out of the host's (shared_weights.py)
    colocated  learner and generator in turn on the GPU: what sleep and offloading free, and whole runs (colocated.py)
    run        `isentrope train` with learner and generator on shares of the GPU, one run a precision
    ledger     what the entropy ledger costs beside a model of a size that GPUs are for
    size       `isentrope train` with a model of 0.6 billion random parameters: where an iteration's time goes

Every part is a process of its own with a limit; what fails is a line of the table. `colocated`, `run` and `size` need
models/countdown-tiny: `isentrope init-model --recipe lab-countdown steps=1000`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
LIMITS = {
    "packed": 90, "maths": 90, "head": 180, "learner": 240, "engine": 240, "nccl": 90, "ipc": 90, "colocated": 480,
    "run": 520, "ledger": 120, "size": 300,
}  # fmt: skip

Say = Callable[..., None]  # (what, found, ok)


def maths(say: Say) -> None:
    from gpu.maths import maths as check

    check(say)


def head(say: Say) -> None:
    from gpu.head import check

    check(say)


def learner(say: Say) -> None:
    from gpu.learner_group import learner as check

    check(say)


def engine(say: Say) -> None:
    from gpu.engine_updates import engine as check

    check(say)


def nccl(say: Say) -> None:
    from gpu.nccl_channel import nccl as check

    check(say)


def run(say: Say) -> None:
    from gpu.whole_runs import run as check

    check(say)


def ledger(say: Say) -> None:
    from gpu.whole_runs import ledger as check

    check(say)


def size(say: Say) -> None:
    from gpu.whole_runs import size as check

    check(say)


def packed(say: Say) -> None:
    from gpu.packed import packed as check

    check(say)


def ipc(say: Say) -> None:
    from gpu.shared_weights import ipc as check

    check(say)


def colocated(say: Say) -> None:
    from gpu.colocated import colocated as check

    check(say)


PARTS = {
    "packed": packed, "maths": maths, "head": head, "learner": learner, "engine": engine, "nccl": nccl, "ipc": ipc,
    "colocated": colocated, "run": run,
    "ledger": ledger, "size": size,
}  # fmt: skip


def child(name: str, pipe: Any, log: str) -> None:
    """Runs one part in a process of its own; its output goes to a log."""
    os.setsid()  # a group to end: parts start trainers and engines
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        PARTS[name](lambda what, result, ok: pipe.send((what, result, bool(ok))))
    except BaseException as error:  # noqa: BLE001 - a line of the table
        traceback.print_exc()
        pipe.send((f"{name} ended", f"{type(error).__name__}: {error}"[:300], False))
    pipe.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument(
        "--together", action="store_true", help="All parts at once: for what is checked, not for what is timed."
    )
    args = parser.parse_args()
    names = args.parts.split(",")
    args.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    failed = 0
    for group in [names] if args.together else [[n] for n in names]:
        started = []
        for name in group:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(name, sender, str(args.out / f"{name}.log")))
            process.start()
            sender.close()
            started.append((name, process, receiver, time.monotonic()))
        for name, process, pipe, began in started:
            limit = began + LIMITS[name]
            while True:
                try:
                    if not pipe.poll(max(0.0, limit - time.monotonic())):
                        print(f"{name:8} FAIL  not done within {LIMITS[name]} s", flush=True)
                        failed += 1
                        break
                    what, result, ok = pipe.recv()
                except EOFError:
                    break
                failed += not ok
                print(f"{name:8} {'ok  ' if ok else 'FAIL'}  {what}: {result}", flush=True)
            process.join(5)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGTERM)  # politely first: `isentrope train` ends its Ray processes
                process.join(20)
            elif process.exitcode:
                print(f"{name:8} FAIL  ended with exit code {process.exitcode}", flush=True)
                failed += 1
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            print(f"{name:8}       took {time.monotonic() - began:.0f} s, exit code {process.exitcode}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
