"""Lays out and computes the attention of responses whose prompt stands once in a packed row.

Such a row has a prompt with its first response, as any packed trajectory, and behind it a branch for each further response: the
prompt's last token once more, then the response, with positions that go on from where the shared prefix ends. A branch's tokens see
the prefix and, causally, their branch. Keys of the prefix are taken from the row, so that gradients of all branches add up in them.

Branches of one prefix are put together while they have at most as many queries as it has keys, which bounds both the keys that are
laid out again and the pairs that a mask takes away; calls of similar shapes are made one.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# torch leaves parameters of index_select and split untyped.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A call of sdpa costs what the pairs of a trajectory of this length cost: 40 us a layer forward on a CPU, and 200 with backward.
CALL = 40
FEWEST_QUERIES = 32  # of a call's rows: sdpa's kernels for CPUs take queries by as many

_PREFIX, _NOBODY = -1, -2  # whose a key is, where it is not a branch's

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class _Branch(NamedTuple):
    """Locates a branch of a row: prefix is where the shared tokens begin and `shared` how many they are."""

    prefix: int
    shared: int
    begin: int
    length: int


@dataclass(frozen=True)
class Branches:
    """Lays a row's branches out as calls of sdpa, each of padded rows.

    shapes: (rows, queries, keys) of each call. queries, keys: for every place of all calls which of the row's tokens is there,
    int64 [P] each. masks: which keys a query sees, bool [rows, 1, queries, keys] each. tokens: where in the row the tokens of
    branches are, and places: where their queries, int64 [M] each.
    """

    shapes: tuple[tuple[int, int, int], ...]
    queries: Tensor
    keys: Tensor
    masks: tuple[Tensor, ...]
    tokens: NDArray[np.int64]
    places: NDArray[np.int64]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """Takes [T, heads, d] to [P, heads, d]. attend: sdpa of [rows, heads, places, d] with a mask."""
        q, k, v = query.index_select(0, self.queries), key.index_select(0, self.keys), value.index_select(0, self.keys)
        by_query, by_key = [n * queries for n, queries, _ in self.shapes], [n * keys for n, _, keys in self.shapes]
        out: list[Tensor] = []
        parts = zip(self.shapes, self.masks, q.split(by_query), k.split(by_key), v.split(by_key), strict=True)
        for (n, queries, keys), mask, q_part, k_part, v_part in parts:
            q_rows = q_part.unflatten(0, (n, queries)).transpose(1, 2)
            k_rows, v_rows = (part.unflatten(0, (n, keys)).transpose(1, 2) for part in (k_part, v_part))
            out.append(attend(q_rows, k_rows, v_rows, mask).transpose(1, 2).flatten(0, 1))
        return torch.cat(out)


def branches(
    borders: Sequence[int], shared: Sequence[int], window: int | None, device: torch.device
) -> Branches | None:
    """Returns the layout of a row's branches; None where it has none. Arguments: as of a PackedRow."""
    rows = _rows(borders, shared)
    if not rows:
        return None
    shapes, masks = list[tuple[int, int, int]](), list[Tensor]()
    queries, keys, tokens, places = (list[NDArray[np.int64]]() for _ in range(4))
    place = 0
    for call in _calls(rows):
        wide = max(sum(b.length for b in row) for row in call)
        deep = max(row[0].shared + sum(b.length for b in row) for row in call)
        shapes.append((len(call), wide, deep))
        owners, at = np.full((len(call), deep), _NOBODY), np.zeros((len(call), deep), np.int64)
        of_query, at_query = np.zeros((len(call), wide), np.int64), np.zeros((len(call), wide), np.int64)
        for i, row in enumerate(call):
            own = np.concatenate([np.arange(b.begin, b.begin + b.length) for b in row])
            owner = np.repeat(np.arange(len(row)), [b.length for b in row])
            position = row[0].shared + np.concatenate([np.arange(b.length) for b in row])
            prefix, count = row[0].shared, len(own)
            seen = slice(0, prefix + count)
            owners[i, seen] = np.concatenate([np.full(prefix, _PREFIX), owner])
            at[i, seen] = np.concatenate([np.arange(prefix), position])
            # Places without a token have the last one's: a row of the mask that nobody sees anything in would be nan.
            last = np.minimum(np.arange(wide), count - 1)
            of_query[i], at_query[i] = owner[last], position[last]
            queries.append(own[last])
            key = np.concatenate([row[0].prefix + np.arange(prefix), own])
            keys.append(key[np.minimum(np.arange(deep), len(key) - 1)])
            tokens.append(own)
            places.append(place + i * wide + np.arange(count))
        place += len(call) * wide
        masks.append(_mask(of_query, at_query, owners, at, window, device))
    take_queries, take_keys = (torch.from_numpy(np.concatenate(x)).to(device) for x in (queries, keys))
    own, at_place = np.concatenate(tokens), np.concatenate(places)
    return Branches(tuple(shapes), take_queries, take_keys, tuple(masks), own, at_place)


def _mask(
    of_query: NDArray[np.int64],
    at_query: NDArray[np.int64],
    owners: NDArray[np.int64],
    at: NDArray[np.int64],
    window: int | None,
    device: torch.device,
) -> Tensor:
    """Returns which keys [rows, keys] each query [rows, queries] sees, bool [rows, 1, queries, keys]: of the prefix and of its own
    branch those that are not later and, with a window, not too far back."""
    q_owner, q_at, owner, position = (torch.from_numpy(x).to(device) for x in (of_query, at_query, owners, at))
    own = (owner[:, None] == q_owner[..., None]) | (owner == _PREFIX)[:, None]
    back = q_at[..., None] - position[:, None]
    seen = own & (back >= 0)
    return (seen if window is None else seen & (back < window))[:, None]


def _rows(borders: Sequence[int], shared: Sequence[int]) -> list[list[_Branch]]:
    """Returns branches that are computed in one row of a call: of a prefix, until they have as many queries as it has keys."""
    rows: list[list[_Branch]] = []
    prefix = 0
    of_prefix: list[_Branch] = []

    def close() -> None:
        row: list[_Branch] = []
        for branch in sorted(of_prefix, key=lambda b: (-b.length, b.begin)):
            room = max(branch.shared, FEWEST_QUERIES)
            if row and sum(b.length for b in row) + branch.length <= room and branch.shared == row[0].shared:
                row.append(branch)
            else:
                row = [branch]
                rows.append(row)
        of_prefix.clear()

    for (begin, end), count in zip(pairwise(borders), shared, strict=True):
        if count:
            of_prefix.append(_Branch(prefix, count, begin, end - begin))
        else:
            close()
            prefix = begin
    close()
    return rows


def _calls(rows: list[list[_Branch]]) -> list[list[list[_Branch]]]:
    """Puts rows of similar size into one call while the padding costs less than another call."""

    def size(row: list[_Branch]) -> tuple[int, int]:
        own = sum(b.length for b in row)
        return own, row[0].shared + own

    calls: list[list[list[_Branch]]] = []
    wide = deep = 0
    for row in sorted(rows, key=lambda r: (-size(r)[0] * size(r)[1], r[0].begin)):
        own, keys = size(row)
        padded = (max(wide, own), max(deep, keys))
        if calls:
            count = len(calls[-1])
            more = (count + 1) * padded[0] * padded[1] - count * wide * deep
            if more <= own * keys + CALL**2:
                calls[-1].append(row)
                wide, deep = padded
                continue
        calls.append([row])
        wide, deep = own, keys
    return calls
