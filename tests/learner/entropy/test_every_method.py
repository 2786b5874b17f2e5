"""What every entropy method has to do: it is built, shapes, is divided among micro-batches, and refuses what it does not know."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.builders import loss_data, make_stats

from learner.entropy import base, build
from learner.entropy.target import TargetSettings
from learner.objective import token_loss
from learner.settings import KindSettings, ObjectiveSettings
from learner.types import Shaping, TokenStats

# What each kind needs beside its name.
SETTINGS: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in build.METHODS}


# --- every entry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(build.METHODS))
def test_every_method_is_built_steered_and_shapes(kind: str) -> None:
    settings = build.parse(build.METHODS, SETTINGS[kind], "method")
    controller = {"kind": "band"} if kind == "entrocraft" else {"kind": "fixed"}
    steering = build.build(settings, build.parse(build.CONTROLLERS, controller, "controller"), TargetSettings())
    method = steering.method
    assert method.scope in ("token", "batch")
    assert method.coefficient_range.low <= abs(method.coefficient_range.start) <= method.coefficient_range.high
    assert steering.controller.value == method.coefficient_range.start
    stats = make_stats(12)
    shaping = steering.shape(stats, ("toy",))
    for value in (shaping.advantages, shaping.weight, shaping.kl, shaping.touched):
        assert value is None or value.shape == (12,)
    if method.scope == "token":  # any part of a batch gives the same
        taken = shaping.take(slice(3, 9))
        part = steering.shape(stats.take(slice(3, 9)), ("toy",))
        for a, b in zip((taken.advantages, taken.touched), (part.advantages, part.touched), strict=True):
            assert (a is None) == (b is None)
            assert a is None or b is None or torch.equal(a, b)
        assert (taken.bonus, taken.clip_high, taken.clip_low) == (part.bonus, part.clip_high, part.clip_low)


class Covariance:
    """Drops the half of the tokens with the larger advantage, which depends on the whole batch."""

    class Settings(KindSettings):
        kind: Literal["test_covariance"]

    coefficient_range = base.CoefficientRange(start=0.5, low=0.1, high=1.0, signed=False)
    scope: ClassVar[Literal["token", "batch"]] = "batch"
    surrogates: ClassVar[frozenset[str] | None] = None

    def __init__(self, settings: Settings) -> None: ...

    def shape(self, tokens: TokenStats, coefficient: float) -> Shaping:
        high = tokens.advantages > tokens.advantages.quantile(1 - coefficient)
        return Shaping(weight=(~high).to(tokens.advantages.dtype), touched=high)


def test_a_method_over_the_whole_batch_is_divided_among_its_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.METHODS, "test_covariance", Covariance)
    method = build.parse(build.METHODS, {"kind": "test_covariance"}, "method")
    steering = build.build(method, build.parse(build.CONTROLLERS, {"kind": "fixed"}, "controller"), TargetSettings())
    stats = make_stats(24)
    weight = torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(part: slice, shaping: Shaping) -> float:
        s = stats.take(part)
        return float(token_loss(s.logp, s.entropy, loss_data(s, weight[part]), shaping, ObjectiveSettings()).loss)

    shaping = steering.shape(stats, ("toy",))
    assert shaping.touched is not None
    assert 0 < int(shaping.touched.sum()) < 24
    full = loss(slice(0, 24), shaping)
    for size in (1, 5, 24):
        parts = [slice(i, i + size) for i in range(0, 24, size)]
        assert sum(loss(p, shaping.take(p)) for p in parts) == pytest.approx(full, rel=1e-12)
    assert sum(loss(p, steering.shape(stats.take(p), ("toy",))) for p in (slice(0, 3), slice(3, 24))) != pytest.approx(
        full
    )


@given(st.integers(0, 12), st.integers(0, 12))
def test_a_shaping_is_divided_in_every_field(a: int, b: int) -> None:
    assume(a <= b)
    x = torch.arange(12.0)
    full = Shaping(advantages=x, clip_high=x + 1, weight=x + 2, bonus=x + 3, kl=x + 4, touched=x > 3)
    taken = full.take(slice(a, b))
    for name in ("advantages", "clip_high", "weight", "bonus", "kl", "touched"):
        assert torch.equal(getattr(taken, name), getattr(full, name)[a:b])
    assert Shaping(clip_high=0.3, bonus=0.1).take(slice(a, b)) == Shaping(clip_high=0.3, bonus=0.1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "repo-d"}, "unknown entropy method 'repo-d': did you mean 'repo_d'\\? one of: none, bonus, "),
        ({"kind": "zzz"}, "unknown entropy method 'zzz': one of: none, "),
        ({}, "the entropy method needs a kind, one of: "),
        ("bonus", "the entropy method needs a kind, one of: "),
        ({"kind": 3}, "the entropy method needs a kind"),
    ],
)
def test_a_method_that_is_not_there_is_one_sentence(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build.parse(build.METHODS, value, "method")


@pytest.mark.parametrize("kind", sorted(build.METHODS))
def test_settings_refuse_what_they_do_not_know(kind: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        build.parse(build.METHODS, {**SETTINGS[kind], "centered": True}, "method")
    if kind in ("repo", "repo_r"):
        with pytest.raises(ValidationError, match="valid boolean"):
            build.parse(build.METHODS, {**SETTINGS[kind], "centred": "yes"}, "method")
