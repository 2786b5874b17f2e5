"""Holds the Triton kernels of the head: logits and the sums over them in one, and the gradient in the logits.

The sums S0 ... T2 about a reference that follows the mean are those of learner/head/moments.py, in float32 registers. Logits are
made and used up within a program; products accumulate in float32.
"""

# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingParameterType=false, reportUntypedFunctionDecorator=false
# pyright: reportMissingTypeStubs=false
# Triton compiles these functions: their arguments are blocks and pointers, which have no types in Python.

from __future__ import annotations

import triton
import triton.language as tl

FAR = tl.constexpr(1.0)  # as in learner/head/moments.py
NEVER = tl.constexpr(-1.0e30)  # the reference before the first block, and the logit of a column behind the last


@triton.jit
def _tanh(x):
    """Computes tanh with a relative error of float32's, near 0 as well: there by its series."""
    u = tl.exp(-2.0 * tl.abs(x))
    far = tl.where(x < 0, -1.0, 1.0) * (1.0 - u) / (1.0 + u)
    s = x * x
    near = x * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 - s * (17.0 / 315.0 - s * (62.0 / 2835.0)))))
    return tl.where(s < 0.04, near, far)


@triton.jit
def _logits(product, factor, cap, CAPPED: tl.constexpr):
    """Makes logits of a product: factor is scale / temperature, or, CAPPED, scale / softcap, and cap is softcap / temperature."""
    z = product * factor
    return _tanh(z) * cap if CAPPED else z


@triton.jit
def _about(by, s0, s1, t0, t1, t2):
    """Returns the sums about a reference that is `by` nats higher."""
    by = tl.minimum(tl.maximum(by, -40.0), 200.0)
    once = tl.exp(-by)
    twice = once * once
    t2 = (t2 - 2.0 * by * t1 + by * by * t0) * twice
    return s0 * once, (s1 - by * s0) * once, t0 * twice, (t1 - by * t0) * twice, t2


