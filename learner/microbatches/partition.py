"""Divides rows into consecutive parts of the least total cost. Pure numpy, exact, deterministic.

Rows stand in order of falling length, and the rows of a part are padded to its first. A part of n rows of that length l costs

    overhead + n * (l + l^2 / QUADRATIC)

in slots: overhead is what a forward and backward pass costs however small it is, l^2 is attention's share. Some division of the
least cost leaves the order as it is, since swapping two rows of different parts so that the longer one is in the part of the longer
rows makes no part longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# The length at which a token's attention costs what everything else of it does: measured with the model of
# tests/benchmarks/learner.py on a CPU, where a slot takes 176 us in rows of 64 tokens and 295 us in rows of 512, forward and
# backward. It is longer for wider models, whose rows then cost less by their length than is said here.
QUADRATIC = 600.0


def row_cost(length: int, prefix: int = 0) -> float:
    """Returns what one row of this length costs, in slots. prefix: tokens of another row that it sees besides its own."""
    return length * (1.0 + (prefix + length) / QUADRATIC)


def partition(
    lengths: Sequence[int], costs: Sequence[float], *, overhead: float, slots: int | None = None
) -> list[int]:
    """Returns the sizes of the parts, in order. O(n^2) additions of numpy; 4,096 rows take about 50 ms.

    lengths: falling; of a part's first row they bound the part: rows times length is at most `slots` (None: unbounded), but for a
    single row that is longer. costs: of a row of a part that begins with this row, falling.
    """
    count = len(lengths)
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    begins = np.zeros(count + 1, np.int64)
    sizes = np.arange(1.0, count + 1)
    for i in range(count):
        most = count - i if slots is None else min(count - i, max(1, slots // max(1, lengths[i])))
        total = sizes[:most] * costs[i] + (best[i] + overhead)
        ends = slice(i + 1, i + 1 + most)
        better = total < best[ends]
        np.copyto(best[ends], total, where=better)
        np.copyto(begins[ends], i, where=better)
    parts: list[int] = []
    end = count
    while end:
        parts.append(end - int(begins[end]))
        end = int(begins[end])
    return parts[::-1]
