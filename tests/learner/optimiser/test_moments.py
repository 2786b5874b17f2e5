"""Moments in 8 bits as float32 and back: the same codes in whatever ranges, near the values, and bitsandbytes' own steps go on."""

from __future__ import annotations

import importlib
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.optimiser import adamw, moments
from learner.optimiser.moments import BLOCK, EightBit, EightBitRange, Plain
from learner.settings import EngineSettings
from learner.types import UnsupportedModel

EIGHT = EngineSettings(optimiser_bits=8, weight_decay=0.1)


def levels(signed: bool) -> torch.Tensor:
    return importlib.import_module("bitsandbytes.functional").create_dynamic_map(signed=signed)


def empty(size: int, signed: bool = True) -> EightBit:
    blocks = -(-size // BLOCK)
    return EightBit(torch.zeros(size, dtype=torch.uint8), torch.zeros(blocks), levels(signed))


def spread(size: int, seed: int) -> torch.Tensor:
    """Returns values over many orders of magnitude, as moments have them, with a block of zeros and blocks led by a negative."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator) * 10.0 ** torch.randint(-12, 3, (size,), generator=generator)
    values[: min(size, BLOCK)] = 0
    return values


def stepped(parameter: torch.nn.Parameter, optimiser: Any, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=generator) * torch.logspace(
            -6, 0, parameter.numel()
        ).view(parameter.shape)
        optimiser.step()


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 5 * BLOCK),
    bounds=st.lists(st.integers(0, 5 * BLOCK), max_size=6),
    seed=st.integers(0, 1000),
    signed=st.booleans(),
    turned=st.booleans(),
)
def test_ranges_that_are_read_and_written_give_the_same_codes(
    size: int, bounds: list[int], seed: int, signed: bool, turned: bool
) -> None:
    """In any order, whatever was there before; read and written as whole ranges and as parts of them."""
    values = spread(size, seed)
    source, target = empty(size, signed), empty(size, signed)
    source.write(0, values if signed else values.square())
    target.write(0, torch.full((size,), 9e9))
    at = list(pairwise([0, *sorted(b % (size + 1) for b in bounds), size]))
    shared = EightBit(target.codes, target.absmax, target.levels)
    for start, end in reversed(at) if turned else at:
        middle = (start + end) // 2
        for first, last in ((start, middle), (middle, end)):
            part = EightBitRange(source, start, end).part(first - start, last - start)
            EightBitRange(shared, start, end).write(first - start, part.read())
    assert torch.equal(target.codes, source.codes)
    assert torch.equal(target.absmax, source.absmax)


def test_every_code_comes_back_also_those_of_a_negative_largest_element() -> None:
    """The lowest code is -absmax; read as the level it has, -0.993 absmax, its block would come back smaller."""
    for signed in (True, False):
        moment = empty(BLOCK, signed)
        assert len(moment.levels) == 256
        for absmax in (1.0, 3e-7, 1.7e4):
            moment.codes[:] = torch.arange(256, dtype=torch.uint8)
            moment.absmax[:] = absmax
            found = moment.read(0, BLOCK)
            again = empty(BLOCK, signed)
            again.write(0, found)
            assert torch.equal(again.codes, moment.codes) and torch.equal(again.absmax, moment.absmax)
        if signed:  # a block without a positive largest element
            moment.codes[:] = torch.arange(256, dtype=torch.uint8).clamp(max=250)
            again.write(0, moment.read(0, BLOCK))
            assert torch.equal(again.absmax, moment.absmax)


def test_values_are_near_and_zeros_are_zeros() -> None:
    values = spread(4 * BLOCK + 7, 3)
    moment = empty(len(values))
    moment.write(0, values)
    found = moment.read(0, len(values))
    assert (found[:BLOCK] == 0).all()
    absmax = moment.absmax.repeat_interleave(BLOCK)[: len(values)]
    assert ((found - values).abs() <= absmax * 0.0075).all(), "half of the widest distance of two levels"
    large = values.abs() > absmax / 10
    assert ((found - values).abs() / values.abs())[large].max() < 0.07


def test_little_is_converted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "PIECE", 2 * BLOCK)
    values = spread(7 * BLOCK + 100, 5)
    moment, whole = empty(len(values)), empty(len(values))
    moment.write(0, values)
    monkeypatch.undo()
    whole.write(0, values)
    assert torch.equal(moment.codes, whole.codes) and torch.equal(moment.absmax, whole.absmax)
    monkeypatch.setattr(moments, "PIECE", 2 * BLOCK)
    pieces = moment.read(100, len(values) - 3)
    monkeypatch.undo()
    assert torch.equal(pieces, whole.read(100, len(values) - 3))


@pytest.mark.parametrize("size", [100, 4096, 5000], ids=["too small for 8 bits", "whole blocks", "a short last block"])
def test_bitsandbytes_goes_on_from_moments_that_were_read(size: int) -> None:
    """What a checkpoint holds is all of its state: a new optimiser that is given it takes the same steps, bit for bit."""
    ends: list[torch.Tensor] = []
    for resumed in (False, True):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, size))
        optimiser: Any = adamw.build(EIGHT, [{"params": [parameter], "weight_decay": 0.1}], 1e-2, cuda=False)
        stepped(parameter, optimiser, 3, seed=1)
        if resumed:
            fresh: Any = adamw.build(EIGHT, [{"params": [parameter], "weight_decay": 0.1}], 1e-2, cuda=False)
            count = adamw.StepCount(optimiser.state[parameter])
            old, new = (adamw.values_of(o, parameter) for o in (optimiser, fresh))
            adamw.StepCount(fresh.state[parameter]).set(count.value)
            for key in adamw.MOMENTS:
                assert isinstance(old[key], Plain) is (size < 4096)
                values = adamw.range_of(old[key], 0, size).read()
                assert values.dtype is torch.float32 and values.abs().max() > 0
                adamw.range_of(new[key], 0, size).write(0, values)
            optimiser = fresh
        stepped(parameter, optimiser, 3, seed=2)
        ends.append(parameter.detach().clone())
    assert torch.equal(ends[0], ends[1])


def test_moments_take_the_bytes_that_are_planned() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1 << 16))
    optimiser: Any = adamw.build(EIGHT, [{"params": [parameter]}], 1e-2, cuda=False)
    stored = [t for m in adamw.values_of(optimiser, parameter).values() for t in adamw.range_of(m, 0, 9).stored]
    assert sum(t.nbytes for t in stored) == 2 * (1 << 16) + 2 * 4 * (1 << 16) // BLOCK


@pytest.mark.parametrize("bits", [32, 8])
def test_a_reset_optimiser_is_as_a_new_one(bits: Any) -> None:
    ends: list[torch.Tensor] = []
    for reset in (False, True):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 4096))
        optimiser: Any = adamw.build(EngineSettings(optimiser_bits=bits), [{"params": [parameter]}], 1e-2, cuda=False)
        if reset:
            stepped(parameter, optimiser, 3, seed=1)
            parameter.data = torch.linspace(-1, 1, 4096)
            adamw.reset(optimiser)
            assert adamw.StepCount(optimiser.state[parameter]).value == 0
            assert all(
                (adamw.range_of(m, 0, 4096).read() == 0).all() for m in adamw.values_of(optimiser, parameter).values()
            )
        stepped(parameter, optimiser, 3, seed=2)
        ends.append(parameter.detach().clone())
    assert torch.equal(ends[0], ends[1])


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        UnsupportedModel, match=r"optimiser_bits is 8 and bitsandbytes cannot be .*`pip install bitsandbytes`"
    ):
        adamw.build(EIGHT, [{"params": [torch.nn.Parameter(torch.zeros(3))]}], 1e-2, cuda=False)
