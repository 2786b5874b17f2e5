"""The CUDA path on one GPU, part by part, as one table: `python tests/gpu/check.py [--parts maths,learner] [--out FOLDER]`.

    maths      log-probs, exact entropy and their gradients against float64, in every precision
    head       the head's kernels against float64 (tests/gpu/head.py), and beside plain torch, torch.compile and Liger
    learner    DeepSpeed on the device: every case of tests/integration/test_learner_group.py on one rank, against plain torch,
               against each other and against the same case on the CPU
    engine     vLLM on the device: updates, in-flight updates, sampling rules and broken transfers of test_weight_sync.py
    nccl       the weight channel over NCCL, as far as one GPU goes: a group of one, and the refusal of two members on one device
    ipc        weights that an engine on the learner's GPU reads out of its memory, and out of the host's (shared_weights.py)
    colocated  learner and generator in turn on the GPU: what sleep and offloading free, and whole runs (colocated.py)
    activations  inputs of layers on the host: gradients, what it frees and what it costs; AdamW in 8 bits (activations.py)
    run        `isentrope train` with learner and generator on shares of the GPU, one run a precision
    ledger     what the entropy ledger costs beside a model of a size that GPUs are for
    size       `isentrope train` with a model of 0.6 billion random parameters: where an iteration's time goes

Every part is a process of its own with a limit; what fails is a line of the table. `colocated`, `run` and `size` need
models/countdown-tiny: `isentrope init-model --recipe lab-countdown steps=1000`.

`--multi` plays other parts, those of multi.py, which need two GPUs or more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpu import multi  # noqa: E402 - found on the path above
from gpu.driver import Part, chosen, play  # noqa: E402

PARTS = {
    "packed": Part("gpu.packed:packed", 90),
    "maths": Part("gpu.maths:maths", 90),
    "head": Part("gpu.head:check", 180),
    "learner": Part("gpu.learner_group:learner", 240),
    "engine": Part("gpu.engine_updates:engine", 240),
    "nccl": Part("gpu.nccl_channel:nccl", 90),
    "ipc": Part("gpu.shared_weights:ipc", 90),
    "colocated": Part("gpu.colocated:colocated", 480),
    "activations": Part("gpu.activations:activations", 180),
    "run": Part("gpu.whole_runs:run", 520),
    "ledger": Part("gpu.whole_runs:ledger", 120),
    "size": Part("gpu.whole_runs:size", 300),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", help="Some of the parts, separated by commas.")
    parser.add_argument("--out", type=Path, help="Folder of the logs; default: a new temporary one.")
    parser.add_argument(
        "--together", action="store_true", help="All parts at once: for what is checked, not for what is timed."
    )
    parser.add_argument("--multi", action="store_true", help="The parts for several GPUs: see multi.py.")
    parser.add_argument(
        "--rehearse", action="store_true", help="With --multi: on the CPU, with gloo, two processes and small tensors."
    )
    parser.add_argument("--patience", type=float, default=1.0, help="With --multi: times every limit.")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp())
    if args.multi:
        return multi.main(args.parts, out, args.rehearse, args.patience)
    return not all(line.ok for line in play(chosen(PARTS, args.parts), out, args.together))


if __name__ == "__main__":
    sys.exit(main())
