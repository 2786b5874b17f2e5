"""Computes the attention of packed trajectories, each by itself, without a T x T mask.

transformers keeps packed rows exact by a mask over all pairs of a row's tokens. Registered with it as SDPA_PACKED is torch's
sdpa with another answer to such rows: where the mask it would build says no more than "causal within a trajectory, and perhaps
within a window", the layers are given the trajectories' borders in its place. With them

    on CUDA, half precision   torch's varlen_attn takes the row as it is
    elsewhere                 trajectories of similar length are laid side by side, padded, and given to sdpa

A row may have a prompt once for several responses (learner/microbatches/shared_prefix.py). Transformers' mask function takes a
branch for a trajectory of its own; that it is none, and where its prefix ends, is in its positions, which begin above 0. Such a
row goes to sdpa on every device.

Rows that are not packed, and masks that say anything else, are computed by transformers' own sdpa.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# torch leaves parameters of index_select and split untyped.

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from learner.microbatches.partition import partition
from learner.microbatches.shared_prefix import CALL, Branches, branches

SDPA_PACKED = "sdpa_packed"
_positions: ContextVar[Tensor | None] = ContextVar("_positions", default=None)


class MaskRefused(ValueError):
    """Reports a layer whose mask says more than where trajectories begin, in a row with branches, which it would leave out."""


@contextmanager
def row_of(positions: Tensor) -> Generator[None]:
    """Tells `packed_mask`, while a model's forward runs, the positions [B, T] of what it is given."""
    token = _positions.set(positions if len(positions) == 1 else None)
    try:
        yield
    finally:
        _positions.reset(token)


@dataclass(frozen=True)
class PackedRow:
    """Tells the layers where the trajectories of one packed row begin. It goes through a model in the place of a mask.

    borders: int64 [n + 1] on the host, from 0 to the row's length T. window: how many tokens back a token sees, itself
    included; None for all. prefixes: of each of the n, the position that it goes on from, 0 for a whole trajectory: a branch sees
    as many of the first tokens of the last whole one before it; () for 0 of all.
    """

    borders: tuple[int, ...]
    window: int | None
    device: torch.device
    prefixes: tuple[int, ...] = ()

    @cached_property
    def longest(self) -> int:
        return max(b - a for a, b in pairwise(self.borders))

    @cached_property
    def on_device(self) -> Tensor:
        """Returns the borders as varlen_attn takes them, int32 [n + 1]."""
        return torch.tensor(self.borders, dtype=torch.int32, device=self.device)

    @cached_property
    def blocks(self) -> Blocks:
        return _blocks(self.borders, self.device, self.prefixes, self.branches)

    @cached_property
    def branches(self) -> Branches | None:
        return branches(self.borders, self.prefixes, self.window, self.device) if any(self.prefixes) else None

    def band(self, length: int) -> Tensor | None:
        """Returns which pairs of a trajectory's tokens see each other, bool [length, length]; None where all earlier ones do."""
        if self.window is None or length <= self.window:
            return None
        at = torch.arange(length, device=self.device)
        return (at[:, None] >= at) & (at[:, None] - at < self.window)

    def mask(self) -> Tensor:
        """Returns the mask that this stands for, bool [1, 1, T, T]."""
        place = torch.arange(self.borders[-1], device=self.device)
        begins = torch.tensor(self.borders[:-1], device=self.device)
        owner = torch.bucketize(place, begins[1:], right=True)
        prefix = torch.tensor(self.prefixes or (0,) * len(begins), device=self.device)
        whole = (prefix == 0).cumsum(0) - 1  # of each, which of the whole ones it goes on from
        at = place - begins[owner] + prefix[owner]
        own = owner[:, None] == owner
        shared = (whole[owner][:, None] == whole[owner]) & (prefix[owner] == 0) & (at < prefix[owner][:, None])
        back = at[:, None] - at
        seen = (own | shared) & (back >= 0)
        return (seen if self.window is None else seen & (back < self.window))[None, None]


@dataclass(frozen=True)
class Blocks:
    """Lays a row's whole trajectories out as blocks of padded rows, in order of falling length.

    shapes: (rows, length) of each block. take: for every place of all blocks which of the row's tokens is there, int64 [P]; a place
    without one has its trajectory's last. back: for every token of the row its place, int64 [T]; those of branches are behind.
    """

    shapes: tuple[tuple[int, int], ...]
    take: Tensor
    back: Tensor


def _blocks(
    borders: tuple[int, ...], device: torch.device, prefixes: tuple[int, ...], branching: Branches | None
) -> Blocks:
    whole = np.flatnonzero(np.array(prefixes or (0,) * (len(borders) - 1)) == 0)
    lengths = np.diff(np.array(borders, np.int64))[whole]
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]
    sizes = partition(falling.tolist(), [float(n) ** 2 for n in falling], overhead=CALL**2)
    shapes: list[tuple[int, int]] = []
    take: list[np.ndarray] = []
    back = np.zeros(borders[-1], np.int64)
    first, place = 0, 0
    for size in sizes:
        length = int(falling[first])
        for i in order[first : first + size]:
            begin, own = borders[whole[i]], int(lengths[i])
            take.append(begin + np.minimum(np.arange(length), own - 1))
            back[begin : begin + own] = place + np.arange(own)
            place += length
        shapes.append((size, length))
        first += size
    if branching is not None:
        back[branching.tokens] = place + branching.places
    return Blocks(tuple(shapes), torch.from_numpy(np.concatenate(take)).to(device), torch.from_numpy(back).to(device))


