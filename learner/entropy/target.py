"""Computes where entropy should be: absolute or a fraction of where the run started, over time, of which responses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from learner.settings import Settings

SMALLEST = 1e-9  # nats
Positive = Annotated[float, Field(gt=0)]


class TargetSettings(Settings):
    """Sets at most one of `nats` and `fraction`; the default is the run's own start, as published. A schedule multiplies it."""

    nats: float | None = Field(default=None, gt=0)
    # [first, last]: in a straight line from the one to the other over the run, or over its stage.
    fraction: Positive | tuple[Positive, Positive] | None = None
    # Responses that a fraction's start is measured on, before the first update. A first batch of as many is enough; for a
    # smaller one others are sampled for that alone.
    start_responses: int = Field(default=256, ge=1)
    # Entropy of which responses is held: of all, or of the correct ones (the diversity of solutions, not ignorance).
    over: Literal["all", "successful"] = "all"
    # (iteration, factor) points; straight lines between them, flat before the first and after the last.
    schedule: tuple[tuple[int, float], ...] = ()
    release_at: int | None = Field(default=None, ge=1)  # from this iteration on nothing is controlled

    @field_validator("fraction", mode="before")
    @classmethod
    def _list_is_a_pair(cls, value: Any) -> Any:
        return tuple(cast("list[object]", value)) if isinstance(value, list) else value

    @field_validator("schedule", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        points = cast("Sequence[object]", value)  # of whatever YAML holds: pydantic checks it afterwards
        return tuple(_point(cast("Sequence[Any]", p)) if isinstance(p, list | tuple) else p for p in points)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.nats is not None and self.fraction is not None:
            raise ValueError(
                f"nats ({self.nats:g}) and fraction ({_said(self.fraction)}) both set the target: give one"
            )
        if isinstance(self.fraction, tuple) and self.schedule:
            raise ValueError(
                f"fraction ({_said(self.fraction)}) and schedule both say how the target moves: give one number for fraction"
            )
        when = [iteration for iteration, _ in self.schedule]
        if when != sorted(set(when)) or any(factor <= 0 for _, factor in self.schedule):
            points = ", ".join(f"[{i}, {f:g}]" for i, f in self.schedule)
            raise ValueError(f"the schedule {points} needs rising iterations and factors above 0")
        return self

    def annealed(self, iterations: int) -> TargetSettings:
        """Returns the same target with a schedule over `iterations` in the place of a pair of fractions."""
        if not isinstance(self.fraction, tuple):
            return self
        first, last = self.fraction
        points = ((1, 1.0), (iterations, last / first)) if iterations > 1 else ()
        return self.model_copy(update={"fraction": first, "schedule": points})


def _said(fraction: float | tuple[float, float]) -> str:
    return "[" + ", ".join(f"{f:g}" for f in fraction) + "]" if isinstance(fraction, tuple) else f"{fraction:g}"


def _point(values: Sequence[Any]) -> tuple[Any, ...]:
    """Takes [iteration, factor] from YAML to (iteration, float(factor))."""
    return tuple(float(x) if i else x for i, x in enumerate(values))


class Target:
    """Follows the target over iterations. Its start is set before the first of them, or is the entropy of the first.

    settings: a pair of fractions is what `TargetSettings.annealed` made of it, since their line needs the number of iterations.
    """

    def __init__(self, settings: TargetSettings) -> None:
        self.settings = settings
        self.anchor()

    def anchor(self) -> None:
        """Forgets the start, which is measured anew; schedule and release count from here too."""
        self.start = math.nan  # nats per token
        self.iteration = 0  # the one being observed, from 1

    def set_start(self, entropy: float) -> None:
        """Takes the entropy before the first update as the start; an entropy that was not measured (nan) leaves it open."""
        if math.isfinite(entropy):
            self.start = entropy

    @property
    def released(self) -> bool:
        at = self.settings.release_at
        return at is not None and self.iteration >= at

    def observe(self, entropy: float) -> float:
        """Returns the target in nats. entropy: nats per token of this iteration, nan where it could not be measured."""
        self.iteration += 1
        if not math.isfinite(self.start):
            self.set_start(entropy)
        factor = scheduled(self.settings.schedule, self.iteration)
        if self.settings.nats is not None:  # the start is kept all the same: a resumed run may ask for a fraction of it
            return factor * self.settings.nats
        fraction = 1.0 if self.settings.fraction is None else self.settings.fraction
        assert not isinstance(fraction, tuple)  # annealed
        # A policy that starts without any entropy gives a target that is not 0: errors are relative to it.
        return max(factor * fraction * (self.start if math.isfinite(self.start) else 0.0), SMALLEST)

    def state_dict(self) -> dict[str, float]:
        return {"start": self.start, "iteration": float(self.iteration)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.iteration = int(state["iteration"])
        if "start" in state:
            self.start = state["start"]
        else:  # a checkpoint of before, which has the sum over the first iterations
            self.start = state["total"] / state["count"] if state["count"] else math.nan


def scheduled(points: tuple[tuple[int, float], ...], iteration: int) -> float:
    """Returns the factor of the schedule at an iteration; 1 without points."""
    if not points:
        return 1.0
    if iteration <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if iteration <= x1:
            return y0 + (y1 - y0) * (iteration - x0) / (x1 - x0)
    return points[-1][1]
