"""Measures the head (hidden states to log-prob, entropy, kappa and their gradients) beside plain autograd on all logits.

    python tests/benchmarks/head.py [--hidden 256,896] [--vocab 151936] [--tokens 4096] [--repeats 3] [--json FILE]

Plain is what is written without a second thought, and well: float32 logits, log_softmax, the entropy from it, a gather, the two
statistics without a gradient, autograd backward through log-prob and entropy. Both take forward and backward in turn within one
process, so that whatever else the machine does slows both; the ratio is the median of the pairs'. On a machine that is never
idle, `--threads 1` and the ratio of the processors' time, which is printed too, say more than that of the clock's.

Extra memory is measured in a process for each: the largest resident size during one forward and backward (VmHWM, reset just before)
less the resident size before it, less the gradients of hidden states and weight, which both leave behind. `--memory-tokens`
measures it with fewer tokens where plain does not fit; plain then counts in proportion, and the output says so.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from benchmarks import measure as measure_module  # noqa: E402

from learner.logprobs import token_logprobs  # noqa: E402

Statistics = tuple[Tensor, Tensor, Tensor, Tensor]
Form = Callable[[Tensor, Tensor, Tensor], Statistics]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Statistics:
    log_p = torch.nn.functional.linear(hidden, weight).float().log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    with torch.no_grad():
        pull = p * (log_p + entropy[:, None])
        kappa, entropy_grad_sq = (p * pull).sum(-1), (pull * pull).sum(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], entropy, kappa, entropy_grad_sq


FORMS: dict[str, Form] = {"plain": plain, "head": token_logprobs}


def inputs(tokens: int, hidden: int, vocab: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (hidden states, weight, targets, gradients of log-prob and entropy); logits have a standard deviation of 2."""
    generator = torch.Generator(device).manual_seed(0)
    h = torch.randn(tokens, hidden, generator=generator, device=device)
    w = torch.randn(vocab, hidden, generator=generator, device=device) * (2 / hidden**0.5)
    targets = torch.randint(vocab, (tokens,), generator=generator, device=device)
    up = torch.randn(2, tokens, generator=generator, device=device) / tokens
    return h.requires_grad_(), w.requires_grad_(), targets, up


def once(form: Form, h: Tensor, w: Tensor, targets: Tensor, up: Tensor) -> tuple[float, float, float]:
    """Returns the seconds of forward and of backward, and those that processors worked for both."""
    h.grad = w.grad = None
    began, worked = time.perf_counter(), time.process_time()
    logp, entropy, *_ = form(h, w, targets)
    between = time.perf_counter()
    ((logp * up[0]).sum() + (entropy * up[1]).sum()).backward()
    return between - began, time.perf_counter() - between, time.process_time() - worked


def resident(key: str) -> float:
    """Returns VmRSS or VmHWM of this process in MB."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def extra_memory(name: str, tokens: int, hidden: int, vocab: int) -> float:
    """Returns in MB what one forward and backward needs beside its inputs and the two gradients."""
    small = inputs(8, hidden, 64)
    once(FORMS[name], *small)  # threads and libraries are there before
    given = inputs(tokens, hidden, vocab)
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # VmHWM begins anew
    before = resident("VmRSS")
    once(FORMS[name], *given)
    return resident("VmHWM") - before - (tokens + vocab) * hidden * 4 / 2**20


def memory(name: str, tokens: int, hidden: int, vocab: int) -> float:
    """Returns the same, from a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--hidden", str(hidden), "--vocab", str(vocab)]
    done = subprocess.run([*command, "--tokens", str(tokens)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"measuring the memory of {name} failed with exit code {done.returncode}: {done.stderr[-300:]}"
        )
    return float(done.stdout)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def measure(tokens: int, hidden: int, vocab: int, repeats: int, memory_tokens: int) -> dict[str, float]:
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in FORMS}
    gradients: dict[str, tuple[Tensor, Tensor]] = {}
    given = inputs(tokens, hidden, vocab)
    for repeat in range(repeats):
        for name, form in FORMS.items():
            seconds[name].append(once(form, *given))
            assert given[0].grad is not None and given[1].grad is not None
            if repeat == 0:
                gradients[name] = given[0].grad.clone(), given[1].grad.clone()
    found: dict[str, float] = {"hidden": hidden, "vocab": vocab, "tokens": tokens, "repeats": repeats}
    for name, pairs in seconds.items():
        for what, values in zip(("forward_s", "backward_s", "cpu_s"), zip(*pairs, strict=True), strict=True):
            found[f"{name}_{what}"] = statistics.median(values)
    both = list(zip(seconds["head"], seconds["plain"], strict=True))
    ratios = [sum(a[:2]) / sum(b[:2]) for a, b in both]
    found["threads"], found["cpu_ratio"] = torch.get_num_threads(), statistics.median(a[2] / b[2] for a, b in both)
    found["time_ratio"] = statistics.median(ratios)
    found["time_ratio_min"], found["time_ratio_max"] = min(ratios), max(ratios)
    found["grad_hidden_apart"], found["grad_weight_apart"] = (
        apart(a, b) for a, b in zip(gradients["head"], gradients["plain"], strict=True)
    )
    if memory_tokens:
        found["memory_tokens"] = memory_tokens
        del given, gradients
        found["plain_extra_mb"] = memory("plain", memory_tokens, hidden, vocab) * tokens / memory_tokens
        found["head_extra_mb"] = memory("head", tokens, hidden, vocab)
        found["memory_ratio"] = found["head_extra_mb"] / found["plain_extra_mb"]
    return found