def packed_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    batch_size: int,
    **kwargs: Any,
) -> Any:
    """Returns a PackedRow where it says what the mask would, else what transformers' sdpa_mask returns.

    mask_function tells of pairs of indices (batch, head, query, key) whether one sees the other: the borders are where a token
    does not see the one before it.
    """
    device = torch.device(device)
    packed = not allow_is_causal_skip and not use_vmap and attention_mask is None and batch_size == 1
    if packed and q_length == kv_length and q_length > 1:
        row = _packed_row(mask_function, q_length, local_size, device)
        positions = _positions.get()
        if positions is not None and positions.shape[1] == q_length:
            row = _branching(row, positions[0])
        if row is not None:
            return row
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        local_size=local_size,
        device=device,
        **kwargs,
    )


def _packed_row(
    mask_function: Callable[..., Tensor], length: int, window: int | None, device: torch.device
) -> PackedRow | None:
    """None where a look at the corners of every trajectory tells of another mask."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)

    def sees(query: Tensor, key: Tensor) -> Tensor:
        return mask_function(zero, zero, query, key).expand(len(query))

    at = torch.arange(length, device=device)
    borders = torch.cat([zero, 1 + (~sees(at[1:], at[:-1])).nonzero()[:, 0], zero + length])
    first, last = borders[:-1], borders[1:] - 1
    within = torch.ones_like(first, dtype=torch.bool) if window is None else last - first < window
    later = sees(at[:-1], at[1:]).any() | (sees(last, first) != within).any()
    if window is not None:  # the window's own edge, where a trajectory has one
        far = first + window
        inside = far <= last
        later = later | sees(far[inside], first[inside]).any() | ~sees(far[inside] - 1, first[inside]).all()
    return None if bool(later) else PackedRow(tuple(borders.tolist()), window, device)


def _branching(row: PackedRow | None, positions: Tensor) -> PackedRow | None:
    """Returns the row with its prefixes. Raises MaskRefused where a row has branches and its mask is not one of borders."""
    begins = torch.cat([positions[:1] * 0, 1 + (positions.diff() != 1).nonzero()[:, 0]])
    starts = positions[begins]
    if not bool(starts.any()):
        return row
    if row is None or list(row.borders[:-1]) != begins.tolist():
        raise MaskRefused(
            "prefix sharing: a layer's mask says more than where trajectories begin, so that responses cannot share their prompt's "
            "keys: set learner.prefix_sharing=false"
        )
    return PackedRow(row.borders, row.window, row.device, tuple(starts.tolist()))


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Computes what transformers' sdpa does. query [B, heads, T, d], key and value [B, KV heads, T, d] -> [B, T, heads, d].

    attention_mask: what `packed_mask` returned.
    """
    row = attention_mask
    if isinstance(row, PackedRow):
        plain = not kwargs.get("dropout") and all(kwargs.get(name) is None for name in ("position_bias", "cache"))
        if plain and query.shape[2] == row.borders[-1]:
            return _attend(row, query[0], key[0], value[0], kwargs.get("scaling"))[None], None
        attention_mask = row.mask()
    return cast(Any, sdpa_attention_forward)(module, query, key, value, attention_mask, **kwargs)


def _attend(row: PackedRow, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """[heads, T, d], [KV heads, T, d] twice -> [T, heads, d]"""
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))
    if row.branches is None and takes_varlen(query, value):
        return _varlen(row, q, k, v, scale)
    blocks, out = row.blocks, list[Tensor]()
    branching = None if row.branches is None else row.branches.attend(q, k, v, partial(_sdpa, scale=scale))
    q, k, v = (x.index_select(0, blocks.take) for x in (q, k, v))
    sizes = [n * length for n, length in blocks.shapes]
    for shape, *parts in zip(blocks.shapes, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        q_rows, k_rows, v_rows = (part.unflatten(0, shape).transpose(1, 2) for part in parts)
        out.append(_sdpa(q_rows, k_rows, v_rows, row.band(shape[1]), scale).transpose(1, 2).flatten(0, 1))
    if branching is not None:
        out.append(branching)
    return torch.cat(out).index_select(0, blocks.back)


def takes_varlen(query: Tensor, value: Tensor) -> bool:
    """Returns whether varlen_attn has a kernel: FlashAttention's, of half precision and of heads as wide as its tiles."""
    width, half = query.shape[-1], query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and width == value.shape[-1] <= 256 and width % 8 == 0


def _sdpa(query: Tensor, key: Tensor, value: Tensor, band: Tensor | None, scale: float | None) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    # As transformers decides: heads that share keys are repeated where sdpa's fast kernels would not take them.
    shared = groups > 1 and band is None and key.shape[-1] == value.shape[-1] <= 256
    if groups > 1 and not shared:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=band, is_causal=band is None, scale=scale, enable_gqa=shared
    )


def _varlen(row: PackedRow, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return cast(
        Tensor,
        varlen_attn(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            row.on_device,
            row.on_device,
            row.longest,
            row.longest,
            scale=scale,
            window_size=(-1 if row.window is None else row.window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        ),
    )


def attend_packed(model: PreTrainedModel) -> bool:
    """Lets a model that computes attention by torch's sdpa do so without masks in packed rows. Returns whether it does."""
    inner = cast(Any, model)
    if inner.config._attn_implementation != "sdpa" or not inner._can_set_attn_implementation():
        return False
    # A family that looks for the name builds masks of its own for it (sparse attention's).
    if '"sdpa"' in inspect.getsource(sys.modules[type(model).__module__]):
        return False
    AttentionInterface.register(SDPA_PACKED, packed_attention)
    AttentionMaskInterface.register(SDPA_PACKED, packed_mask)
    model.set_attn_implementation(SDPA_PACKED)
    return True
