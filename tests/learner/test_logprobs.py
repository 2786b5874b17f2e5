"""token_logprobs against plain autograd on the full logits, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import assert_close
from torch import Tensor

from learner.head import blocks
from learner.logprobs import token_logprobs


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes the definitions on all logits at once."""
    z = hidden @ weight.T
    if bias is not None:
        z = z + bias
    z = scale * z
    if softcap is not None:
        z = softcap * (z / softcap).tanh()
    p = (z / temperature).softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    kappa = (p**2 * (p.log() + entropy[:, None])).sum(-1)
    entropy_grad_sq = (p * (p.log() + entropy[:, None])).square().sum(-1)
    return p[torch.arange(len(p)), targets].log(), entropy, kappa, entropy_grad_sq


def inputs(n: int, width: int, vocab: int, with_bias: bool, seed: int) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """Returns ([hidden, weight, bias] in float64 with float32 values, targets, cotangents [2, n])."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, width), (vocab, width), (vocab,)]
    values: list[Tensor | None] = [torch.randn(s, generator=generator).double() for s in shapes]
    if not with_bias:
        values[2] = None
    targets = torch.randint(vocab, (n,), generator=generator)
    return values, targets, torch.randn(2, n, generator=generator).double()


def leaves(values: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if v is None else v.detach().to(dtype, copy=True).requires_grad_() for v in values]


@contextmanager
def blocks_of(logits: int, keep: int) -> Iterator[None]:
    """Makes blocks of so many logits, and lets forward keep so many."""
    with mock.patch.object(blocks, "BLOCK", logits), mock.patch.object(blocks, "KEEP", keep):
        yield


@settings(max_examples=80)
@given(
    n=st.integers(0, 13),
    width=st.integers(1, 6),
    vocab=st.integers(2, 19),
    with_bias=st.booleans(),
    temperature=st.floats(0.3, 3.0),
    softcap=st.none() | st.floats(1.0, 30.0),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    chunk=st.integers(1, 15),
    block=st.integers(1, 200),
    keep=st.integers(0, 200),
    seed=st.integers(0, 10_000),
)
def test_values_and_gradients_are_those_of_the_full_logits(
    n: int,
    width: int,
    vocab: int,
    with_bias: bool,
    temperature: float,
    softcap: float | None,
    scale: float,
    chunk: int,
    block: int,
    keep: int,
    seed: int,
) -> None:
    values, targets, cotangents = inputs(n, width, vocab, with_bias, seed)
    exact, computed = leaves(values, torch.float64), leaves(values, torch.float32)
    assert exact[0] is not None
    assert exact[1] is not None
    assert computed[0] is not None
    assert computed[1] is not None
    expected = reference(exact[0], exact[1], targets, exact[2], temperature, softcap, scale)
    rule: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "scale": scale, "chunk": chunk}
    with blocks_of(block, keep):
        actual = token_logprobs(computed[0], computed[1], targets, bias=computed[2], **rule)
        (cotangents[0].float() * actual[0] + cotangents[1].float() * actual[1]).sum().backward()
    for name, e, f in zip(("logp", "entropy", "kappa", "entropy_grad_sq"), expected, actual, strict=True):
        assert f.dtype == torch.float32
        assert_close(f, e, 2e-5, 2e-6, name)
    (cotangents[0] * expected[0] + cotangents[1] * expected[1]).sum().backward()
    for name, e, f in zip(("hidden", "weight", "bias"), exact, computed, strict=True):
        if e is not None and f is not None:
            assert e.grad is not None
            largest = max(1.0, float(e.grad.abs().max())) if e.grad.numel() else 1.0
            assert_close(f.grad, e.grad, 1e-4, 1e-5 * largest, f"gradient of {name}")


def test_an_empty_micro_batch_still_has_a_gradient_path_and_it_is_zero() -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    logp, entropy, kappa, entropy_grad_sq = token_logprobs(hidden, weight, torch.zeros(0, dtype=torch.long))
    assert logp.shape == entropy.shape == kappa.shape == entropy_grad_sq.shape == (0,)
    (logp.sum() + entropy.sum()).backward()  # a rank without tokens takes part in the collectives of backward
    assert weight.grad is not None
    assert not weight.grad.any()


def test_kappa_and_entropy_grad_sq_are_statistics_without_a_gradient() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    actual = token_logprobs(hidden, weight, torch.zeros(3, dtype=torch.long))
    assert [x.requires_grad for x in actual] == [True, True, False, False]


def test_entropy_grad_sq_is_the_squared_gradient_of_entropy_in_the_logits() -> None:
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    *_, entropy_grad_sq = token_logprobs(logits.detach().float(), torch.eye(9), torch.zeros(6, dtype=torch.long))
    assert_close(entropy_grad_sq, gradient.square().sum(-1), 1e-4, 1e-6)


@pytest.mark.parametrize(
    ("n", "chunk", "block", "shapes"),
    [
        (10, 4, 24, [(4, 6), (4, 6), (2, 6)]),
        (3, 100, 24, [(3, 6)]),
        (5, 4, 8, [(4, 2), (4, 2), (4, 2), (1, 2), (1, 2), (1, 2)]),
        (2, 2, 1, [(2, 1)] * 6),
    ],
)
def test_no_more_than_a_block_of_logits_is_alive_forward_or_backward(
    n: int, chunk: int, block: int, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    plain = blocks._logits

    def recording(*args: Any) -> Tensor:
        z = plain(*args)
        made.append(tuple(z.shape))
        return z

    monkeypatch.setattr(blocks, "_logits", recording)
    hidden, weight = torch.randn(n, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    saved: list[tuple[int, ...]] = []
    with blocks_of(block, 0):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
            logp, entropy, *_ = token_logprobs(hidden, weight, torch.zeros(n, dtype=torch.long), chunk=chunk)
        assert made == shapes
        assert all(6 not in shape for shape in saved), f"kept for backward: {saved}"
        (logp + entropy).sum().backward()
    assert sorted(made) == sorted(shapes * 2)


def test_the_logits_of_the_first_columns_are_kept_and_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = blocks._logits
    monkeypatch.setattr(blocks, "_logits", lambda *args: made.append(len(args[0]) * len(args[1])) or plain(*args))
    hidden, weight = torch.randn(10, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    gradients = []
    for keep, again in ((0, 60), (19, 60), (20, 40), (45, 20), (60, 0), (100, 0)):
        with blocks_of(3 * 2, keep):  # two columns
            logp, entropy, *_ = token_logprobs(hidden, weight, torch.arange(10) % 6, chunk=3)
            made.clear()
            gradients.append(torch.autograd.grad((logp + entropy).sum(), (hidden, weight)))
        assert sum(made) == again, f"{keep} logits may be kept"
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], gradients[-1], strict=True))


def test_a_pass_without_a_gradient_keeps_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    plain = blocks.forward
    monkeypatch.setattr(blocks, "forward", lambda *args: asked.append(args[-1]) or plain(*args))
    hidden, weight = torch.randn(3, 4), torch.randn(6, 4, requires_grad=True)
    targets = torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        token_logprobs(hidden, weight, targets)
    token_logprobs(hidden, weight, targets)
    token_logprobs(hidden, weight.detach(), targets)
    assert asked == [False, True, False]


def test_without_statistics_the_rest_is_the_same_and_nothing_can_be_taken_for_kappa() -> None:
    hidden, weight = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets = torch.arange(7)
    results = []
    for statistics in (True, False):
        with blocks_of(8, 0):
            logp, entropy, *rest = token_logprobs(hidden, weight, targets, statistics=statistics)
            results.append((logp, entropy, *torch.autograd.grad((logp - entropy).sum(), (hidden, weight))))
        assert [x.shape for x in rest] == [(7,) if statistics else (0,)] * 2
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("of", ["logp", "entropy"])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_a_loss_of_one_alone_has_the_gradient_of_both_with_the_other_at_zero(of: str, softcap: float | None) -> None:
    hidden, weight = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    bias, targets = torch.randn(9, requires_grad=True), torch.arange(7)
    logp, entropy, *_ = token_logprobs(hidden, weight, targets, bias=bias, softcap=softcap)
    one, other = (logp, entropy) if of == "logp" else (entropy, logp)
    leaves = (hidden, weight, bias)
    alone = torch.autograd.grad(one.sum(), leaves, retain_graph=True)
    both = torch.autograd.grad(one.sum() + (0.0 * other).sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(one.sum(), leaves)
    for a, b, c in zip(alone, both, again, strict=True):
        assert a.any()
        assert_close(a, b, 1e-5, 1e-6)
        assert torch.equal(a, c), "backward leaves what it needs as it was"


def test_a_frozen_weight_gets_no_gradient_and_hidden_states_do() -> None:
    hidden, weight = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4)
    free = weight.clone().requires_grad_()
    for w in (weight, free):
        logp, entropy, *_ = token_logprobs(hidden, w, torch.arange(7))
        (logp + entropy).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    only = free.grad
    hidden_only = token_logprobs(hidden.detach(), free, torch.arange(7))
    (gradient,) = torch.autograd.grad((hidden_only[0] + hidden_only[1]).sum(), free)
    assert_close(gradient, only if only is not None else torch.empty(0), 1e-6, 1e-7)


def test_the_weight_may_be_released_between_forward_and_backward() -> None:
    """ZeRO-3 does, and gathers it again into the same object."""
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    values = weight.detach().clone()
    gradients = []
    for release in (False, True):
        with blocks_of(10, 0):
            logp, entropy, *_ = token_logprobs(hidden, weight, torch.arange(5))
            if release:
                weight.data = torch.empty(0)
                weight.data = values.clone()
            gradients.append(torch.autograd.grad((logp + entropy).sum(), (hidden, weight)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@settings(max_examples=60)
@given(
    vocab=st.sampled_from([2, 17, 300]),
    spread=st.sampled_from([0.0, 1e-3, 0.3, 3.0, 15.0]),
    shift=st.sampled_from([-30.0, 0.0, 30.0]),
    ties=st.booleans(),
    block=st.sampled_from([7, 100, 2**20]),
    entropy_weight=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 10_000),
)
def test_flat_and_peaked_rows_are_as_exact_as_float32_logits_allow(
    vocab: int, spread: float, shift: float, ties: bool, block: int, entropy_weight: float, seed: int
) -> None:
    """The logits themselves are the hidden states, so that both begin from the same numbers; they reach 50 nats and beyond."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(7, vocab, generator=generator) * spread + shift
    if ties:
        z = z.round()
    targets = torch.randint(vocab, (7,), generator=generator)
    exact, computed = z.double().requires_grad_(), z.clone().requires_grad_()
    log_p = exact.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    logp = log_p.gather(1, targets[:, None])[:, 0]
    pull = (log_p.exp() * (log_p + entropy[:, None])).detach()
    expected = (logp, entropy, (log_p.exp() * pull).sum(-1), pull.square().sum(-1))
    with blocks_of(block, 0):
        actual = token_logprobs(computed, torch.eye(vocab), targets)
        (actual[0] + entropy_weight * actual[1]).sum().backward()
    (logp + entropy_weight * entropy).sum().backward()
    for name, a, e in zip(("logp", "entropy", "kappa", "entropy_grad_sq"), actual, expected, strict=True):
        assert_close(a, e, 2e-6, 5e-7, name)
    assert exact.grad is not None
    assert computed.grad is not None
    apart = (computed.grad - exact.grad).norm(dim=1)
    assert (apart <= 1e-5 * exact.grad.norm(dim=1) + 2e-7 * (1 + entropy_weight)).all()


