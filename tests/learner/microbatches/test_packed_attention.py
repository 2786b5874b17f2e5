"""Packed rows are computed without a mask, exactly: log-probs and gradients of every family are those of trajectories alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.families import BY_NAME, VOCAB
from models.one_family import make_model
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import sdpa_mask

from learner.microbatches import packed_attention as module
from learner.microbatches.packed_attention import SDPA_PACKED, PackedRow, packed_attention, packed_mask
from learner.policy import load_policy

LENGTHS = (24, 17, 9, 13, 24, 1, 2)
CPU = torch.device("cpu")


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, VOCAB, (n,), generator=generator) for n in LENGTHS]


def inputs(rows: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lays sequences out as one packed row: tokens, positions, predict, targets."""
    tokens = torch.cat(rows)
    positions = torch.cat([torch.arange(len(r)) for r in rows])
    targets = torch.nonzero(positions)[:, 0]
    return tokens[None], positions[None], targets - 1, tokens[targets]


def result(policy: Any, packs: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """Returns (log-probs of all, gradients of a sum over them), with one forward for each list of sequences."""
    policy.zero_grad()
    logps = []
    for pack in packs:
        logp, entropy, *_ = policy(*inputs(pack), 0.7)
        if len(logp):
            (logp.sin().sum() + entropy.sum()).backward()
        logps.append(logp.detach())
    return torch.cat(logps), [p.grad.clone() for p in policy.parameters() if p.grad is not None]


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[PackedRow]:
    """Collects the rows that attention was computed of without a mask, one a layer."""
    rows: list[PackedRow] = []
    inner = module._attend

    def attend(row: PackedRow, *rest: Any) -> Tensor:
        rows.append(row)
        return inner(row, *rest)

    monkeypatch.setattr(module, "_attend", attend)
    return rows


WITHOUT_A_MASK = ("llama", "qwen3", "mistral-sliding", "gemma3", "gpt2", "olmo3", "granite", "minicpm3")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", [*WITHOUT_A_MASK, "gemma2"])
def test_a_packed_row_is_its_trajectories(
    name: str, checkpointing: bool, tmp_path: Path, attended: list[PackedRow]
) -> None:
    make_model(BY_NAME[name], str(tmp_path))
    policy = load_policy(str(tmp_path), attention="sdpa", checkpointing=checkpointing).double()
    logp, gradients = result(policy, [[s] for s in sequences()])
    assert not attended  # rows of one trajectory are sdpa's own
    packed, others = result(policy, [sequences()])
    if name == "gemma2":  # its soft cap is eager attention's, which has the mask
        assert policy.model.config._attn_implementation == "eager" and not attended
    else:
        # twice where backward computes layers again: the borders are there too
        assert len(attended) == policy.model.config.num_hidden_layers * (1 + checkpointing)
    # The head's results are float32 whatever the model's type.
    assert ((packed - logp).abs() < 1e-6 * (1 + logp.abs())).all()
    for own, wanted in zip(others, gradients, strict=True):
        assert (own - wanted).abs().max() < 1e-5 * (1 + wanted.abs().max())


def attention_of(row: PackedRow, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    class Layer(torch.nn.Module):
        num_key_value_groups = q.shape[1] // k.shape[1]

    out, _ = packed_attention(Layer(), q, k, v, row, scaling=scale)
    return out


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=9),
    st.one_of(st.none(), st.integers(2, 20)),
    st.sampled_from([(2, 2, 8), (4, 2, 8), (4, 1, 6)]),
    st.sampled_from([None, 0.3]),
    st.booleans(),
)
def test_attention_without_a_mask_is_attention_with_it(
    lengths: list[int], window: int | None, shape: tuple[int, int, int], scale: float | None, narrow: bool
) -> None:
    heads, kv_heads, d = shape
    total = sum(lengths)
    generator = torch.Generator().manual_seed(total)

    def random(count: int, width: int) -> Tensor:
        return torch.randn(1, count, total, width, dtype=torch.float64, generator=generator, requires_grad=True)

    q, k, v = random(heads, d), random(kv_heads, d), random(kv_heads, d - 2 if narrow else d)
    borders = (0, *torch.tensor(lengths).cumsum(0).tolist())
    row = PackedRow(borders, window, CPU)
    wanted = scaled_dot_product_attention(
        q,
        k.repeat_interleave(heads // kv_heads, 1),
        v.repeat_interleave(heads // kv_heads, 1),
        attn_mask=row.mask(),
        scale=scale,
    )
    actual = attention_of(row, q, k, v, scale).transpose(1, 2)
    torch.testing.assert_close(actual, wanted)
    weights = torch.randn(wanted.shape, dtype=torch.float64, generator=generator)
    expected = torch.autograd.grad((wanted * weights).sum(), (q, k, v))
    for own, other in zip(torch.autograd.grad((actual * weights).sum(), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(own, other)


def mask_of(lengths: list[int], window: int | None, chunk: int | None = None, **changes: Any) -> tuple[Any, Tensor]:
    """Returns (what packed_mask says, transformers' mask) of a packed row with these trajectories."""
    total = sum(lengths)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def sees(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (owner[query] == owner[key])
        if window is not None:
            seen = seen & (query - key < window)
        return seen if chunk is None else seen & (query // chunk == key // chunk)

    arguments: dict[str, Any] = {
        "batch_size": 1,
        "q_length": total,
        "kv_length": total,
        "mask_function": sees,
        "allow_is_causal_skip": False,
        "local_size": chunk or window,
        "device": "cpu",
        **changes,
    }
    mask = sdpa_mask(**arguments)
    assert mask is not None
    return packed_mask(**arguments), mask


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6).filter(lambda x: sum(x) > 1), st.integers(2, 40))
def test_the_borders_stand_for_the_mask(lengths: list[int], window: int) -> None:
    for width in (None, window):
        row, mask = mask_of(lengths, width)
        assert isinstance(row, PackedRow)
        assert row.borders == (0, *torch.tensor(lengths).cumsum(0).tolist())
        assert torch.equal(row.mask(), mask)
    row, mask = mask_of(lengths, None, chunk=window)
    assert isinstance(row, PackedRow)
    assert torch.equal(row.mask(), mask)


def test_another_mask_is_built_as_ever() -> None:
    total, lengths = 12, [7, 5]
    for changes in (
        {"mask_function": lambda b, h, q, k: (q >= k) | (k < 3)},  # a prefix that sees all of itself
        {"mask_function": lambda b, h, q, k: (q >= k) & (q - k < 4)},  # a window that nobody told of
        {"mask_function": lambda b, h, q, k: (q >= k) & (q - k < 4), "local_size": 3},
        {"mask_function": lambda b, h, q, k: (q >= k) & (q - k < 4), "local_size": 5},
        {"attention_mask": torch.ones(1, total, dtype=torch.bool)},
        {"use_vmap": True},
        {"batch_size": 2},
        {"q_length": 5, "q_offset": 7},  # behind a cache
    ):
        made, mask = mask_of(lengths, None, **cast("Any", changes))
        assert torch.equal(made, mask)


def test_a_row_that_is_not_packed_has_no_borders() -> None:
    """transformers builds no mask for it either: sdpa's own causal kernel is called."""
    causal: dict[str, Any] = {"q_length": 12, "kv_length": 12, "mask_function": lambda b, h, q, k: q >= k}
    assert sdpa_mask(batch_size=1, **causal) is None
    assert packed_mask(batch_size=1, **causal) is None


def test_a_trajectory_one_token_longer_than_the_window_has_a_band() -> None:
    row = PackedRow((0, 6, 11), 5, CPU)
    assert row.band(5) is None
    band = row.band(6)
    assert band is not None and torch.equal(band, row.mask()[0, 0, :6, :6])
    assert band.sum() == 21 - 1


@pytest.mark.parametrize("asked", [{"dropout": 0.5}, {"cache": object()}])
def test_layers_that_ask_for_more_than_attention_are_given_the_mask(
    asked: dict[str, Any], attended: list[PackedRow]
) -> None:
    row = PackedRow((0, 3, 8), None, CPU)
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    packed_attention(torch.nn.Module(), q, k, v, row, scaling=None, **asked)
    assert not attended
    packed_attention(torch.nn.Module(), q, k, v, row, scaling=None)
    assert attended == [row]


def test_layers_that_add_to_the_mask_are_given_it() -> None:
    row = PackedRow((0, 3, 8), None, CPU)
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    bias = torch.randn(1, 2, 8, 8)
    layer = torch.nn.Module()
    out, _ = packed_attention(layer, q, k, v, row, position_bias=bias, scaling=None)
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(~row.mask(), float("-inf")))
    torch.testing.assert_close(out.transpose(1, 2), wanted)


def test_a_family_that_asks_for_sdpa_by_name_keeps_it(tmp_path: Path) -> None:
    for name, implementation in (("llama", SDPA_PACKED), ("falcon", "sdpa"), ("gptj", "eager")):
        make_model(BY_NAME[name], str(tmp_path / name))
        policy = load_policy(str(tmp_path / name), attention="sdpa", checkpointing=False)
        assert policy.model.config._attn_implementation == implementation
    policy = load_policy(str(tmp_path / "llama"), attention="eager", checkpointing=False)
    assert policy.model.config._attn_implementation == "eager"


def test_the_implementation_is_in_no_saved_configuration(tmp_path: Path) -> None:
    make_model(BY_NAME["llama"], str(tmp_path / "made"))
    load_policy(str(tmp_path / "made"), attention="sdpa", checkpointing=False).model.save_pretrained(tmp_path / "saved")
    assert SDPA_PACKED not in (tmp_path / "saved" / "config.json").read_text()


def test_blocks_hold_each_token_once_and_pad_little() -> None:
    lengths = [5, 40, 39, 1, 40, 6, 2]
    row = PackedRow((0, *torch.tensor(lengths).cumsum(0).tolist()), None, CPU)
    blocks = row.blocks
    assert row.longest == 40
    assert sum(n for n, _ in blocks.shapes) == len(lengths)
    assert torch.equal(blocks.take[blocks.back], torch.arange(sum(lengths)))
    assert blocks.shapes == ((3, 40), (4, 6))  # a call of sdpa costs more than the padding of similar lengths
    few = PackedRow((0, *torch.tensor([200, 190, 10, 9, 150]).cumsum(0).tolist()), None, CPU).blocks
    assert few.shapes == (
        (1, 200),
        (1, 190),
        (1, 150),
        (2, 10),
    )  # and less than that of long ones, whose pairs it multiplies
    assert len(blocks.take) < 1.5 * sum(lengths)


@pytest.mark.parametrize(("name", "attention"), [("gemma2", "sdpa"), ("llama", "eager"), ("falcon", "sdpa")])
def test_packing_that_needs_a_mask_is_told(name: str, attention: str, tmp_path: Path) -> None:
    make_model(BY_NAME[name], str(tmp_path))
    policy = load_policy(str(tmp_path), attention=attention, checkpointing=False)
    (sentence,) = policy.slow(packing=True)
    assert sentence.startswith("learner.packing=true is slow") and sentence.endswith("set learner.packing=false")
    assert not policy.packs and not policy.slow(packing=False) and not policy.slow(packing=None)


def test_packing_without_a_mask_is_not_slow(tmp_path: Path) -> None:
    make_model(BY_NAME["llama"], str(tmp_path))
    policy = load_policy(str(tmp_path), attention="sdpa", checkpointing=False)
    assert policy.packs and not policy.slow(packing=True) and not policy.slow(packing=None)
    (sentence,) = policy.slow(packing=False)
    assert sentence.startswith("learner.packing=false is slow for llama")
