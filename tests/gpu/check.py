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
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
MODEL = ROOT / "models" / "countdown-tiny"
LIMITS = {
    "packed": 90, "maths": 90, "head": 180, "learner": 240, "engine": 240, "nccl": 90, "ipc": 90, "colocated": 480,
    "run": 520, "ledger": 120, "size": 300,
}  # fmt: skip

Say = Callable[..., None]  # (what, found, ok)


def maths(say: Say) -> None:
    import torch

    from learner.logprobs import token_logprobs

    generator = torch.Generator().manual_seed(0)
    n, d, v = 3000, 256, 5000
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64)
    weight = torch.randn(v, d, generator=generator, dtype=torch.float64) / d**0.5 * 2
    targets = torch.randint(v, (n,), generator=generator)
    up = torch.randn(2, n, generator=generator, dtype=torch.float64)

    def reference(h: Any, w: Any) -> tuple[list[Any], list[Any]]:
        h, w = h.double().requires_grad_(), w.double().requires_grad_()
        log_p = (h @ w.T / 0.9).log_softmax(-1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        logp = log_p.gather(-1, targets[:, None])[:, 0]
        grads = torch.autograd.grad((up[0] * logp + up[1] * entropy).sum(), (h, w))
        return [logp.detach(), entropy.detach()], list(grads)

    def far(a: Any, b: Any) -> float:
        return float((a.double().cpu() - b).norm() / b.norm())

    for dtype, fp32_head, limit in (
        (torch.float32, False, 1e-5),
        (torch.bfloat16, True, 1e-4),  # the inputs are rounded for both; the product is float32
        (torch.bfloat16, False, 2e-2),
        (torch.float16, False, 3e-3),
    ):
        h, w = (x.to(dtype) for x in (hidden, weight))
        values, grads = reference(h, w)
        h, w = (x.cuda().requires_grad_() for x in (h, w))
        logp, entropy, *_ = token_logprobs(h, w, targets.cuda(), temperature=0.9, fp32_head=fp32_head)
        got = torch.autograd.grad((up[0].cuda().float() * logp + up[1].cuda().float() * entropy).sum(), (h, w))
        worst = [far(a, b) for a, b in zip([logp, entropy], values, strict=True)]
        name = str(dtype).removeprefix("torch.") + ("-fp32head" if fp32_head else "")
        say(f"{name}: log-prob, entropy against float64", f"{worst[0]:.1e}, {worst[1]:.1e}", max(worst) < limit)
        worst = [far(a, b) for a, b in zip(got, grads, strict=True)]
        rounding = 0.0 if dtype == torch.float32 else 1e-2  # the gradient itself is in the type
        say(f"{name}: gradients of hidden, weight", f"{worst[0]:.1e}, {worst[1]:.1e}", max(worst) < limit + rounding)


def head(say: Say) -> None:
    from gpu.head import check

    check(say)


def learner(say: Say) -> None:
    import numpy as np
    from integration import learner_cases
    from integration.test_learner_group import (
        BEGUN,
        EXHAUSTED,
        HALF,
        METHODS,
        RESUMED,
        RICH,
        SAME,
        SEQUENCE,
        SKIPPED,
        UNTIED,
        WIDE,
    )

    folder = Path(tempfile.mkdtemp())
    model = learner_cases.make_model(str(folder / "model"))
    untied = learner_cases.make_model(str(folder / "untied"), tied=False)
    halves = [c for c in HALF if c["precision"] != "fp16"]
    on_cpu = [*SAME[:1], *METHODS, *halves, *RICH[:1], *UNTIED]
    on_gpu = [
        *SAME, *RESUMED, *BEGUN, *SEQUENCE, *WIDE, *RICH, *METHODS, *HALF, *UNTIED, *SKIPPED,
        *EXHAUSTED,
    ]  # fmt: skip
    context = multiprocessing.get_context("spawn")
    children = []
    for name, cases, cuda in (("cpu", on_cpu, False), ("gpu", on_gpu, True)):
        cases = [c | ({"model": untied} if c.get("untied") else {}) for c in cases]
        (folder / name).mkdir()
        arguments = (0, 1, learner_cases.free_port(), model, cases, str(folder / name), cuda)
        children.append(context.Process(target=learner_cases.rank_main, args=arguments))
        children[-1].start()
    expected, entropies = learner_cases.reference(model)
    for child in children:
        child.join(100)
        if child.is_alive():
            child.kill()
    say("both learners ended", str([c.exitcode for c in children]), all(c.exitcode == 0 for c in children))

    def load(where: str, case: str) -> tuple[dict[str, Any], list[dict[str, float]]] | None:
        at = folder / where / f"{case}.npz"
        return (dict(np.load(at)), json.loads(at.with_suffix(".json").read_text())) if at.exists() else None

    def apart(what: str, a: Any, b: Any, limit: float, key: str = "entropy/exact") -> None:
        if a is None or b is None:
            say(what, "a case did not finish", False)
            return
        weights = max(float(np.abs(a[0][k] - b[0][k]).max()) for k in a[0])
        entropy = max(abs(x[key] - y[key]) for x, y in zip(a[1], b[1], strict=True))
        say(what, f"weights {weights:.1e}, entropy {entropy:.1e}", weights <= limit and entropy <= limit)

    first = load("gpu", SAME[0]["name"])
    apart("fp32, against plain torch on the CPU", first, (expected, [{"entropy/exact": e} for e in entropies]), 1e-4)
    for cases, what in (
        (SAME, "fp32 and REPO-R"),
        (RICH, "GSPO, Clip-Cov, MIS and KL"),
        (WIDE, "batch scope"),
    ):
        for case in cases[1:]:
            head = load("gpu", cases[0]["name"])
            apart(f"{what}: {case['name']} against {cases[0]['name']}", load("gpu", case["name"]), head, 1e-4)
    for case in RESUMED:
        undisturbed = next(c for c in SAME if c["stage"] == case["stage"])
        apart(f"{case['name']} against undisturbed", load("gpu", case["name"]), load("gpu", undisturbed["name"]), 1e-5)
    for stage in range(4):
        apart(
            f"optimiser reset, ZeRO {stage}, against a new one", load("gpu", f"reset{stage}"), load("gpu", "new0"), 1e-4
        )
    for case in [*METHODS, *UNTIED, *halves]:
        half = case.get("precision", "fp32") != "fp32"
        limit = (
            2e-2 if half else 1e-4
        )  # two kernels round a half-precision forward apart, and Adam's first steps are signs
        apart(f"{case['name']} against the CPU", load("gpu", case["name"]), load("cpu", case["name"]), limit)
    for case in HALF:
        if case["precision"] == "fp16":
            apart(f"{case['name']} against fp32", load("gpu", case["name"]), first, 1e-2)
    for case in SKIPPED:
        result = load("gpu", case["name"])
        skipped = [int(m["steps/skipped"]) for m in result[1]] if result else None
        say(f"{case['name']}: overflowing steps skipped", str(skipped), bool(skipped and skipped[0] > 0))
    for case in EXHAUSTED:
        at = folder / "gpu" / f"{case['name']}.refused"
        text = at.read_text() if at.exists() else "nothing was raised"
        say(f"{case['name']}: an exhausted loss scale is an error", text[:60], "loss scale" in text)


def engine(say: Say) -> None:
    os.environ["ISENTROPE_TOLERANCE"] = "5e-5"  # random weights grow, and with them what two devices round apart
    import torch
    from integration import weight_sync_cases

    say("device of this process", torch.cuda.get_device_name(), True)
    for name, work in (
        ("qwen3 tied, 5 updates in fp32: worst gap", lambda f: weight_sync_cases.many_updates(f, "qwen3", True, 5)),
        ("llama untied, 5 updates in fp32: worst gap", lambda f: weight_sync_cases.many_updates(f, "llama", False, 5)),
        (
            "bf16, silent layers: gap by head",
            lambda f: weight_sync_cases.updates_in_precision(f, "qwen3", True, "bf16"),
        ),
        (
            "bf16-fp32head: gap by head",
            lambda f: weight_sync_cases.updates_in_precision(f, "qwen3", True, "bf16-fp32head"),
        ),
        ("sampling rules: worst gap", weight_sync_cases.sampling_rules),
        ("update in flight: token of the change", weight_sync_cases.update_in_flight),
        ("broken transfers heal: errors seen", lambda f: len(weight_sync_cases.failures(f))),
    ):
        try:
            result = work(tempfile.mkdtemp())
        except Exception as error:  # noqa: BLE001 - a line of the table
            traceback.print_exc()
            say(name, f"{type(error).__name__}: {error}"[:160], False)
            continue
        if isinstance(result, dict):
            result = ", ".join(f"{k} {v:.1e}" for k, v in result.items())
        say(name, str(result), True)


def _second_member(rendezvous: Any, pipe: Any) -> None:
    import torch

    from learner.weights.protocol import WeightSyncError
    from learner.weights.subscriber import Subscriber

    torch.cuda.set_device(0)
    torch.zeros(1, device="cuda")
    try:
        channel = Subscriber(rendezvous, 20.0)
        channel.channel.wait(channel.channel.broadcast(torch.zeros(16, dtype=torch.uint8, device="cuda")), "probe")
        pipe.send("no error")
    except WeightSyncError as error:
        pipe.send(str(error))


def nccl(say: Say) -> None:
    import torch

    from learner.weights.checksum import Checksum
    from learner.weights.network import listen
    from learner.weights.protocol import WeightSyncError, make_manifest, make_rendezvous
    from learner.weights.publisher import Publisher

    torch.cuda.set_device(0)
    tensors = [(f"w{i}", torch.randn(1000 + i, 257, device="cuda", dtype=torch.bfloat16)) for i in range(40)]
    manifest = make_manifest(tensors, 1, 2**20)
    listener = listen("127.0.0.1")
    (alone,) = make_rendezvous("127.0.0.1", listener.getsockname()[1], [], "nccl", 1)
    publisher = Publisher(alone, 30.0, listener=listener)
    sums = {publisher.publish(manifest, tensors) for _ in range(2)}
    publisher.close()
    listener = listen("127.0.0.1")
    (host,) = make_rendezvous("127.0.0.1", listener.getsockname()[1], [], "gloo", 1)
    staged = Publisher(host, 30.0, listener=listener)
    sums.add(staged.publish(manifest, tensors))
    say("a group of one: checksum over NCCL and over gloo", ", ".join(f"{s:016x}" for s in sums), len(sums) == 1)
    data = torch.randint(256, (2**20,), dtype=torch.uint8)
    both = []
    for device in ("cpu", "cuda"):
        checksum = Checksum(device)
        checksum.update(data.to(device))
        both.append(checksum.value)
    say("checksum on CPU and GPU", f"{both[0]:016x}", both[0] == both[1])

    listener = listen("127.0.0.1")
    pair = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", 1)], "nccl", 2)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    child = context.Process(target=_second_member, args=(pair[1], sender))
    child.start()
    try:
        publisher = Publisher(pair[0], 40.0, listener=listener)
        publisher.channel.wait(publisher.channel.broadcast(tensors[0][1].view(torch.uint8).flatten()), "probe", 20.0)
        output = "no error"
    except WeightSyncError as error:
        output = str(error)
    heard = receiver.recv() if receiver.poll(30) else "nothing"
    child.kill()
    say("two members on one device: the learner's error", output[:300], output != "no error")
    say("two members on one device: the generator's error", heard[:300], heard not in ("no error", "nothing"))


SHARES = (
    "generators.count=1", "generators.gpus=0.4", "generators.cpus=1", "generators.kv_cache_mb=1024", "learner.gpus=0.4",
    "learner.cpus=1", "cluster.num_cpus=4",
)  # fmt: skip


def train(folder: Path, name: str, limit: float, *overrides: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Returns (exit code, end of the output, rows of metrics.jsonl)."""
    arguments = ["train", "lab-countdown", *SHARES, f"run.name={name}", f"run.dir={folder}", *overrides]
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "HF_HUB_OFFLINE": "1",
        "TERM": "dumb",
    }
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestration", *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=env
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = -9
            process.wait(30)
    output = (folder / f"{name}.log").read_text()
    at = folder / name / "metrics.jsonl"
    rows = [json.loads(line) for line in at.read_text().splitlines()] if at.exists() else []
    return code, output[-1500:], [r for r in rows if "entropy/exact" in r]


def column(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [float(r[key]) for r in rows if key in r]


def middle(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else math.nan


def run(say: Say) -> None:
    folder = Path(tempfile.mkdtemp())
    for precision in ("fp32", "bf16", "fp16", "bf16-fp32head"):
        began = time.monotonic()
        code, output, rows = train(
            folder, precision, 120, f"precision={precision}", "run.iterations=4", "evaluation.prompts=20", "evaluation.samples=4",
            "evaluation.ks=[1,4]", "checkpoint.every=2", "entropy.method={kind: repo}", "entropy.controller={kind: isentropic}",
        )  # fmt: skip
        if code or len(rows) < 4:
            say(f"{precision}: isentrope train", f"exit {code}: {' '.join(output.split())[-700:]}", False)
            continue
        gap, outside = (max(column(rows, k), default=math.nan) for k in ("sync/logprob_gap_max", "gap/outside"))
        entropy, step = column(rows, "entropy/exact"), middle(column(rows, "time/iteration")[1:])
        text = (
            f"entropy {entropy[0]:.3f} to {entropy[-1]:.3f}, engine gap max {gap:.1e}, outside [.9, 1.1] {outside:.1e}, "
            f"{step:.2f} s an iteration, {time.monotonic() - began:.0f} s in all"
        )
        say(f"{precision}: isentrope train, 4 iterations", text, True)


def ledger(say: Say) -> None:
    script = [sys.executable, str(ROOT / "tests/benchmarks/ledger_cost.py"), "--cuda"]
    shape = "--hidden 1024 --layers 16 --vocab 50000 --response 256 --prompts 16 --responses 8 --updates 4 --repeats 5"
    done = subprocess.run([*script, *shape.split()], capture_output=True, text=True, timeout=110, check=False)
    result = " / ".join(done.stdout.strip().splitlines()[-2:]) or done.stderr[-600:]
    say("the ledger's cost, 0.3 B parameters", result, done.returncode == 0)


def size(say: Say) -> None:
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    folder = Path(tempfile.mkdtemp())
    small = json.loads((MODEL / "config.json").read_text())
    config = Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=4096,
        **{k: small[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in small},
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "model")
    for file in MODEL.iterdir():
        if file.name != "config.json" and not file.name.endswith(".safetensors"):
            shutil.copy(file, folder / "model" / file.name)
    wanted = (
        "precision=bf16 run.iterations=4 sampling.max_tokens=512 generators.max_model_len=640 generators.max_num_seqs=256 "
        "generators.kv_cache_mb=16000 batch.prompts=32 batch.responses=8 learner.updates=2 learner.micro_batch_tokens=16384 "
        "learner.lr=1.0e-6 weights.timeout_s=120 evaluation.prompts=0"
    )
    code, output, rows = train(folder, "size", 220, f"model.path={folder / 'model'}", *wanted.split())
    if code or len(rows) < 3:
        say("0.6 B parameters in bf16", f"exit {code}: {' '.join(output.split())[-900:]}", False)
        return
    times = {k: middle(column(rows[1:], k)) for k in sorted(rows[-1]) if k.startswith("time/")}
    say(
        "0.6 B parameters in bf16, 256 responses of up to 512 tokens",
        ", ".join(f"{k[5:]} {v:.2f} s" for k, v in times.items()),
        True,
    )
    say(
        "tokens trained an iteration; engine gap mean",
        f"{rows[-1].get('tokens/trained')}; {rows[-1].get('gap/engine_mean'):.1e}",
        True,
    )


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