def test_a_flat_row_over_a_large_vocabulary_keeps_its_small_statistics() -> None:
    """They are differences of sums that are ten thousand times as large."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 50_000, generator=generator) * 1e-2
    log_p = z.double().log_softmax(-1)
    L = log_p - (log_p.exp() * log_p).sum(-1, keepdim=True)
    targets = torch.zeros(4, dtype=torch.long)
    with blocks_of(2**13, 0):
        *_, kappa, entropy_grad_sq = token_logprobs(torch.eye(4), z.T.contiguous(), targets)
    assert_close(kappa, (log_p.exp().square() * L).sum(-1), 1e-2)
    assert_close(entropy_grad_sq, (log_p.exp().square() * L * L).sum(-1), 2e-5)


def test_low_precision_weights_give_float32_statistics_and_gradients_in_their_own_type() -> None:
    hidden = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(11, 8, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.arange(5)
    logp, entropy, *_ = token_logprobs(hidden, weight, targets, chunk=2)
    z = (hidden @ weight.T).float()  # the product in bfloat16, everything after it in float32
    assert_close(logp, z.log_softmax(-1)[targets, targets], 1e-6)
    (logp + entropy).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16)


def rounded(values: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if v is None else v.to(dtype).double() for v in values]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_with_an_fp32_head_the_product_loses_nothing(
    dtype: torch.dtype, with_bias: bool, softcap: float | None
) -> None:
    """Against float64 on the same rounded values: all that is left is float32 rounding, and the last one of the gradient."""
    values, targets, cotangents = inputs(23, 32, 40, with_bias, seed=3)
    values = rounded(values, dtype)
    exact, computed = leaves(values, torch.float64), leaves(values, dtype)
    assert exact[0] is not None
    assert exact[1] is not None
    assert computed[0] is not None
    assert computed[1] is not None
    expected = reference(exact[0], exact[1], targets, exact[2], 0.8, softcap)
    settings: dict[str, Any] = {"bias": computed[2], "temperature": 0.8, "softcap": softcap, "chunk": 7}
    actual = token_logprobs(computed[0], computed[1], targets, **settings, fp32_head=True)
    for name, e, f in zip(("logp", "entropy", "kappa", "entropy_grad_sq"), expected, actual, strict=True):
        assert f.dtype == torch.float32
        assert_close(f, e, 2e-5, 2e-6, name)
    (cotangents[0] * expected[0] + cotangents[1] * expected[1]).sum().backward()
    (cotangents[0].float() * actual[0] + cotangents[1].float() * actual[1]).sum().backward()
    half_step = max(torch.finfo(dtype).eps / 2, 1e-5)  # of the rounding to the leaf's own type, done once
    for name, e, f in zip(("hidden", "weight", "bias"), exact, computed, strict=True):
        if e is not None and f is not None:
            assert e.grad is not None
            assert f.grad is not None
            assert f.grad.dtype == dtype
            assert_close(f.grad, e.grad, half_step * 1.05, 2e-5, f"gradient of {name}")


def test_an_fp32_head_is_nearer_to_the_truth_than_the_weights_own_precision() -> None:
    values, targets, _ = inputs(200, 64, 50, False, seed=1)
    values = rounded(values, torch.bfloat16)
    hidden, weight = (v.to(torch.bfloat16) for v in values if v is not None)
    truth = reference(hidden.double(), weight.double(), targets, None, 1.0, None)[0]
    errors = [
        float((token_logprobs(hidden, weight, targets, fp32_head=head)[0] - truth).abs().max())
        for head in (True, False)
    ]
    assert errors[0] < 1e-4 < 1e-2 < errors[1]


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    logp, entropy, *statistics = token_logprobs(hidden, weight, torch.tensor([0, 0]))
    assert logp.tolist() == [0.0, -400.0]
    assert entropy.tolist() == [0.0, 0.0]
    (logp + entropy).sum().backward()
    assert all(torch.isfinite(x).all() for x in (*statistics, hidden.grad, weight.grad) if x is not None)
