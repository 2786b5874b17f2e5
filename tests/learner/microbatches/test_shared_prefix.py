"""A prompt once in a row is a prompt with each response, exactly: log-probs, statistics and gradients, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.families import BY_NAME, VOCAB
from models.one_family import make_model
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from envs.types import Prompt, Trajectory, Turn, Verdict
from learner.batching import build_batches
from learner.microbatches import packed_attention as module
from learner.microbatches.packed_attention import MaskRefused, PackedRow, packed_attention, packed_mask, row_of
from learner.microbatches.shared_prefix import FEWEST_QUERIES, branches
from learner.policy import load_policy
from learner.settings import BatchPlan

CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen3", "mistral-sliding", "gemma3", "gpt2", "minicpm3")
GROUPS = ((9, (3, 1, 12, 7)), (1, (4, 2)), (14, (20,)), (30, (30, 11, 2, 9)))  # a prompt's tokens, and its responses'


def responses() -> list[Trajectory]:
    """Returns groups of random responses, every third of them with a second turn."""
    generator = torch.Generator().manual_seed(3)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCAB, (n,), generator=generator).tolist())

    made: list[Trajectory] = []
    for group, (count, lengths) in enumerate(GROUPS):
        prompt = ids(count)
        for i, n in enumerate(lengths):
            turns = [Turn(prompt, ids(n), (-1.0,) * n, "stop", 0, 0)]
            if i % 3 == 2:
                turns.append(Turn(ids(4), ids(3), (-1.0,) * 3, "stop", 0, 0))
            made.append(Trajectory(Prompt("toy", "train", group, ()), tuple(turns), ("",) * len(turns), Verdict(0.0)))
    return made


def result(policy: Any, **plan: Any) -> tuple[Tensor, list[Tensor], int]:
    """Returns (statistics of every action token, gradients of a sum over them, token slots)."""
    policy.zero_grad()
    made, found, slots = responses(), dict[tuple[int, int], list[float]](), 0
    advantages = np.zeros(len(made))
    (batch,) = build_batches(made, advantages, plan=BatchPlan(**plan), aggregation="token", temperature=0.7)
    for micro in batch.updates[0]:
        arrays = (micro.tokens, micro.positions, micro.predict, micro.targets)
        statistics = policy(*map(torch.tensor, arrays), 0.7)
        (statistics[0].sin().sum() + statistics[1].sum()).backward()
        columns = torch.stack([x.detach() for x in statistics], -1).tolist()
        for i, k, values in zip(micro.trajectory.tolist(), micro.action_index.tolist(), columns, strict=True):
            found[i, k] = values
        slots += micro.tokens.size
    gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    return torch.tensor([found[key] for key in sorted(found)]), gradients, slots


@pytest.mark.parametrize(("name", "checkpointing"), [*((name, False) for name in FAMILIES), ("gemma3", True)])
def test_a_shared_prompt_is_a_prompt_with_each_response(
    name: str, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(BY_NAME[name], str(tmp_path))
    policy = load_policy(str(tmp_path), attention="sdpa", checkpointing=checkpointing).double()
    assert policy.shares(None) and policy.shares(True) and not policy.shares(False)
    rows, inner = list[PackedRow](), module._attend

    def attend(row: PackedRow, *rest: Any) -> Tensor:
        rows.append(row)
        return inner(row, *rest)

    monkeypatch.setattr(module, "_attend", attend)
    statistics, gradients, slots = result(policy, packing=False, micro_batch_tokens=1)
    assert slots == sum(t.tokens for t in responses())
    for budget, fewer in ((10_000, sum((n - 1) * (len(own) - 1) for n, own in GROUPS)), (70, 60)):
        rows.clear()
        shared, others, left = result(policy, packing=True, prefix_sharing=True, micro_batch_tokens=budget)
        assert (left == slots - fewer) if budget > slots else (slots - fewer > left > slots / 3)
        assert any(row.branches for row in rows)
        assert ((shared - statistics).abs() < 1e-5 * (1 + statistics.abs())).all()  # the head's results are float32
        for own, wanted in zip(others, gradients, strict=True):
            assert (own - wanted).abs().max() < 2e-5 * (1 + wanted.abs().max())


@pytest.mark.parametrize(("name", "attention"), [("gemma2", "sdpa"), ("llama", "eager"), ("falcon", "sdpa")])
def test_attention_with_a_mask_shares_nothing(name: str, attention: str, tmp_path: Path) -> None:
    make_model(BY_NAME[name], str(tmp_path))
    policy = load_policy(str(tmp_path), attention=attention, checkpointing=False)
    assert not policy.shares(True) and not policy.shares(None)


def test_attention_in_chunks_shares_nothing(tmp_path: Path) -> None:
    """A chunk's border is one of the mask and none of positions; a start's short rows have none."""
    make_model(BY_NAME["llama"], str(tmp_path))
    policy = load_policy(str(tmp_path), attention="sdpa", checkpointing=False)
    policy.model.config.attention_chunk_size = 8192
    assert not policy.shares(True) and not policy.shares(None)


Branching = list[
    tuple[int, list[tuple[int, int]]]
]  # of each whole trajectory its tokens, and (shared, own) of its branches


@st.composite
def branching(draw: st.DrawFn) -> Branching:
    groups: Branching = []
    for _ in range(draw(st.integers(1, 4))):
        whole = draw(st.integers(2, 40))
        own = st.tuples(st.integers(1, whole - 1), st.integers(2, 25))
        groups.append((whole, draw(st.lists(own, max_size=5))))
    return groups


def row_with(groups: Branching, window: int | None) -> PackedRow:
    lengths = [n for whole, own in groups for n in (whole, *(length for _, length in own))]
    prefixes = [n for _, own in groups for n in (0, *(shared for shared, _ in own))]
    return PackedRow((0, *np.cumsum(lengths).tolist()), window, CPU, tuple(prefixes))


def seen_by(groups: Branching, window: int | None) -> Tensor:
    """Returns the mask of such a row, one pair at a time."""
    tokens: list[tuple[int, int, int, int]] = []  # group, branch (0: the whole one), position, tokens shared
    for g, (whole, own) in enumerate(groups):
        tokens += [(g, 0, at, 0) for at in range(whole)]
        tokens += [(g, k + 1, s + at, s) for k, (s, length) in enumerate(own) for at in range(length)]
    mask = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for i, (g, k, at, shared) in enumerate(tokens):
        for j, (h, m, other, _) in enumerate(tokens):
            visible = g == h and (k == m or (m == 0 and other < shared)) and other <= at
            mask[i, j] = visible and (window is None or at - other < window)
    return mask


@given(
    branching(),
    st.one_of(st.none(), st.integers(2, 30)),
    st.sampled_from([(2, 2, 8), (4, 2, 8), (4, 1, 6)]),
    st.sampled_from([None, 0.3]),
)
def test_attention_of_branches_is_attention_with_their_mask(
    groups: Branching, window: int | None, shape: tuple[int, int, int], scale: float | None
) -> None:
    heads, kv_heads, d = shape
    row = row_with(groups, window)
    assert torch.equal(row.mask()[0, 0], seen_by(groups, window))
    total = row.borders[-1]
    generator = torch.Generator().manual_seed(total)

    def random(count: int, width: int) -> Tensor:
        return torch.randn(1, count, total, width, dtype=torch.float64, generator=generator, requires_grad=True)

    q, k, v = random(heads, d), random(kv_heads, d), random(kv_heads, d)
    wide_k, wide_v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    wanted = scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=row.mask(), scale=scale)
    layer = torch.nn.Module()
    layer.num_key_value_groups = heads // kv_heads  # type: ignore[assignment]
    actual = packed_attention(layer, q, k, v, row, scaling=scale)[0].transpose(1, 2)
    torch.testing.assert_close(actual, wanted)
    weights = torch.randn(wanted.shape, dtype=torch.float64, generator=generator)
    expected = torch.autograd.grad((wanted * weights).sum(), (q, k, v))
    for own, other in zip(torch.autograd.grad((actual * weights).sum(), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(own, other)


@given(branching())
def test_a_branch_is_laid_out_once_and_its_keys_are_bounded(groups: Branching) -> None:
    row = row_with(groups, None)
    found = branches(row.borders, row.prefixes, None, CPU)
    count = sum(length for _, own in groups for _, length in own)
    assert (found is None) == (row.branches is None) == (count == 0)
    if found is None:
        return
    assert len(found.tokens) == len(set(found.places.tolist())) == count
    assert torch.equal(found.queries[found.places], torch.from_numpy(found.tokens))
    for (n, queries, keys), mask in zip(found.shapes, found.masks, strict=True):
        assert mask.shape == (n, 1, queries, keys)
        assert mask.any(-1).all()  # a query that sees nothing would be nan


def test_branches_of_a_long_prefix_are_one_row_and_those_of_a_short_one_several() -> None:
    def shapes(prefix: int, own: int) -> tuple[tuple[int, int, int], ...]:
        found = row_with([(prefix + own, [(prefix, own)] * 16)], None).branches
        assert found is not None
        return found.shapes

    assert shapes(1000, 7) == ((1, 16 * 7, 1000 + 16 * 7),)
    assert shapes(19, 7) == ((4, 4 * 7, 19 + 4 * 7),)  # as many queries as kernels take at once: FEWEST_QUERIES
    assert 4 * 7 <= FEWEST_QUERIES < 5 * 7
    assert shapes(100, 84) == ((16, 84, 184),)


def test_a_row_of_wildly_different_branches_is_several_calls() -> None:
    found = row_with([(600, [(500, 400), (500, 399), (500, 300), (500, 4)]), (5, [(2, 3)])], None).branches
    assert found is not None
    assert found.shapes == ((2, 400, 900), (1, 304, 804), (1, 3, 5))


def mask_of(positions: list[int], **changes: Any) -> Any:
    """Returns what packed_mask makes of transformers' mask function for these positions."""
    at = torch.tensor([positions])
    owner = (at.diff(prepend=at[:, :1] - 1) != 1).cumsum(-1)[0]
    arguments: dict[str, Any] = {
        "batch_size": 1,
        "q_length": len(positions),
        "kv_length": len(positions),
        "mask_function": lambda b, h, q, k: (k <= q) & (owner[q] == owner[k]),
        "allow_is_causal_skip": False,
        **changes,
    }
    with row_of(at):
        return packed_mask(**arguments)


