"""Runs the head on CUDA: forward in one Triton kernel, backward as products of cuBLAS with a kernel between them.

Forward never writes logits to memory: a program makes a block of them, adds it to the sums of its rows and goes on. Where there
are few rows, the vocabulary is split among programs and a second kernel joins their sums. Backward makes the logits of some columns
for all rows, takes them to the gradient in place, one read and one write, and multiplies that; a block is BLOCK logits.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The kernels have no types: see learner/head/kernels.py.

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from learner.head.blocks import LogitGradient, spans
from learner.head.logits import Head
from learner.head.moments import RowStatistics

BLOCK = 2**26  # logits of a block in backward: 128 MB in 16 bits
UNIT = 128  # columns of a block are a multiple of it, as cuBLAS likes them


@dataclass(frozen=True, slots=True)
class Tiling:
    """Says how forward divides its work. rows, columns, inner: of a program's tile, powers of two of at least 16."""

    rows: int = 64
    columns: int = 128
    inner: int = 64
    stages: int = 2
    warps: int = 4
    programs: int = 1  # how many of them keep the device busy


def tiling(device: torch.device, dtype: torch.dtype) -> Tiling:
    """Chooses tiles that fit the shared memory: `stages` of rows x inner and inner x columns at a time."""
    properties = torch.cuda.get_device_properties(device)
    inner = 32 if dtype == torch.float32 else 64
    rows = 128 if dtype != torch.float32 and properties.shared_memory_per_block_optin >= 160 * 1024 else 64
    stages = 3 if properties.shared_memory_per_block_optin >= 96 * 1024 else 2
    return Tiling(rows, 128, inner, stages, rows // 16, 2 * properties.multi_processor_count)


def _in_one_type(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Returns hidden and head with one type: products of 16-bit numbers are exact in float32, so `fp32` needs no copy."""
    if hidden.dtype == head.weight.dtype or not head.fp32:
        return hidden.to(head.weight.dtype).contiguous(), head
    return hidden.float().contiguous(), replace(head, weight=head.weight.float())


def _factors(head: Head) -> tuple[float, float]:
    """Returns what the kernels multiply a product by, and by what its tanh where there is a soft cap."""
    if head.softcap is None:
        return head.slope, 0.0
    return head.scale / head.softcap, head.softcap / head.temperature


def _kernels() -> ModuleType:
    from learner.head import kernels  # Triton is imported by the first call on CUDA

    return kernels


def forward(hidden: Tensor, head: Head, targets: Tensor, squares: bool, tiles: Tiling | None = None) -> RowStatistics:
    """Takes hidden [N, D] and targets [N] to their statistics; N > 0."""
    kernels, rounds = _kernels(), head.rounds
    hidden, head = _in_one_type(hidden, head)
    tiles = tiles or tiling(hidden.device, hidden.dtype)
    weight, (count, width) = head.weight, hidden.shape
    row_blocks, column_blocks = -(-count // tiles.rows), -(-len(weight) // tiles.columns)
    per_split = -(-column_blocks // max(1, min(column_blocks, tiles.programs // row_blocks)))
    splits = -(-column_blocks // per_split)
    parts, out = (torch.empty(*shape, device=hidden.device) for shape in ((splits, 7, count), (7, count)))
    factor, cap = _factors(head)
    with torch.cuda.device_of(hidden):
        kernels.partial_moments[(row_blocks, splits)](
            hidden, weight, weight if head.bias is None else head.bias, targets, parts,
            count, len(weight), width, per_split * tiles.columns, hidden.stride(0), weight.stride(0), factor, cap,
            BIASED=head.bias is not None, CAPPED=head.softcap is not None, ROUNDED=rounds, SQUARES=squares,
            ROWS=tiles.rows, COLUMNS=tiles.columns, INNER=tiles.inner, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
        kernels.joined_statistics[(-(-count // 128),)](
            parts, out, count, splits, SQUARES=squares, ROWS=128, num_warps=4
        )
    logp, entropy, kappa, entropy_grad_sq, reference, total, mean = out
    if not squares:
        kappa = entropy_grad_sq = out.new_zeros(0)
    return RowStatistics(logp, entropy, kappa, entropy_grad_sq, reference, total, mean)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Returns a b in float32."""
    if a.dtype == torch.float32 or not a.is_cuda:
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def backward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    gradient: LogitGradient,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of hidden, weight and bias, those that are wanted."""
    weight, bias, count = head.weight, head.bias, len(hidden)
    dtype = torch.float32 if head.fp32 else weight.dtype
    h = hidden.to(dtype).contiguous()
    width = min(len(weight), max(1, BLOCK // count // UNIT) * UNIT)
    buffer = torch.empty(count * width, dtype=dtype, device=hidden.device)
    grad_hidden = torch.zeros(hidden.shape, device=hidden.device) if wanted[0] else None
    grad_weight = torch.empty_like(weight) if wanted[1] else None
    grad_bias = torch.empty_like(bias) if wanted[2] and bias is not None else None
    for columns in spans(len(weight), width):
        w = weight[columns].to(dtype)
        dz = buffer[: count * len(w)].view(count, len(w))
        if bias is None:
            torch.mm(h, w.T, out=dz)
        else:
            torch.addmm(bias[columns].to(dtype), h, w.T, out=dz)
        _to_gradient(dz, head, targets, gradient, columns.start)
        if grad_hidden is not None:
            grad_hidden += _product(dz, w)
        if grad_weight is not None:
            grad_weight[columns] = dz.T @ h
        if grad_bias is not None:
            grad_bias[columns] = dz.sum(0, dtype=torch.float32)
    return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _to_gradient(products: Tensor, head: Head, targets: Tensor, gradient: LogitGradient, start: int) -> None:
    """Overwrites the products of the columns from `start` on with the loss's gradient in them."""
    count, width = products.shape
    columns = min(1024, max(16, 1 << (width - 1).bit_length()))
    linear = gradient.constant if gradient.linear is None else gradient.linear
    factor, cap = _factors(head)
    with torch.cuda.device_of(products):
        _kernels().logit_gradient[(count, -(-width // columns))](
            products, targets, gradient.reference, gradient.at_target, gradient.constant, linear,
            start, width, factor, cap, LINEAR=gradient.linear is not None, CAPPED=head.softcap is not None,
            COLUMNS=columns, num_warps=4,
        )  # fmt: skip
