"""Checks packed attention on a GPU: torch's varlen_attn and the blocks of sdpa against the mask they stand for, and their times."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

Say = Callable[..., None]  # (what, found, ok)


def packed(say: Say) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from learner.microbatches.packed_attention import PackedRow, packed_attention, takes_varlen

    rng, device = random.Random(0), torch.device("cuda")
    lengths = [min(1024, max(1, round(rng.lognormvariate(4.5, 1.0)))) for _ in range(60)]
    borders, total = (0, *accumulate(lengths)), sum(lengths)

    def tensors(dtype: Any, heads: int, kv_heads: int, width: int) -> list[Any]:
        generator = torch.Generator(device).manual_seed(0)
        shapes = [(1, n, total, width) for n in (heads, kv_heads, kv_heads)]
        return [torch.randn(s, generator=generator, device=device, dtype=dtype).requires_grad_() for s in shapes]

    def masked(row: PackedRow, q: Any, k: Any, v: Any) -> Any:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=row.mask()).transpose(1, 2)

    def own(row: PackedRow, q: Any, k: Any, v: Any) -> Any:
        return packed_attention(torch.nn.Module(), q, k, v, row, scaling=None)[0]

    def far(a: Any, b: Any) -> float:
        return float((a.double() - b.double()).norm() / b.double().norm())

    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        for window in (None, 100):
            for heads, kv_heads, width in ((4, 4, 64), (8, 2, 128)):
                row, inputs = PackedRow(borders, window, device), tensors(dtype, heads, kv_heads, width)
                exact = [x.detach().double().requires_grad_() for x in inputs]
                wanted, got = masked(row, *exact), own(row, *inputs)
                up = torch.randn_like(wanted)
                grads = torch.autograd.grad((got * up.to(dtype)).sum(), inputs)
                expected = torch.autograd.grad((wanted * up).sum(), exact)
                worst = max(far(a, b) for a, b in zip((got, *grads), (wanted, *expected), strict=True))
                how = "varlen_attn" if takes_varlen(inputs[0], inputs[2]) else "blocks of sdpa"
                name = (
                    f"{how}, {str(dtype).removeprefix('torch.')}, {heads}/{kv_heads} heads of {width}, window {window}"
                )
                say(f"{name}: output and gradients against a float64 mask", f"{worst:.1e}", worst < limit)

    row, inputs = PackedRow(borders, None, device), tensors(torch.bfloat16, 16, 4, 128)

    def seconds(attention: Callable[..., Any]) -> float:
        taken = []
        for _ in range(7):
            torch.cuda.synchronize()
            began = time.perf_counter()
            attention(row, *inputs).sum().backward()
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken[2:])

    a, b = seconds(own), seconds(masked)
    say(f"varlen_attn beside a mask, {total} tokens", f"{a * 1e3:.1f} ms, {b * 1e3:.1f} ms, {a / b:.2f} x", a < b)