def test_a_row_tells_its_prefixes_by_its_positions() -> None:
    row = mask_of([0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 0, 1, 0, 1, 2, 1, 2])
    assert isinstance(row, PackedRow)
    assert row.borders == (0, 5, 8, 10, 12, 15, 17)
    assert row.prefixes == (0, 2, 2, 0, 0, 1)
    plain = mask_of([0, 1, 2, 0, 1])
    assert isinstance(plain, PackedRow) and plain.prefixes == () and plain.branches is None


def test_positions_of_another_row_tell_nothing() -> None:
    """Those of a padded batch, and those that are left from a forward that has ended."""
    two = torch.tensor([[0, 1, 2, 1], [0, 1, 2, 3]])
    with row_of(two):
        assert module._positions.get() is None
    assert module._positions.get() is None


def test_a_mask_of_more_than_borders_is_refused_in_a_row_with_branches() -> None:
    branching_row = [0, 1, 2, 3, 2, 3]

    def chunks(
        b: Any, h: Any, q: Tensor, k: Tensor
    ) -> Tensor:  # borders at every second token, which positions do not have
        return (k <= q) & (q // 2 == k // 2)

    def prefix(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:  # tokens that see what comes
        return (k <= q) | (k < 3)

    for mask in (chunks, prefix):
        with pytest.raises(MaskRefused, match=r"^prefix sharing: .* set learner\.prefix_sharing=false$"):
            mask_of(branching_row, mask_function=mask)
        mask_of([0, 1, 2, 3, 0, 1], mask_function=mask)  # without branches it is computed as ever