@triton.jit
def partial_moments(
    hidden, weight, bias, targets, out,
    count, vocabulary, width, per_split, hidden_stride, weight_stride, factor, cap,
    BIASED: tl.constexpr, CAPPED: tl.constexpr, ROUNDED: tl.constexpr, SQUARES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Writes out [splits, 7, count]: reference, S0, S1, T0, T1, T2 and the target's logit over a part of the vocabulary.

    A program has ROWS rows and goes through `per_split` columns, COLUMNS at a time. The target's logit is 0 where the target is
    of another part. ROUNDED: logits are rounded to the weight's type, as an engine's are.
    """
    split = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_here = rows < count
    target = tl.load(targets + rows, mask=row_here, other=-1)
    reference = tl.full((ROWS,), NEVER, tl.float32)
    chosen = tl.zeros((ROWS,), tl.float32)
    s0, s1 = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    t0, t1, t2 = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    hidden_rows = hidden + rows.to(tl.int64)[:, None] * hidden_stride
    first = split * per_split
    for start in range(first, tl.minimum(first + per_split, vocabulary), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        column_here = columns < vocabulary
        weight_rows = weight + columns.to(tl.int64)[None, :] * weight_stride
        product = tl.zeros((ROWS, COLUMNS), tl.float32)
        for inner in range(0, width, INNER):
            d = inner + tl.arange(0, INNER)
            d_here = d < width
            h = tl.load(hidden_rows + d[None, :], mask=row_here[:, None] & d_here[None, :], other=0.0)
            w = tl.load(weight_rows + d[:, None], mask=column_here[None, :] & d_here[:, None], other=0.0)
            product = tl.dot(h, w, product, input_precision="ieee")
        if BIASED:
            product += tl.load(bias + columns, mask=column_here, other=0.0).to(tl.float32)[None, :]
        if ROUNDED:
            product = product.to(weight.dtype.element_ty).to(tl.float32)
        z = tl.where(column_here[None, :], _logits(product, factor, cap, CAPPED), NEVER)
        chosen += tl.sum(tl.where(columns[None, :] == target[:, None], z, 0.0), 1)
        top = tl.max(z, 1)
        mean = tl.where(s0 > 0, reference + s1 / tl.where(s0 > 0, s0, 1.0), NEVER)
        moved = tl.where(top > mean + FAR, top, mean)
        s0, s1, t0, t1, t2 = _about(moved - reference, s0, s1, t0, t1, t2)
        reference = moved
        q = z - reference[:, None]
        e = tl.exp(q)
        eq = e * q
        s0 += tl.sum(e, 1)
        s1 += tl.sum(eq, 1)
        if SQUARES:
            t0 += tl.sum(e * e, 1)
            t1 += tl.sum(e * eq, 1)
            t2 += tl.sum(eq * eq, 1)
    at = out + (split * 7).to(tl.int64) * count + rows
    tl.store(at, reference, mask=row_here)
    tl.store(at + count, s0, mask=row_here)
    tl.store(at + 2 * count, s1, mask=row_here)
    tl.store(at + 3 * count, t0, mask=row_here)
    tl.store(at + 4 * count, t1, mask=row_here)
    tl.store(at + 5 * count, t2, mask=row_here)
    tl.store(at + 6 * count, chosen, mask=row_here)


@triton.jit
def joined_statistics(parts, out, count, splits, SQUARES: tl.constexpr, ROWS: tl.constexpr):
    """Joins the sums of all parts: out [7, count] is logp, entropy, kappa, entropy_grad_sq, reference, total, mean."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < count
    reference = tl.load(parts + rows, mask=here, other=0.0)
    for split in range(1, splits):
        reference = tl.maximum(reference, tl.load(parts + split * 7 * count + rows, mask=here, other=0.0))
    chosen = tl.zeros((ROWS,), tl.float32)
    s0, s1 = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    t0, t1, t2 = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for split in range(splits):
        at = parts + split * 7 * count + rows
        by = reference - tl.load(at, mask=here, other=0.0)
        p0, p1 = tl.load(at + count, mask=here, other=1.0), tl.load(at + 2 * count, mask=here, other=0.0)
        q0, q1 = tl.load(at + 3 * count, mask=here, other=1.0), tl.load(at + 4 * count, mask=here, other=0.0)
        p0, p1, q0, q1, q2 = _about(by, p0, p1, q0, q1, tl.load(at + 5 * count, mask=here, other=0.0))
        s0, s1, t0, t1, t2 = s0 + p0, s1 + p1, t0 + q0, t1 + q1, t2 + q2
        chosen += tl.load(at + 6 * count, mask=here, other=0.0)
    mean, log_total = s1 / s0, tl.log(s0)
    tl.store(out + rows, chosen - reference - log_total, mask=here)
    tl.store(out + count + rows, tl.maximum(log_total - mean, 0.0), mask=here)
    if SQUARES:
        kappa = t1 - mean * t0
        tl.store(out + 2 * count + rows, kappa / s0 / s0, mask=here)
        tl.store(out + 3 * count + rows, tl.maximum(t2 - mean * (t1 + kappa), 0.0) / s0 / s0, mask=here)
    tl.store(out + 4 * count + rows, reference, mask=here)
    tl.store(out + 5 * count + rows, s0, mask=here)
    tl.store(out + 6 * count + rows, mean, mask=here)


@triton.jit
def logit_gradient(
    products, targets, reference, at_target, constant, linear,
    first, columns_here, factor, cap, LINEAR: tl.constexpr, CAPPED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Overwrites products [N, C], of the columns from `first` on, with the loss's gradient in them.

    That is at_target onehot + e^q (constant + linear q) for q = z - reference, times the slope of the soft cap.
    """
    row = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = columns < columns_here
    at = row.to(tl.int64) * columns_here + columns
    z = _logits(tl.load(products + at, mask=here, other=0.0).to(tl.float32), factor, cap, CAPPED)
    q = z - tl.load(reference + row)
    slope = tl.load(constant + row)
    if LINEAR:
        slope += tl.load(linear + row) * q
    dz = tl.exp(q) * slope
    dz += tl.where(columns + first == tl.load(targets + row), tl.load(at_target + row), 0.0)
    if CAPPED:
        dz *= 1.0 - (z / cap) * (z / cap)
    tl.store(products + at, dz.to(products.dtype.element_ty), mask=here)