def sentence(found: dict[str, float]) -> str:
    text = (
        f"V {found['vocab']:,}, {found['tokens']:,} tokens, hidden size {found['hidden']}: the head takes "
        f"{found['time_ratio']:.2f}x the time of plain autograd (pairs {found['time_ratio_min']:.2f} "
        f"to {found['time_ratio_max']:.2f}; "
        f"plain {found['plain_forward_s']:.2f} + {found['plain_backward_s']:.2f} s, "
        f"head {found['head_forward_s']:.2f} + {found['head_backward_s']:.2f} s; of the processors' time "
        f"{found['cpu_ratio']:.2f}x, {found['threads']} threads); gradients of hidden states and weight are "
        f"{found['grad_hidden_apart']:.0e} and {found['grad_weight_apart']:.0e} apart"
    )
    if "memory_ratio" in found:
        text += (
            f"; extra memory {found['head_extra_mb']:.0f} MB against {found['plain_extra_mb']:.0f} MB, "
            f"1/{1 / found['memory_ratio']:.0f}"
        )
        if found["memory_tokens"] != found["tokens"]:
            text += f" (plain measured with {found['memory_tokens']:,} tokens, in proportion)"
    return text


def lines_of(found: dict[str, float]) -> list[dict[str, Any]]:
    """Returns the lines of the table of results."""
    what = f"head, V {found['vocab']:,}, {found['tokens']:,} tokens, hidden {found['hidden']}"
    time_ratio, seconds = found["time_ratio"], measure_module.seconds
    ours, plain = (seconds(found[f"{form}_forward_s"] + found[f"{form}_backward_s"]) for form in ("head", "plain"))
    lines = [
        measure_module.ratio(
            f"{what}: head / plain, time", time_ratio, goal="at most 1.0", held=time_ratio <= 1, ours=ours, other=plain
        )
    ]
    if "memory_ratio" in found:
        extra, limit = found["memory_ratio"], 1 / 20
        ours, plain = (f"{found[f'{form}_extra_mb']:.0f} MB" for form in ("head", "plain"))
        lines.append(
            measure_module.ratio(
                f"{what}: head / plain, extra memory",
                extra,
                goal="under 1/20",
                held=extra < limit,
                ours=ours,
                other=plain,
            )
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", default="256,896")
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--memory-tokens", type=int, help="Tokens that plain's memory is measured with; 0 leaves it out."
    )
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes.")
    parser.add_argument("--json", type=Path, help="Where to write what was measured.")
    parser.add_argument("--child", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes = [int(size) for size in args.hidden.split(",")]
    if args.child:
        print(extra_memory(args.child, args.tokens, sizes[0], args.vocab))
        return
    memory_tokens = args.tokens if args.memory_tokens is None else args.memory_tokens
    results = [measure(args.tokens, size, args.vocab, args.repeats, memory_tokens) for size in sizes]
    for found in results:
        print(sentence(found), flush=True)
    if args.json:
        measure_module.write(args.json, "head", [line for found in results for line in lines_of(found)], sizes=results)


if __name__ == "__main__":
    main()
