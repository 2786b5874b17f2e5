"""Compares the head's kernels on a GPU with plain torch, torch.compile and Liger: `python tests/gpu/head.py [--json FILE]`.

Checks log-prob, entropy, kappa and gradients against float64 on the device, in every precision, with bias, soft cap and scale, for
few rows and many, and a vocabulary up to 256k; then times forward and backward and takes the peak of the allocator, in bf16, for
shapes of models that are trained. Also a part of tests/gpu/check.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

Say = Callable[..., None]  # (what, found, ok)
# (rows, hidden size, vocabulary): Qwen 0.5B, Llama 1B, Gemma 2B, and a few rows alone
SHAPES = ((4096, 896, 151_936), (8192, 2048, 128_256), (4096, 2304, 256_000), (64, 2048, 128_256))

# What parity is checked on, beside the precisions.
RULES: tuple[dict[str, Any], ...] = (
    {"rows": 300, "vocab": 5000},
    {"rows": 3, "vocab": 256_000},
    {"rows": 5000, "vocab": 1000, "width": 100},
    {"rows": 300, "vocab": 5000, "with_bias": True, "softcap": 20.0, "scale": 0.5, "temperature": 0.8},
)


def parity(say: Say) -> None:
    import torch
    from support.interpreted_kernels import Case, exact, gradients, values

    from learner.logprobs import has_kernels, token_logprobs

    say("the kernels are used", str(has_kernels(torch.device("cuda:0"))), has_kernels(torch.device("cuda:0")))
    for dtype, fp32, limit in (
        ("float32", False, 2e-5), ("bfloat16", True, 1e-2), ("bfloat16", False, 2e-2), ("float16", False, 3e-3),
    ):  # fmt: skip
        for rule in RULES:
            case = Case(**({"width": 256, "dtype": dtype, "fp32_head": fp32} | rule))
            given, targets, up = values(case)
            given = [None if x is None else x.cuda() for x in given]
            leaves = [None if x is None else x.clone().requires_grad_() for x in given]
            truth = [None if x is None else x.double().requires_grad_() for x in given]
            targets, up = targets.cuda(), up.cuda()
            hidden, weight, bias = leaves
            assert hidden is not None and weight is not None
            outputs = list(
                token_logprobs(
                    hidden, weight, targets, bias=bias, temperature=case.temperature, softcap=case.softcap,
                    scale=case.scale, fp32_head=fp32,
                )
            )  # fmt: skip
            expected = exact(case, truth, targets)
            found = [*outputs, *gradients(outputs, leaves, up, case)]
            expected = [*expected, *gradients(expected, truth, up, case)]
            pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
            apart = [float((a.double() - b).norm() / b.norm()) for a, b in pairs]
            name = f"{dtype}{', fp32 head' if fp32 else ''}, {', '.join(f'{k} {v}' for k, v in rule.items())}"
            say(f"{name}: largest distance to float64", f"{max(apart):.1e}", max(apart) < limit)


def plain(hidden: Any, weight: Any, targets: Any) -> tuple[Any, Any]:
    log_p = (hidden @ weight.T).float().log_softmax(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def head(hidden: Any, weight: Any, targets: Any) -> tuple[Any, Any]:
    from learner.logprobs import token_logprobs

    return token_logprobs(hidden, weight, targets, statistics=False)[:2]


def head_with_statistics(hidden: Any, weight: Any, targets: Any) -> tuple[Any, Any]:
    from learner.logprobs import token_logprobs

    return token_logprobs(hidden, weight, targets)[:2]


def liger(hidden: Any, weight: Any, targets: Any) -> tuple[Any, Any]:
    """Takes Liger's fused linear cross entropy: a log-prob without the entropy, so less work than the others have."""
    from liger_kernel.ops import fused_linear_cross_entropy  # pyright: ignore[reportMissingImports]

    function = fused_linear_cross_entropy.LigerFusedLinearCrossEntropyFunction
    loss = function.apply(hidden, weight, targets, None, None, -100, 0.0, 0.0, "mean")[0]
    return -loss, loss.detach() * 0.0


def timed(form: Callable[..., Any], shape: tuple[int, int, int], repeats: int) -> tuple[float, float]:
    """Returns (median milliseconds of forward and backward, MB beside what was there before and the two gradients)."""
    import torch

    rows, width, vocab = shape
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, device="cuda").bfloat16().requires_grad_()
    weight = (
        (torch.randn(vocab, width, generator=generator, device="cuda") * (2 / width**0.5)).bfloat16().requires_grad_()
    )
    targets = torch.randint(vocab, (rows,), generator=generator, device="cuda")
    times, extra = [], 0.0
    for repeat in range(repeats + 2):
        hidden.grad = weight.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        logp, entropy = form(hidden, weight, targets)
        (logp.mean() + 0.1 * entropy.mean()).backward()
        ended.record()
        torch.cuda.synchronize()
        if repeat >= 2:
            times.append(began.elapsed_time(ended))
            gradients = 2 * (hidden.numel() + weight.numel())
            extra = (torch.cuda.max_memory_allocated() - before - gradients) / 2**20
    return statistics.median(times), extra


def speed(say: Say, repeats: int = 10) -> list[dict[str, Any]]:
    import torch

    forms: dict[str, Callable[..., Any]] = {
        "head": head, "head with statistics": head_with_statistics, "plain": plain, "torch.compile": torch.compile(plain),
    }  # fmt: skip
    if find_spec("liger_kernel"):
        forms["liger, log-prob alone"] = liger
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        for name, form in forms.items():
            try:
                milliseconds, extra = timed(form, shape, repeats)
            except (RuntimeError, TypeError, ImportError) as error:  # out of memory, or another version of Liger
                say(f"{shape} {name}", f"{type(error).__name__}: {error}"[:160], not name.startswith("head"))
                continue
            rows.append({"shape": shape, "form": name, "ms": milliseconds, "extra_mb": extra})
            say(f"{shape} {name}: forward and backward, extra memory", f"{milliseconds:.1f} ms, {extra:.0f} MB", True)
            torch.cuda.empty_cache()
    return rows


def check(say: Say) -> None:
    parity(say)
    speed(say)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="Where to write what was timed.")
    args = parser.parse_args()
    failed: list[str] = []

    def say(what: str, found: str, ok: bool) -> None:
        print(f"{'ok  ' if ok else 'FAIL'}  {what}: {found}", flush=True)
        failed.extend([] if ok else [what])

    parity(say)
    rows = speed(say)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
