"""Runs token_logprobs through the Triton kernels on the CPU, for the cases on standard input: a process of its own.

    TRITON_INTERPRET=1 python tests/support/interpreted_kernels.py < cases.json > results.json

Triton's interpreter runs a kernel block by block in numpy, if it is asked for before triton is first imported. A case is a dict of
the fields of `Case`; its result is, of each value and gradient, the norm of the difference to float64 over that of the value.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2])]

from learner import logprobs  # noqa: E402
from learner.head import fused  # noqa: E402

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NAMES = ("logp", "entropy", "kappa", "entropy_grad_sq", "hidden", "weight", "bias")


@dataclass(frozen=True)
class Case:
    """Holds the shapes and rules of a case; tile: rows, columns and inner of a program, programs: that keep the device busy."""

    rows: int = 20
    vocab: int = 70
    width: int = 24
    dtype: str = "float32"
    fp32_head: bool = False
    with_bias: bool = False
    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    statistics: bool = True
    spread: float = 2.0
    tile: tuple[int, int, int] = (16, 32, 16)
    programs: int = 1
    block: int = 2**26
    of_logp: float = 1.0
    of_entropy: float = 1.0
    seed: int = 0


def product_of_bfloat16(*args: Any) -> Any:
    """Replaces the interpreter's product, which takes the bits of a bfloat16 for an integer."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def floats(x: Any) -> Any:
        if x.dtype.scalar == tl.bfloat16:
            return (x.data.astype(np.uint32) << 16).view(np.float32)
        return x.data.astype(np.float32)

    a, b, d = args[1:4]
    return TensorHandle(np.matmul(floats(a), floats(b)) + d.data, d.dtype.scalar)


def values(case: Case) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """Returns ([hidden, weight, bias] in the case's type, targets, cotangents [2, rows])."""
    generator = torch.Generator().manual_seed(case.seed)
    hidden = torch.randn(case.rows, case.width, generator=generator)
    weight = torch.randn(case.vocab, case.width, generator=generator) * (case.spread / case.width**0.5)
    bias = torch.randn(case.vocab, generator=generator)
    targets = torch.randint(case.vocab, (case.rows,), generator=generator)
    up = torch.randn(2, case.rows, generator=generator) * torch.tensor([[case.of_logp], [case.of_entropy]])
    dtype = TYPES[case.dtype]
    return [hidden.to(dtype), weight.to(dtype), bias.to(dtype) if case.with_bias else None], targets, up


def exact(case: Case, leaves: list[Tensor | None], targets: Tensor) -> list[Tensor]:
    hidden, weight, bias = leaves
    assert hidden is not None and weight is not None
    z = hidden @ weight.T + (0.0 if bias is None else bias)
    if TYPES[case.dtype] != torch.float32 and not case.fp32_head:
        z = z + (z.detach().to(TYPES[case.dtype]).double() - z.detach())  # as an engine rounds it
    z = z * case.scale
    if case.softcap is not None:
        z = case.softcap * (z / case.softcap).tanh()
    log_p = (z / case.temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    pull = log_p.exp() * (log_p + entropy[:, None])
    return [log_p.gather(1, targets[:, None])[:, 0], entropy, (log_p.exp() * pull).sum(-1), pull.square().sum(-1)]


def gradients(outputs: list[Tensor], leaves: list[Tensor | None], up: Tensor, case: Case) -> list[Tensor | None]:
    loss = torch.zeros((), dtype=outputs[0].dtype)
    for output, weight, cotangent in zip(outputs, (case.of_logp, case.of_entropy), up, strict=False):
        if weight:
            loss = loss + (output * cotangent.to(output.dtype)).sum()
    found = iter(torch.autograd.grad(loss, [x for x in leaves if x is not None]))
    return [None if x is None else next(found) for x in leaves]


def run(case: Case) -> dict[str, float]:
    given, targets, up = values(case)
    computed = [None if x is None else x.clone().requires_grad_() for x in given]
    truth = [None if x is None else x.double().requires_grad_() for x in given]
    tiles = fused.Tiling(*case.tile, stages=1, programs=case.programs)
    assert computed[0] is not None and computed[1] is not None
    with (
        mock.patch.object(logprobs, "has_kernels", return_value=True),
        mock.patch.object(fused, "tiling", return_value=tiles),
        mock.patch.object(fused, "BLOCK", case.block),
        mock.patch.object(fused, "UNIT", 16),
    ):
        outputs = list(
            logprobs.token_logprobs(
                computed[0], computed[1], targets, bias=computed[2], temperature=case.temperature, softcap=case.softcap,
                scale=case.scale, fp32_head=case.fp32_head, statistics=case.statistics,
            )
        )  # fmt: skip
        found = [*outputs, *gradients(outputs, computed, up, case)]
    expected_outputs = exact(case, truth, targets)
    expected = [*expected_outputs, *gradients(expected_outputs, truth, up, case)]
    return {
        name: float((a.double() - b).norm() / b.norm())
        for name, a, b in zip(NAMES, found, expected, strict=True)
        if a is not None and b is not None and a.shape == b.shape
    }


def main() -> None:
    from triton._C.libtriton import ir
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def nearest(value: Any, of: Any, to: Any, mode: Any) -> Any:
        """Rounds to the nearest, as GPUs do: the interpreter cuts bits off where a cast names no mode."""
        return cut(value, of, to, ir.ROUNDING_MODE.RTNE if mode is None else mode)

    with (
        mock.patch.object(interpreter, "_convert_float", nearest),
        mock.patch.object(interpreter.InterpreterBuilder, "create_dot", product_of_bfloat16),
    ):
        results = [run(Case(**(c | {"tile": tuple(c["tile"])}))) for c in json.load(sys.stdin)]
    json.dump(results, sys.stdout)


def as_json(cases: list[Case]) -> str:
    return json.dumps([asdict(case) for case in cases])


if __name__ == "__main__":
    main()
